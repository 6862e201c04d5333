"""Losses, hidden states, evaluations and probes equal the same thing done the long way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ctr.engine.errors import DataError, SpecError

DIGITS = {"data": {"source": "digits"}}


def test_the_loss_is_the_mean_cross_entropy_in_float32(make: Any, built: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4)
    batch = task.batch(0, 1)
    outputs = task.forward(model, batch, {})
    logits = outputs.logits.double()
    expected = -logits.log_softmax(dim=1)[range(16), batch.tensors["labels"].tolist()].mean()
    assert outputs.loss.dtype == torch.float32 and outputs.loss.dim() == 0 and outputs.loss.requires_grad
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert outputs.hidden == {}
    model.head.register_forward_hook(lambda module, inputs, output: output.bfloat16())
    low = task.forward(model, batch, {})
    assert low.logits.dtype == torch.bfloat16 and low.loss.dtype == torch.float32
    low_logits = model.eval()(batch.tensors["images"])
    picked = [list(task.items("train")).index(i) for i in batch.ids]
    expected = cross_entropy(low_logits.float(), batch.tensors["labels"], reduction="none").detach()
    np.testing.assert_allclose(task.evaluate(model, "train", picked).loss_sum, expected, rtol=1e-4)


def test_hidden_states_are_given_when_asked_for_and_leave_nothing_behind(make: Any, built: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4).eval()
    batch = task.batch(0, 0)
    plain = task.forward(model, batch, {"hidden": frozenset()})
    outputs = task.forward(model, batch, {"hidden": frozenset({-1, 0, 2})})
    assert torch.equal(plain.loss, outputs.loss)
    assert {i: tuple(h.shape) for i, h in outputs.hidden.items()} == {0: (16, 64, 4), 2: (16, 4, 16), -1: (16, 16)}
    assert torch.allclose(outputs.hidden[2].mean(dim=1), outputs.hidden[-1])
    assert torch.equal(model.head(outputs.hidden[-1]), outputs.logits)
    assert torch.equal(
        outputs.hidden[0].transpose(1, 2).reshape(16, 4, 8, 8), model.stages[0](model.stem(batch.tensors["images"]))
    )
    outputs.hidden[-1].sum().backward()
    assert model.stem[0].weight.grad.abs().sum() > 0
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_hidden_state_that_is_not_there_is_refused(make: Any, built: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4)
    with pytest.raises(SpecError, match=r"SmallResNet has no hidden state 7; it has -1, 0, 1, 2"):
        task.forward(model, task.batch(0, 0), {"hidden": frozenset({7})})


def naive(task: Any, model: Any, split: str) -> tuple[list[float], list[float]]:
    """Score one item at a time, straight from the numpy arrays."""
    rows = task._rows[split]
    scale, shift = task._normalise.scale, task._normalise.shift
    losses, correct = [], []
    for pixels, label in zip(rows.images.pixels, rows.images.labels, strict=True):
        image = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None] * scale + shift
        logits = model(image).detach()
        losses.append(float(cross_entropy(logits, torch.tensor([label]))))
        correct.append(100.0 * (int(logits.argmax()) == label))
    return losses, correct


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_evaluation_equals_scoring_one_item_at_a_time(make: Any, built: Any, npz: Any, split: str) -> None:
    task = make({"data": npz, "eval_batch": 7})
    model = built(task, kind="small_resnet", width=4)
    result = task.evaluate(model, split)
    losses, correct = naive(task, model.eval(), split)
    np.testing.assert_allclose(result.loss_sum, losses, rtol=1e-5)
    assert result.metrics["accuracy"].tolist() == correct
    assert result.split == split and list(result.ids) == list(task.items(split))
    assert result.loss_sum.dtype == result.count.dtype == result.metrics["accuracy"].dtype == np.float64
    assert result.summary()["accuracy"] == pytest.approx(np.mean(correct)) and result.count.tolist() == [1.0] * len(
        losses
    )


def test_some_items_of_a_split_can_be_scored(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    whole, some = task.evaluate(model, "test"), task.evaluate(model, "test", [3, 0, 11])
    assert list(some.ids) == [63, 60, 71]
    np.testing.assert_allclose(some.loss_sum, whole.loss_sum[[3, 0, 11]], rtol=1e-5)


def test_an_evaluation_leaves_modes_gradients_buffers_and_generators_as_they_were(
    make: Any, built: Any, npz: Any
) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    model.stem[1].eval()
    modes = [part.training for part in model.modules()]
    task.forward(model, task.batch(0, 0), {}).loss.backward()
    before = [p.grad.clone() for p in model.parameters()], [b.clone() for b in model.buffers()], torch.get_rng_state()
    task.evaluate(model, "val")
    assert [part.training for part in model.modules()] == modes and not all(modes)
    assert all(torch.equal(a, p.grad) for a, p in zip(before[0], model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[1], model.buffers(), strict=True))
    assert torch.equal(before[2], torch.get_rng_state())


def test_what_a_module_keeps_from_an_evaluation_can_be_trained_on(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    kept: list[torch.Tensor] = []

    def keep_the_first(module: Any, inputs: Any, output: Any) -> Any:
        kept.extend([output.mean()] * (not kept))
        return output * kept[0]

    model.head.register_forward_hook(keep_the_first)
    task.evaluate(model, "val")
    task.forward(model, task.batch(0, 1), {}).loss.backward()


def test_an_evaluation_that_fails_restores_the_mode(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    model.head.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :2],))
    with pytest.raises(RuntimeError):
        task.evaluate(model, "val")
    assert all(part.training for part in model.modules())


def test_nan_logits_are_no_correct_answers_and_no_finite_loss(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    model.head.bias.data.fill_(float("nan"))
    assert np.isnan(task.evaluate(model, "val").loss_sum).all()


def test_an_unknown_split_is_refused(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    with pytest.raises(DataError, match=r"the data have no split 'tset'; they have test, train, val"):
        task.evaluate(built(task, kind="small_resnet", width=4), "tset")


def test_the_test_split_is_not_on_the_device_before_it_is_asked_for(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    task.batch(0, 0)
    task.evaluate(model, "val")
    assert sorted(task._tensors) == ["train", "val"]


def test_the_probe_is_drawn_from_validation_by_the_split_seed_alone(make: Any) -> None:
    one, two = make({**DIGITS, "eval_batch": 30}, seed=1), make({**DIGITS, "eval_batch": 30}, seed=2, micro_batch=5)
    probe = one.probe(64)
    ids = [i for batch in probe for i in batch.ids]
    assert [batch.count for batch in probe] == [30, 30, 4] and set(ids) < set(one.items("val")) and len(set(ids)) == 64
    for a, b in zip(probe, two.probe(64), strict=True):
        assert a.ids == b.ids and torch.equal(a.tensors["images"], b.tensors["images"])
    other = make({"data": {"source": "digits", "split_seed": 3}}).probe(64)
    assert [i for batch in other for i in batch.ids] != ids
    assert [i for batch in one.probe(10_000) for i in batch.ids] == list(one.items("val"))


def test_there_is_nothing_to_remember_across_a_kill(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    expected = task.batch(2, 1).ids
    again = make({"data": npz})
    again.restore(task.state())
    assert again.batch(2, 1).ids == expected


def test_a_step_and_an_evaluation_run_under_deterministic_algorithms(make: Any, built: Any, npz: Any) -> None:
    task = make({"data": npz, "augment": {"crop": 1, "flip": True}})
    model = built(task, kind="small_resnet", width=4)
    torch.use_deterministic_algorithms(True)
    try:
        outputs = task.forward(model, task.batch(0, 0), {"hidden": frozenset({-1, 1})})
        (outputs.loss + outputs.hidden[1].square().mean()).backward()
        task.evaluate(model, "val")
    finally:
        torch.use_deterministic_algorithms(False)
