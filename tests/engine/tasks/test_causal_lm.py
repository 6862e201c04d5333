"""The task `causal_lm`: its loss is transformers' own, and a row's score hangs on that row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ctr.engine.errors import DataError
from ctr.engine.task import Batch, Phase
from ctr.engine.tasks.causal_lm import CausalLm
from ctr.engine.tasks.language_models import LanguageModel

from .small_text import FAMILIES, LORA, QWEN2, begun, gradients, make

ADAPTERS = {"whole": None, "lora": LORA}
CASES = [(FAMILIES[f], ADAPTERS[a]) for f in FAMILIES for a in ADAPTERS]
NAMES = [f"{f}-{a}" for f in FAMILIES for a in ADAPTERS]


def padded(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as transformers wants it: ids, padding mask, labels of which -100 is not trained."""
    ids, mask = batch.tensors["ids"], batch.tensors["mask"]
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.masked_fill(~mask, -100)}


@pytest.mark.parametrize("rows", ["bucket", "pad"])
@pytest.mark.parametrize(("model", "adapter"), CASES, ids=NAMES)
def test_loss_and_gradients_are_those_of_transformers_on_padded_rows(
    model: dict[str, Any], adapter: Any, rows: str, tmp_path: Path
) -> None:
    task, module = begun(tmp_path, model, adapter, rows=rows)
    module.double()
    for index in range(3):
        batch = task.batch(0, index)
        assert (batch.tensors["ids"].shape[1] == 48) == (rows == "pad")
        loss = task.forward(module, batch, {}).loss
        loss.backward()
        ours = gradients(module)
        theirs = module.net(**padded(batch)).loss
        theirs.backward()
        assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)  # ours ends in float32, as in training
        expected = gradients(module)
        assert ours.keys() == expected.keys() and ours
        for name in ours:
            torch.testing.assert_close(ours[name], expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("model", "adapter"), CASES, ids=NAMES)
def test_packed_rows_are_as_apart_as_rows_alone(model: dict[str, Any], adapter: Any, tmp_path: Path) -> None:
    task, module = begun(tmp_path, model, adapter, micro=2, rows="pack")
    tokens = task._split("train")
    trained = 0
    for index in range(task.batches(0)):
        batch = task.batch(0, index)
        rows = task.order(0)[trained : trained + len(batch.ids)]
        trained += len(rows)
        logits = task.forward(module, batch, {}).logits
        assert logits is not None and batch.ids == [task._ids["train"][row] for row in rows]
        alone = [whole(module, tokens.flat[tokens.starts[r] :][: tokens.lengths[r]])[:-1] for r in rows]
        torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-5, atol=1e-5)
        assert len(logits) == batch.count
    assert trained == len(tokens)
    assert len(tokens) > 2 * task.batches(0), "several rows lie in a line"


def whole(module: LanguageModel, ids: Any) -> Tensor:
    """Return the logits (seq, vocab) of one row alone, by transformers."""
    found: Tensor = module.net(input_ids=torch.from_numpy(np.asarray(ids))[None]).logits[0]
    return found


@pytest.mark.parametrize(("model", "adapter"), CASES, ids=NAMES)
def test_a_split_is_scored_row_by_row(model: dict[str, Any], adapter: Any, tmp_path: Path) -> None:
    task, module = begun(tmp_path, {**model, "dropout": 0.2}, adapter)
    found = task.evaluate(module, "train")
    tokens = task._split("train")
    assert all(part.training for part in module.modules()), "modes are as before"
    module.eval()
    with torch.no_grad():
        for row in range(len(tokens)):
            ids = torch.from_numpy(tokens.flat[tokens.starts[row] :][: tokens.lengths[row]])
            logits = whole(module, ids)[:-1]
            assert found.loss_sum[row] == pytest.approx(
                float(cross_entropy(logits, ids[1:], reduction="sum")), rel=1e-5
            )
            assert found.count[row] == len(ids) - 1
            hits = (logits.argmax(-1) == ids[1:]).double().mean()
            assert found.metrics["accuracy"][row] == pytest.approx(100 * float(hits))
    assert found.ids == task.items("train")


def test_items_may_come_in_any_order_and_twice(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2)
    everything = task.evaluate(module, "train")
    items = [7, 2, 30, 7, 0, 31]
    some = task.evaluate(module, "train", items)
    np.testing.assert_allclose(some.loss_sum, everything.loss_sum[items], rtol=1e-5)
    assert some.count.tolist() == everything.count[items].tolist()
    assert some.ids == [everything.ids[i] for i in items]
    assert some.loss_sum[0] == some.loss_sum[3]
    assert len(task.evaluate(module, "train", []).count) == 0


@pytest.mark.parametrize("budget", [2, 50, 333])
def test_scores_do_not_hang_on_the_tokens_of_a_pass(budget: int, tmp_path: Path) -> None:
    whole, module = begun(tmp_path, QWEN2)
    parted = make(tmp_path, eval_tokens=budget)
    parted.share(module)
    left, right = whole.evaluate(module, "val"), parted.evaluate(module, "val")
    np.testing.assert_allclose(left.loss_sum, right.loss_sum, rtol=1e-5)
    assert left.ids == right.ids and left.metrics["accuracy"].tolist() == right.metrics["accuracy"].tolist()


def test_a_large_head_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, module = begun(tmp_path, QWEN2)
    once = task.evaluate(module, "train")
    monkeypatch.setattr("ctr.engine.tasks.token_scoring._LOGITS", 7 * 263)
    np.testing.assert_allclose(task.evaluate(module, "train").loss_sum, once.loss_sum, rtol=1e-6)


def test_a_model_whose_logits_are_more_than_its_head_is_read_as_a_whole(tmp_path: Path) -> None:
    """Such as one that caps its logits: the fast way past the head would train something else."""
    task, module = begun(tmp_path, QWEN2)
    plain = task.forward(module, task.batch(0, 0), {"hidden": frozenset({-1})})
    forward = module.causal.forward

    def capped(*args: Any, **more: Any) -> Any:
        out = forward(*args, **more)
        out.logits = out.logits.tanh() * 3
        return out

    module.causal.forward = capped
    other = LanguageModel(module.net, module.tokenizer)
    assert module.plain_head and not other.plain_head
    got = task.forward(other, task.batch(0, 0), {"hidden": frozenset({-1})})
    assert plain.logits is not None and got.logits is not None
    torch.testing.assert_close(got.logits, plain.logits.tanh() * 3)
    torch.testing.assert_close(got.hidden[-1], plain.hidden[-1])
    before, after = (task.evaluate(m, "val").loss_sum for m in (module, other))
    module.causal.forward = forward
    assert not np.allclose(before, after)


def test_batches_hang_on_their_position_alone(tmp_path: Path) -> None:
    task, _ = begun(tmp_path, QWEN2)
    straight = [task.batch(e, i) for e in range(2) for i in range(task.batches(e))]
    back = [task.batch(e, i) for e in (1, 0) for i in reversed(range(task.batches(e)))][::-1]
    for left, right in zip(straight, back, strict=True):
        assert left.ids == right.ids and torch.equal(left.tensors["ids"], right.tensors["ids"])
    first = [name for batch in straight[: task.batches(0)] for name in batch.ids]
    assert sorted(first) == sorted(task.items("train"))
    assert first == [task.items("train")[i] for i in task.order(0)]


def test_an_epoch_of_batches_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    task, _ = begun(tmp_path, QWEN2)
    passes = [task.batch(e, i).ids for e in range(2) for i in range(task.batches(0))]
    task.begin(Phase("main", 0, 9, 5, epoch_batches=3))
    cut = [task.batch(e, i).ids for e in range(4) for i in range(3)]
    assert cut == passes[: len(cut)]


def test_a_phase_draws_another_order_and_a_seed_of_its_own_the_same(tmp_path: Path) -> None:
    def order(seed: int, index: int, own: int | None = None) -> list[int]:
        task = make(tmp_path, seed=seed)
        task.share(module)
        task.begin(Phase("main", index, 2, 5, seed=own))
        return list(task.order(0))

    _, module = begun(tmp_path, QWEN2)
    assert order(1, 0) != order(1, 1) and order(1, 0) != order(2, 0)
    assert order(1, 0, own=9) == order(2, 0, own=9) != order(1, 0)


def test_the_probe_is_one_for_all_seeds(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2, probe_rows=3)
    other = make(tmp_path, seed=8, probe_rows=3)
    other.share(module)
    left, right = ([name for batch in one.probe(128) for name in batch.ids] for one in (task, other))
    assert left == right and len(left) == 3 and set(left) <= set(task.items("val"))
    assert len([name for batch in task.probe(2) for name in batch.ids]) == 2


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2)
    with pytest.raises(DataError, match=r"no split 'calibration'.*test, train, val; set data.calibration_fraction"):
        task.evaluate(module, "calibration")
    assert CausalLm.splits(task._config) == {"val", "test"}
