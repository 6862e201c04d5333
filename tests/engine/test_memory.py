"""When memory runs out a run says where, over what, and which settings make it smaller; what was trained is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine import study as studies
from ctr.engine.errors import PluginError
from ctr.engine.events_log import read_events
from ctr.engine.memory import exhausted
from ctr.engine.tasks.image_classification import ImageClassification

Write = Callable[..., Path]
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:131] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "123 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB\nmore about it")


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})


def failed(path: Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Train the first baseline run of a study and return what it says of its end, and its events."""
    result = studies.run(path, folder, arms=["baseline"], seeds=[1])
    (outcome,) = result.outcomes
    assert outcome.status == "failed" and outcome.error is not None
    return outcome.error, list(read_events(result.folder / "baseline-s1"))


def raise_after(monkeypatch: pytest.MonkeyPatch, method: str, calls: int, error: BaseException) -> None:
    """Let a method of the task raise when it has been called so often."""
    plain, seen = getattr(ImageClassification, method), []

    def planted(self: Any, *args: Any) -> Any:
        seen.append(1)
        if len(seen) > calls:
            raise error
        return plain(self, *args)

    monkeypatch.setattr(ImageClassification, method, planted)


@pytest.mark.parametrize("error", [CPU, CUDA, MemoryError()], ids=["cpu", "cuda", "python"])
def test_in_training(error: BaseException, study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_after(monkeypatch, "forward", 4, error)
    text, events = failed(study(), tmp_path / "runs")
    said = (str(error) or "MemoryError").split("\n")[0]
    assert text.startswith("out of memory at phase ") and "more about it" not in text
    assert f"epoch 1, micro-batch 1 (images 64 x 1 x 8 x 8): {said}; set a train.micro_batch below 64" in text
    assert "(with a train.grad_accum above 1, for equal updates), train.gradient_checkpointing: true" in text
    assert text.endswith("or train.precision: bf16")
    assert next(e for e in events if e["event"] == "error")["text"] == text
    assert any(e["event"] == "checkpoint" for e in events)


def test_in_an_accumulated_update(study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_after(monkeypatch, "forward", 1, CUDA)
    text, _ = failed(study({"micro_batch: 64": "micro_batch: 16\n  grad_accum: 3"}), tmp_path / "runs")
    assert "epoch 0, micro-batch 0 to 2 (images 16 x 1 x 8 x 8)" in text and "train.grad_accum above 3" in text


def test_in_an_evaluation(study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_after(monkeypatch, "evaluate", 1, CUDA)
    text, _ = failed(study(), tmp_path / "runs")
    assert text.startswith("out of memory while evaluating at phase ")
    assert "epoch 0: CUDA out of memory. Tried" in text and text.endswith("lower the task's eval_batch")


def test_before_anything_is_trained(study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_after(monkeypatch, "build", 0, CPU)
    text, _ = failed(study(), tmp_path / "runs")
    assert text.startswith("out of memory while the run was made ready: [enforce fail") and "a smaller model" in text


def test_a_batch_that_cannot_be_had_again_hides_nothing(
    study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_after(monkeypatch, "batch", 2, CUDA)
    text, _ = failed(study(), tmp_path / "runs")
    assert "epoch 0, micro-batch 2: CUDA out of memory" in text


def test_only_want_of_memory_is_told_as_such() -> None:
    behind = PluginError("plugin x raised")
    behind.__cause__ = CUDA
    assert all(exhausted(error) for error in (CPU, CUDA, MemoryError(), behind))
    assert not any(exhausted(error) for error in (RuntimeError("shapes differ"), OSError(12, "out of memory"), None))
