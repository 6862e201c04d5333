"""The task in runs: sharing a model, scores, resume, and what it says to plugins and to a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ctr.engine import study as studies
from ctr.engine.errors import SpecError
from ctr.engine.task import task_problem
from ctr.engine.tasks.sequence import SequencePrediction
from ctr.engine.testing import stop_in
from tests.engine.tasks.sequences import SMALL, Sequences, built, settings, task
from tests.engine.tiny import bits, finish, make, train_spec

torch.set_num_threads(1)


# ---------------------------------------------------------------------------------------------------- the model
def test_it_is_a_task_with_one_group() -> None:
    assert task_problem(SequencePrediction) is None
    made = task()
    module = built(made, compartments=3)
    assert list(made.groups(module)) == ["base"]
    assert {id(p) for p in made.groups(module)["base"]} == {id(p) for p in module.parameters()}


def test_tasks_of_the_same_tokens_share_a_model() -> None:
    module = built(task({"marker": 0}))
    for data in ({"marker": 1}, {"marker": 2, "offset": 14}, {"stream": "consecutive"}):
        task(data).share(module)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"vocab": 64}, r"tasks: data.vocab: the model was built for vocab 32, this task has 64; tasks that share"),
        ({"seq": 12}, r"tasks: data.seq: the model was built for seq 24, this task has 12; tasks that share"),
    ],
)
def test_a_model_of_other_tokens_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        task(data).share(built(task()))


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Linear was not built for sequences of tokens, so sequence cannot share it"):
        task().share(torch.nn.Linear(2, 2))


def test_an_adapter_is_refused() -> None:
    with pytest.raises(SpecError, match=r"adapter: sequence trains whole models and knows no adapter; remove it"):
        task().build(settings(), {"kind": "lora"}, torch.Generator())


# ---------------------------------------------------------------------------------------------------- scores
def test_scores_are_per_sequence_and_agree_with_a_loop() -> None:
    made = task({"val_items": 5})
    module, modes = built(made).train(), list[bool]()
    handle = module.register_forward_pre_hook(lambda part, _: modes.append(part.training))
    found = made.evaluate(module, "val")
    handle.remove()
    inputs, targets = made._split("val")
    logits = module(inputs).logits
    for item in range(5):
        losses = [cross_entropy(logits[item, t], targets[item, t]).item() for t in range(24)]
        right = [bool(logits[item, t].argmax() == targets[item, t]) for t in range(24)]
        assert found.loss_sum[item] == pytest.approx(sum(losses), rel=1e-5)
        assert found.metrics["accuracy"][item] == pytest.approx(100 * sum(right) / 24)
        assert found.metrics["last_accuracy"][item] == 100 * right[-1]
        assert found.metrics["last_loss"][item] == pytest.approx(losses[-1], rel=1e-5)
    assert found.count.tolist() == [24.0] * 5 and list(found.ids) == list(made.items("val"))
    assert modes == [False] and all(part.training for part in module.modules())
    assert set(found.metrics) == set(SequencePrediction.metrics)


def test_a_part_of_a_split_scores_as_in_the_whole() -> None:
    made = task({"val_items": 9})
    module = built(made)
    whole, part = made.evaluate(module, "val"), made.evaluate(module, "val", [7, 2])
    assert list(part.ids) == [whole.ids[7], whole.ids[2]]
    np.testing.assert_allclose(part.loss_sum, whole.loss_sum[[7, 2]], rtol=1e-6)


def test_the_size_of_evaluation_batches_moves_only_the_last_digits() -> None:
    losses = []
    for size in (256, 3):
        made = task({"val_items": 8})
        made._eval_batch = size
        losses.append(made.evaluate(built(made), "val").loss_sum)
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_the_loss_is_the_mean_over_the_targets_that_the_batch_counts() -> None:
    made = task()
    module, batch = built(made), made.batch(0, 0)
    out = made.forward(module, batch, {})
    assert batch.count == 4 * 24 and out.logits is not None
    each = [cross_entropy(out.logits[i], batch.tensors["targets"][i]).item() for i in range(4)]
    assert out.loss.item() == pytest.approx(sum(each) / 4)


# ---------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize("stream", ["positional", "consecutive"])
@pytest.mark.parametrize(("where", "step"), [("step", 8), ("accumulation", 4), ("evaluation", 12)])
def test_resumed_equals_uninterrupted(stream: str, where: str, step: int, tmp_path: Path) -> None:
    """Over two phases, with moments kept, as the accretion of several tasks is trained."""

    def run(folder: Path) -> Any:
        phases = [train_spec(name=name, epochs=2, grad_accum=1 + (where == "accumulation")) for name in "AB"]
        for phase in phases:
            phase.optimizer.kind, phase.optimizer.model_dump = "adamw", lambda exclude: {}
        return make(
            folder, task=Sequences(3, stream=stream), phases=phases, moments="keep", checkpoint={"every_steps": 5}
        )  # fmt: skip

    straight = finish(run(tmp_path / "a"))
    stop_in(run(tmp_path / "b"), step, where)
    assert bits(straight) == bits(finish(run(tmp_path / "b")))


def test_the_two_streams_train_on_other_sequences(tmp_path: Path) -> None:
    tasks = [Sequences(3, stream=kind) for kind in ("positional", "consecutive")]
    ended = [bits(finish(make(tmp_path / str(i), task=task))) for i, task in enumerate(tasks)]
    assert ended[0] != ended[1]


def test_the_shipped_accretion_runs_when_made_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A, B, C share a model; the matrix has a row for each; arms draw the same sequences, seeds others."""
    monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})
    small = {key: value for key, value in SMALL.items() if key != "vocab"}
    sets = [f"tasks.{name}.data.{key}={value}" for name in "ABC" for key, value in small.items()]
    path = Path(__file__).parents[3] / "specs" / "toy_accretion.yaml"
    sets += ["model.dim=8", "train.micro_batch=8"]
    result = studies.run(path, tmp_path, sets=sets, arms=["router", "dendritic"], seeds=[0, 1])
    assert [one.status for one in result.outcomes] == ["finished"] * 4, result.outcomes
    rows = json.loads((result.folder / "dendritic-s0" / "matrix.json").read_bytes())["rows"]
    assert [(row["label"], sorted(row["values"])) for row in rows] == [(p, ["A", "B", "C"]) for p in ("start", *"ABC")]
    hashes = {
        name: json.loads((result.folder / name / "provenance.json").read_bytes())["hashes"]
        for name in ("router-s0", "dendritic-s0", "dendritic-s1")
    }
    assert hashes["router-s0"]["data_order"] == hashes["dendritic-s0"]["data_order"]
    assert hashes["dendritic-s0"]["data_order"] != hashes["dendritic-s1"]["data_order"]
    assert len({found["evaluation_items"] for found in hashes.values()}) == 1
