"""Models have the parameters they should, take the data they are given, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch.nn.functional import cross_entropy

from ctr.engine.errors import DataError, SpecError
from ctr.engine.tasks.image_classification import ImageClassification
from ctr.engine.tasks.resnet import SmallResNet

DIGITS = {"data": {"source": "digits"}}


def built(task: ImageClassification, adapter: Any = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    return task.build(TypeAdapter(ImageClassification.Model).validate_python(settings), adapter, torch.Generator())


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images_of(tmp_path: Path, size: int, channels: int = 3, train: int = 40) -> dict[str, Any]:
    random = np.random.RandomState(0)
    arrays = {
        f"{name}_{what}": random.randint(0, 256, (n, size, size, channels), dtype=np.uint8)
        if what == "images"
        else np.arange(n) % 4
        for name, n in (("train", train), ("test", 8))
        for what in ("images", "labels")
    }
    np.savez(tmp_path / f"{size}.npz", **arrays)
    return {"data": {"source": "npz", "path": str(tmp_path / f"{size}.npz")}}


# ---- the small residual network --------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count"), [(8, 44_370), (16, 175_258), (32, 696_618), (64, 2_777_674)])
def test_parameter_counts_are_those_of_the_source(width: int, count: int) -> None:
    assert parameters(SmallResNet(width, 3, 10)) == count
    assert parameters(SmallResNet(width, 1, 10)) == count - 2 * 9 * width


def test_the_parts_of_width_32_have_the_published_sizes() -> None:
    model = SmallResNet(32, 3, 10)
    parts = [parameters(part) for part in (model.stem, *model.stages, model.head)]
    assert parts == [864 + 64, 37_120, 131_712, 525_568, 1_290]
    assert sum(buffer.numel() for buffer in model.buffers()) == 2_255


def test_parameters_draw_in_the_order_of_the_source() -> None:
    names = [name for name, _ in SmallResNet(8, 3, 10).named_parameters() if name.startswith("stages.1.0")]
    assert [name.removeprefix("stages.1.0.") for name in names] == [
        "conv1.weight", "norm1.weight", "norm1.bias", "conv2.weight", "norm2.weight", "norm2.bias",
        "shortcut.0.weight", "shortcut.1.weight", "shortcut.1.bias",
    ]  # fmt: skip
    torch.manual_seed(3)
    model = SmallResNet(8, 3, 10)
    torch.manual_seed(3)
    stem = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    first = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert torch.equal(model.stem[0].weight, stem.weight) and torch.equal(model.stages[0][0].conv1.weight, first.weight)


def test_it_computes_what_the_source_describes() -> None:
    torch.manual_seed(0)
    model = SmallResNet(4, 3, 5).double().eval()
    x = torch.randn(2, 3, 9, 9, dtype=torch.double)

    def norm(out: Any, layer: Any) -> Any:
        return (out - layer.running_mean[:, None, None]) / (layer.running_var[:, None, None] + 1e-5).sqrt()

    out = norm(torch.conv2d(x, model.stem[0].weight, padding=1), model.stem[1]).relu()
    for index, stage in enumerate(model.stages):
        for place, block in enumerate(stage):
            stride = 2 if index and not place else 1
            inner = norm(torch.conv2d(out, block.conv1.weight, stride=stride, padding=1), block.norm1).relu()
            inner = norm(torch.conv2d(inner, block.conv2.weight, padding=1), block.norm2)
            if stride == 2:
                out = norm(torch.conv2d(out, block.shortcut[0].weight, stride=2), block.shortcut[1])
            out = (inner + out).relu()
    expected = out.mean(dim=(2, 3)) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(x), expected)


def test_it_adapts_to_channels_and_classes_and_is_built_from_the_default_generator(make: Any) -> None:
    task = make(DIGITS)
    one, two = built(task, kind="small_resnet", width=4), built(task, kind="small_resnet", width=4)
    assert (one.channels, one.classes) == (1, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


# ---- torchvision -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("resnet18", 32), ("mobilenet_v3_small", 32), ("squeezenet1_1", 32)])
def test_a_torchvision_classifier_trains_a_step(make: Any, tmp_path: Path, name: str, size: int) -> None:
    task = make(images_of(tmp_path, size), micro_batch=8)
    model = built(task, kind="torchvision", name=name)
    optimizer = torch.optim.SGD(task.groups(model)["base"], lr=0.01)
    batch = task.batch(0, 0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    outputs = task.forward(model, batch, {"hidden": frozenset({-1})})
    outputs.loss.backward()
    optimizer.step()
    assert outputs.logits.shape == (8, 4) and outputs.hidden[-1].shape[0] == 8 and outputs.hidden[-1].dim() == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_grey_images_are_repeated_into_three_channels(make: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="torchvision", name="resnet18").eval()
    images = task.batch(0, 0).tensors["images"]
    assert torch.equal(model(images), model.net(images.repeat(1, 3, 1, 1)))


def test_models_with_auxiliary_heads_come_without_them(make: Any, tmp_path: Path) -> None:
    model = built(make(images_of(tmp_path, 64), micro_batch=8), kind="torchvision", name="googlenet")
    assert isinstance(model.train()(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_building_draws_the_same_whether_or_not_the_model_is_tried_on_the_data(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make(images_of(tmp_path, 64), micro_batch=8)
    built(task, kind="torchvision", name="alexnet")  # holds dropout
    state = torch.get_rng_state()
    monkeypatch.setattr(task, "_check", lambda module: None)
    built(task, kind="torchvision", name="alexnet")
    assert torch.equal(state, torch.get_rng_state())


def test_trying_the_model_on_the_data_leaves_it_untouched(make: Any) -> None:
    model = built(make(DIGITS), kind="small_resnet", width=4)
    assert model.stem[1].num_batches_tracked == 0 and model.training
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_a_model_that_does_not_fit_is_refused_by_name(make: Any, tmp_path: Path) -> None:
    task = make(DIGITS)
    with pytest.raises(SpecError, match=r"model.name: torchvision has no classifier 'resnet81'. Did you mean resnet18"):
        built(task, kind="torchvision", name="resnet81")
    with pytest.raises(SpecError, match=r"no classifier 'fasterrcnn_resnet50_fpn'"):
        built(task, kind="torchvision", name="fasterrcnn_resnet50_fpn")
    with pytest.raises(SpecError, match=r"cannot train on 7 images of 1 x 8 x 8: .*take larger images, another model"):
        built(task, kind="torchvision", name="vgg11")
    with pytest.raises(SpecError, match=r"cannot train on .* images of 1 x 8 x 8: Wrong image height!"):
        built(task, kind="torchvision", name="vit_b_32")
    with pytest.raises(SpecError, match=r"take 1 or 3 channels, the images have 2"):
        built(make(images_of(tmp_path, 8, channels=2)), kind="torchvision", name="resnet18")
    with pytest.raises(SpecError, match=r"adapter: image_classification trains whole models and knows no adapter"):
        built(task, adapter={"rank": 4}, kind="small_resnet")


def test_a_last_batch_of_one_tiny_image_is_refused_before_it_is_met(make: Any, tmp_path: Path) -> None:
    settings = images_of(tmp_path, 4, train=40)  # 36 to train on
    built(make(settings, micro_batch=9), kind="small_resnet", width=4)
    with pytest.raises(SpecError, match=r"cannot train on 1 images of 3 x 4 x 4: .*or another train.micro_batch"):
        built(make(settings, micro_batch=7), kind="small_resnet", width=4)


# ---- pretrained weights ----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and no network."""
    from torchvision import models

    def no_network(url: str, *args: Any, **settings: Any) -> None:
        raise OSError(f"no network to reach {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    return cache / Path(models.get_model_weights("squeezenet1_1").DEFAULT.url).name  # type: ignore[attr-defined]


def test_pretrained_weights_get_a_new_head(make: Any, tmp_path: Path, hub: Path) -> None:
    from torchvision import models

    torch.manual_seed(1)
    published = models.get_model("squeezenet1_1", weights=None)
    torch.save(published.state_dict(), hub)
    task = make(images_of(tmp_path, 32), micro_batch=8)
    model = built(task, kind="torchvision", name="squeezenet1_1", pretrained=True)
    assert torch.equal(model.net.features[0].weight, published.features[0].weight)
    assert model.classifier().weight.shape[0] == 4
    assert task.forward(model, task.batch(0, 0), {}).logits.shape == (8, 4)


def test_weights_that_cannot_be_fetched_are_named(make: Any, tmp_path: Path, hub: Path) -> None:
    with pytest.raises(DataError, match=r"pretrained weights of squeezenet1_1 could not be loaded: no network"):
        built(make(images_of(tmp_path, 32)), kind="torchvision", name="squeezenet1_1", pretrained=True)


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_weights_file_cannot_run_code(make: Any, tmp_path: Path, hub: Path) -> None:
    torch.save({"features.0.weight": Exploit(tmp_path / "ran")}, hub)
    task = make(images_of(tmp_path, 32))
    with pytest.raises(DataError, match=r"hold more than tensors; delete the file"):
        built(task, kind="torchvision", name="squeezenet1_1", pretrained=True)
    assert not (tmp_path / "ran").exists()
    torch.load(hub, weights_only=False)
    assert (tmp_path / "ran").exists()


# ---- sharing ---------------------------------------------------------------------------------------------------


def test_a_second_task_shares_a_model_that_fits_and_refuses_another(make: Any, tmp_path: Path) -> None:
    first = make(images_of(tmp_path, 8))
    model = built(first, kind="small_resnet", width=4)
    assert [p.shape for p in make(images_of(tmp_path, 16)).groups(model)["base"]] == [
        p.shape for p in first.groups(model)["base"]
    ]
    with pytest.raises(SpecError, match=r"takes 3 channels and 4 classes, the data have 1 and 10"):
        make(DIGITS).groups(model)
    with pytest.raises(SpecError, match=r"Linear was not built for images, so image_classification cannot share it"):
        first.groups(torch.nn.Linear(3, 3))


def test_frozen_parameters_are_in_no_group(make: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4)
    model.stem.requires_grad_(False)
    assert len(task.groups(model)["base"]) == len(list(model.parameters())) - 3


# ---- forward ---------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_cross_entropy_in_float32(make: Any) -> None:
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


def test_hidden_states_are_given_when_asked_for_and_leave_nothing_behind(make: Any) -> None:
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


def test_a_hidden_state_that_is_not_there_is_refused(make: Any) -> None:
    task = make(DIGITS)
    model = built(task, kind="small_resnet", width=4)
    with pytest.raises(SpecError, match=r"SmallResNet has no hidden state 7; it has -1, 0, 1, 2"):
        task.forward(model, task.batch(0, 0), {"hidden": frozenset({7})})


# ---- evaluation ------------------------------------------------------------------------------------------------


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
def test_an_evaluation_equals_scoring_one_item_at_a_time(make: Any, npz: Any, split: str) -> None:
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


def test_some_items_of_a_split_can_be_scored(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    whole, some = task.evaluate(model, "test"), task.evaluate(model, "test", [3, 0, 11])
    assert list(some.ids) == [63, 60, 71]
    np.testing.assert_allclose(some.loss_sum, whole.loss_sum[[3, 0, 11]], rtol=1e-5)


def test_an_evaluation_leaves_modes_gradients_buffers_and_generators_as_they_were(make: Any, npz: Any) -> None:
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


def test_what_a_module_keeps_from_an_evaluation_can_be_trained_on(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    kept: list[torch.Tensor] = []

    def keep_the_first(module: Any, inputs: Any, output: Any) -> Any:
        kept.extend([output.mean()] * (not kept))
        return output * kept[0]

    model.head.register_forward_hook(keep_the_first)
    task.evaluate(model, "val")
    task.forward(model, task.batch(0, 1), {}).loss.backward()


def test_an_evaluation_that_fails_restores_the_mode(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    model.head.register_forward_pre_hook(lambda module, inputs: (inputs[0][:, :2],))
    with pytest.raises(RuntimeError):
        task.evaluate(model, "val")
    assert all(part.training for part in model.modules())


def test_nan_logits_are_no_correct_answers_and_no_finite_loss(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    model.head.bias.data.fill_(float("nan"))
    assert np.isnan(task.evaluate(model, "val").loss_sum).all()


def test_an_unknown_split_is_refused(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    with pytest.raises(DataError, match=r"the data have no split 'tset'; they have test, train, val"):
        task.evaluate(built(task, kind="small_resnet", width=4), "tset")


def test_the_test_split_is_not_on_the_device_before_it_is_asked_for(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    model = built(task, kind="small_resnet", width=4)
    task.batch(0, 0)
    task.evaluate(model, "val")
    assert sorted(task._tensors) == ["train", "val"]


# ---- probe -----------------------------------------------------------------------------------------------------


def test_the_probe_is_drawn_from_validation_by_the_split_seed_alone(make: Any) -> None:
    one, two = make({**DIGITS, "eval_batch": 30}, seed=1), make({**DIGITS, "eval_batch": 30}, seed=2, micro_batch=5)
    probe = one.probe(64)
    ids = [i for batch in probe for i in batch.ids]
    assert [batch.count for batch in probe] == [30, 30, 4] and set(ids) < set(one.items("val")) and len(set(ids)) == 64
    for a, b in zip(probe, two.probe(64), strict=True):
        assert a.ids == b.ids and torch.equal(a.tensors["images"], b.tensors["images"])
    other = make({"data": {"source": "digits", "split_seed": 3}}).probe(64)
    assert [i for batch in other for i in batch.ids] != ids
    with pytest.raises(DataError, match=r"a probe of 400 images was asked for, the validation split holds 359"):
        one.probe(400)


def test_there_is_nothing_to_remember_across_a_kill(make: Any, npz: Any) -> None:
    task = make({"data": npz})
    expected = task.batch(2, 1).ids
    again = make({"data": npz})
    again.restore(task.state())
    assert again.batch(2, 1).ids == expected


# ---- determinism -----------------------------------------------------------------------------------------------


def test_a_step_and_an_evaluation_run_under_deterministic_algorithms(make: Any, npz: Any) -> None:
    task = make({"data": npz, "augment": {"crop": 1, "flip": True}})
    model = built(task, kind="small_resnet", width=4)
    torch.use_deterministic_algorithms(True)
    try:
        outputs = task.forward(model, task.batch(0, 0), {"hidden": frozenset({-1, 1})})
        (outputs.loss + outputs.hidden[1].square().mean()).backward()
        task.evaluate(model, "val")
    finally:
        torch.use_deterministic_algorithms(False)
