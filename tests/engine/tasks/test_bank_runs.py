"""Whole runs of a stream beside a bank: taken up anywhere they end the same, and silent phases leave the bank alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.checkpoint import CheckpointStore, join_state
from ctr.engine.events_log import read_events
from ctr.engine.kernel import Kernel
from ctr.engine.task import Phase
from ctr.engine.tasks import document_scoring
from ctr.engine.verify import verify

from .small_text import bits, train
from .streams import LENGTHS, make, study

Run = Callable[..., Path]
EVERY = {"arms:": "checkpoint: {every_steps: 3, every_epochs: 0, cache: false}\narms:"}
MOMENTS = {"betas: [0.0, 0.999], eps: 1e-10": "betas: [0.9, 0.99]", "weight_decay: 0.0": "weight_decay: 0.5"}
SGD = {
    "{kind: adamw, base_lr: 5e-2, weight_decay: 0.0, betas: [0.0, 0.999], eps: 1e-10}":
        "{kind: sgd, base_lr: 0.5, momentum: 0.8}",
}  # fmt: skip
GLOBAL = {
    "window: 24}": "window: 24, parts: [3, 6]}",
    "train:\n": "phases:\n  - {task: main, name: one}\n"
    "  - {task: main, name: all, trains: all, train: {epochs: 1, micro_batch: 2}}\n"
    "  - {task: main, name: two, adapter: continued}\n"
    "  - {task: main, name: rest, adapter: continued, moments: keep}\n"
    "train:\n",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that trains a run of the stream, with pieces replaced, to its end, and returns its folder."""
    spec = tmp_path / "spec"
    spec.mkdir()

    def run(name: str, replaced: dict[str, str] | None = None, dies_at: int | None = None) -> Path:
        folder = tmp_path / name / "streamed" / "run"
        path = study(spec, {**EVERY, **(replaced or {})})
        if dies_at is not None:
            outcome = train(path, folder, arm="adapted", dies_at=dies_at)
            assert outcome.status == "failed" and outcome.error == "RuntimeError: killed"
        outcome = train(path, folder, arm="adapted")
        assert outcome.status == "finished", outcome.error
        return folder

    return run


def state(folder: Path, *path: str) -> Any:
    """Return a part of what the last checkpoint remembers."""
    loaded = CheckpointStore(folder).newest()
    assert loaded is not None
    held = {name.removeprefix("state/"): t for name, t in loaded.tensors.items() if name.startswith("state/")}
    found: Any = join_state(loaded.record["state"], held)
    for part in path:
        found = found[part]
    return found


# where it is killed: within a group, at its end, with slots at rest; in each of the phases
CASES: dict[str, tuple[dict[str, str], tuple[int, ...]]] = {
    "signed": ({}, (2, 7, 9, 11)),
    "moments": (MOMENTS, (5, 10)),
    "sgd": (SGD, (5, 10)),
    "phases": (GLOBAL, (2, 9, 12, 14)),
}


@pytest.mark.parametrize(("more", "deaths"), CASES.values(), ids=CASES)
def test_a_stream_that_is_taken_up_has_the_same_ledger_and_moments(
    more: dict[str, str], deaths: tuple[int, ...], run: Run
) -> None:
    """Weights, moments, counters, the ledger and all series to the byte, after work that is lost and done again."""
    whole = run("straight", more)
    straight = bits(whole)
    for dies_at in deaths:
        folder = run(f"resumed{dies_at}", more, dies_at=dies_at)
        taken_up = [event["step"] for event in read_events(folder) if event["event"] == "resumed"]
        assert len(taken_up) == 1 and dies_at - 3 <= taken_up[0] < dies_at
        resumed = bits(folder)
        assert [name for name in straight if straight[name] != resumed.get(name)] == []
        assert straight.keys() == resumed.keys()
    ledger, optimizer = state(whole, "tasks", "main"), state(whole, "optimizer")
    assert (ledger["entries"] == 1).all() and torch.isfinite(ledger["nats"]).all()
    assert len(ledger["nats"]) == sum(-(-(n - 1) // 8) for n in LENGTHS)
    assert {name.rpartition(".lora_")[2][0] for name in optimizer} == {"A", "B"}
    for held in optimizer.values():
        assert held["step"].max() > 0 and (held["step"] % 1 == 0).all()
        assert set(held) - {"step"} == ({"momentum_buffer"} if more is SGD else
                                        {"exp_avg", "exp_avg_sq"} if more is MOMENTS else {"exp_avg_sq"})  # fmt: skip


def test_the_command_that_shows_it_says_so(tmp_path: Path) -> None:
    verdict = verify(study(tmp_path), at=9, kill=False, arm=None, sets=())
    assert verdict.equal, verdict.lines
    assert "  stopped: optimizer moments: equal" in verdict.lines and "  stopped: task states: equal" in verdict.lines


def test_slots_count_their_own_steps(run: Run) -> None:
    """The last group is of two documents; the other slots stand where those of the group before it ended."""
    given = {"slots: 3": "slots: 4", "window: 24}": "window: 24, order: given}"}
    steps = {tuple(held["step"].tolist()) for held in state(run("one", given), "optimizer").values()}
    chunks = [-(-(LENGTHS[document] - 1) // 8) for document in (8, 9, 6, 7)]
    assert steps == {tuple(count - 1.0 for count in chunks)} == {(3.0, 1.0, 1.0, 3.0)}


@pytest.mark.parametrize(("kind", "scaling"), [("sgd", 4 / math.sqrt(2)), ("adam", 2.0), ("adamw", 2.0)])
def test_a_phase_s_optimizer_decides_the_scale(kind: str, scaling: float, tmp_path: Path) -> None:
    task, module = make(tmp_path)
    task.begin(Phase("stream", 0, 1, 4, adapts=True))
    rows = [{"params": list(parameters), "name": name} for name, parameters in task.groups(module).items()]
    optimizer = task.optimizer(SimpleNamespace(kind=kind), rows, {"weight_decay": 0.0})
    assert isinstance(optimizer, BankOptimizer) and optimizer.kind == kind
    assert module.bank is not None and module.bank.scaling == scaling
    assert [group["name"] for group in optimizer.param_groups] == ["lora_a", "lora_b"]
    task.begin(Phase("weights", 1, 1, 4, turn=1))
    assert task.optimizer(SimpleNamespace(kind=kind), rows, {}) is None, "all weights are trained by torch's own"


def test_a_phase_of_all_weights_leaves_the_bank_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And trains them without it: no factor gets a gradient, and none moves."""
    seen: list[tuple[str, dict[str, bytes], dict[str, bool]]] = []
    update = Kernel._update

    def noting(self: Kernel, plan: Any, *rest: Any) -> None:
        update(self, plan, *rest)
        named = dict(self.module.named_parameters())
        factors = {n: p.detach().numpy().tobytes() for n, p in named.items() if ".lora_" in n}
        seen.append((plan.phase.name, factors, {n: p.grad is not None for n, p in named.items()}))

    monkeypatch.setattr(Kernel, "_update", noting)
    run("phases", GLOBAL)
    before = [factors for phase, factors, _ in seen if phase == "one"][-1]
    during = [(factors, grads) for phase, factors, grads in seen if phase == "all"]
    assert during and {phase for phase, _, _ in seen} == {"one", "all", "two", "rest"}
    for factors, grads in during:
        assert factors == before
        assert all(has is (".lora_" not in name) for name, has in grads.items())


def test_in_bf16_a_chunk_is_scored_alike_whether_or_not_others_train(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last chunks of a group, on which nobody trains, too."""
    seen: list[tuple[bool, torch.dtype]] = []
    forward = document_scoring.forward

    def noting(module: Any, batch: Any, *rest: Any) -> Any:
        outputs = forward(module, batch, *rest)
        assert outputs.logits is not None
        seen.append((bool(batch.count), outputs.logits.dtype))
        return outputs

    monkeypatch.setattr(document_scoring, "forward", noting)
    run("short", {"threads: 1": "threads: 1\n  precision: bf16"})
    assert set(seen) == {(True, torch.bfloat16), (False, torch.bfloat16)}
