"""Small image data and a maker of tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from ctr.engine.task import Context, Phase
from ctr.engine.tasks.image_classification import ImageClassification

Make = Callable[..., ImageClassification]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function (config, seed, micro_batch, epoch_batches, phase) → a task that has begun a phase."""

    def make(
        config: dict[str, Any], seed: int = 1, micro_batch: int = 16, epoch_batches: int | None = None, phase: int = 0
    ) -> ImageClassification:
        context = Context(seed, torch.device("cpu"), tmp_path)
        task = ImageClassification(ImageClassification.Config.model_validate(config), context)
        task.begin(Phase("train", phase, 3, micro_batch, epoch_batches))
        return task

    return make


@pytest.fixture
def built() -> Callable[..., Any]:
    """Return a function (task, adapter, **model settings) → the model, from one and the same seed."""

    def build(task: ImageClassification, adapter: Any = None, **settings: Any) -> Any:
        torch.manual_seed(0)
        return task.build(TypeAdapter(ImageClassification.Model).validate_python(settings), adapter, torch.Generator())

    return build


@pytest.fixture
def arrays() -> dict[str, Any]:
    """60 and 20 random colour images of 6 x 5 in four classes, as an npz archive holds them."""
    random = np.random.RandomState(0)
    return {
        "train_images": random.randint(0, 256, (60, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(60) % 4,
        "test_images": random.randint(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(20) % 4,
    }


@pytest.fixture
def npz(tmp_path: Path, arrays: dict[str, Any]) -> dict[str, Any]:
    """The data settings of an archive with these arrays."""
    np.savez(tmp_path / "small.npz", **arrays)
    return {"source": "npz", "path": str(tmp_path / "small.npz")}


class Exploit:
    """An object whose unpickling would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.fixture
def exploit() -> type[Exploit]:
    return Exploit
