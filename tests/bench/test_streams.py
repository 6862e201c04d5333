"""Both sides of the streams topic score the same documents alike. No times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .streams import Singles, bank, stage, windows

torch.set_num_threads(1)


def test_the_bank_and_one_document_at_a_time_book_the_same_scores(tmp_path: Path) -> None:
    one = stage(tmp_path, 24, [40, 25, 33], slots=3)
    singles = Singles(one)
    kernel = one.kernel()
    one.step(kernel)  # B was zero, so A has not moved from where it was drawn
    drawn = [one.model.bank.slot(slot) for slot in range(3)]
    for _ in range(one.steps - 1):
        one.step(kernel)
    booked = one.task.evaluate(one.model, "test")
    for slot, number in enumerate(one.task.plan.groups[0].tolist()):
        a = {f"base_model.model.{name}.lora_A.default.weight": pair[0] for name, pair in drawn[slot].items()}
        singles.document(number, a)
        assert singles.nats[number] == pytest.approx(booked.loss_sum[number], rel=2e-3)
    assert singles.nats[0] != pytest.approx(one.task.evaluate(one.model, "val").loss_sum[1], rel=2e-3)


def test_contestants_run(tmp_path: Path) -> None:
    one = stage(tmp_path, 24, [40, 25, 33], slots=3)
    bank(one)()
    assert len(one.task.evaluate(one.model, "test").ids) == 3
    windows(one)()
