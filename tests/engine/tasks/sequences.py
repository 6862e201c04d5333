"""Makers of sequence tasks and toy transformers, and a small one that whole runs can be made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from ctr.engine.task import Batch, Context, Outputs, Phase
from ctr.engine.tasks.sequence import SequencePrediction

EVERYTHING = {"hidden": frozenset({-1, 0, 1}), "attention": frozenset({-1, 0, 1}), "branches": frozenset({-1})}
SMALL = {"vocab": 16, "seq": 6, "items_per_epoch": 24, "val_items": 8, "test_items": 8}


def task(
    data: dict[str, Any] | None = None, seed: int = 0, micro: int = 4, epoch_batches: int | None = None, phase: int = 0
) -> SequencePrediction:
    """Return a task that has begun a phase."""
    config = SequencePrediction.Config.model_validate({"data": data or {}})
    made = SequencePrediction(config, Context(seed, torch.device("cpu"), Path("nowhere")))
    made.begin(Phase("train", phase, 3, micro, epoch_batches))
    return made


def settings(**model: Any) -> Any:
    return TypeAdapter(SequencePrediction.Model).validate_python({"kind": "toy", **model})


def built(made: SequencePrediction, seed: int = 0, **model: Any) -> Any:
    """Return the task's model, its weights drawn as the source draws them."""
    torch.manual_seed(seed)
    return SequencePrediction.build(made, settings(**model), None, torch.Generator())


class Sequences(SequencePrediction):
    """A task for `tests.engine.tiny.make`; with `open_house` it hands out everything, asked or not."""

    lora = False
    micro = 4

    def __init__(self, seed: int, open_house: bool = False, **data: Any) -> None:
        config = SequencePrediction.Config.model_validate({"data": {**SMALL, **data}})
        super().__init__(config, Context(seed, torch.device("cpu"), Path("nowhere")))
        self.seed, self.open_house = seed, open_house

    def build(self) -> Any:  # type: ignore[override]
        return built(self, self.seed, dim=8, heads=2, compartments=3, top_k=2, mode="dendritic")

    def forward(self, module: Any, batch: Batch, needs: Any) -> Outputs:
        return super().forward(module, batch, EVERYTHING if self.open_house else needs)
