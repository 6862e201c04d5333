"""Tasks of a few dozen items that train in milliseconds: images, and what both they and the language task share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ctr.engine.seeding import torch_generator
from ctr.engine.task import Batch, Evaluation, Outputs, Phase


class Tiny:
    """Sort 22 noisy points into 3 classes; micro-batches of 4, so that the last of an epoch is short."""

    metrics: Mapping[str, Any] = {}
    provides: frozenset[str] = frozenset()

    def __init__(
        self, seed: int = 0, items: int = 22, micro: int = 4, dropout: float = 0.2, lora: bool = False
    ) -> None:
        self.seed, self.micro, self.dropout, self.lora = seed, micro, dropout, lora
        draw = torch.Generator().manual_seed(7)
        self.x = torch.randn(items, 5, generator=draw)
        self.y = (self.x @ torch.randn(5, 3, generator=draw)).argmax(1)
        self.counts: dict[int, int] = {}  # micro-batch -> count to pretend
        self.documents: dict[int, tuple[int, ...]] = {}
        self.phase = Phase("main", 0, 1, micro)

    def to(self, device: torch.device) -> Tiny:
        """Move the data to a device; order and counts stay on the host."""
        for name, value in list(vars(self).items()):
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))
        return self

    def build(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        hidden = LowRank(5, 8) if self.lora else torch.nn.Linear(5, 8)
        return torch.nn.Sequential(
            hidden, torch.nn.BatchNorm1d(8), torch.nn.Dropout(self.dropout), torch.nn.Linear(8, 3)
        )

    def pair(self, module: Any) -> Any:
        """Return the part of the module that has the factors, where there is an adapter."""
        return module[0]

    def groups(self, module: torch.nn.Module) -> Mapping[str, list[Any]]:
        return {"base": [p for p in module.parameters() if p.requires_grad]}

    def begin(self, phase: Phase) -> None:
        self.phase = phase

    def batches(self, epoch: int) -> int:
        return -(-len(self.x) // self.micro)

    def order(self, epoch: int) -> Any:
        return torch.randperm(
            len(self.x), generator=torch_generator(self.seed, "data", self.phase.index, epoch)
        ).numpy()

    def batch(self, epoch: int, index: int) -> Batch:
        ids = self.order(epoch)[index * self.micro : (index + 1) * self.micro]
        tensors = {"x": self.x[ids], "y": self.y[ids]}
        return Batch(ids.tolist(), self.counts.get(index, len(ids)), tensors, self.documents.get(index, ()))

    def forward(self, module: torch.nn.Module, batch: Batch, needs: Any) -> Outputs:
        logits = module(batch.tensors["x"])
        return Outputs(torch.nn.functional.cross_entropy(logits, batch.tensors["y"]), logits)

    def evaluate(self, module: torch.nn.Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        training = module.training
        module.eval()
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(module(self.x), self.y, reduction="none").double().cpu().numpy()
        module.train(training)
        return Evaluation(split, list(range(len(losses))), losses, np.ones_like(losses), {})

    def items(self, split: str) -> Sequence[int]:
        return list(range(len(self.x)))

    def probe(self, size: int) -> Sequence[Batch]:
        return [Batch([0, 1], 2, {"x": self.x[:2], "y": self.y[:2]})]

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class LowRank(torch.nn.Module):
    """A frozen linear layer beside which a pair of factors learns."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = torch.nn.Parameter(torch.randn(outputs, inputs) / 2, requires_grad=False)
        self.a = torch.nn.Parameter(torch.randn(rank, inputs))
        self.b = torch.nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.base + 2.0 * self.b @ self.a).T


class TinyImages(Tiny):
    """Sort 22 noisy images of 4 x 4 into 3 classes: a convolution, batch statistics, dropout, a linear layer."""

    def __init__(self, seed: int = 0, items: int = 22, micro: int = 4, dropout: float = 0.2) -> None:
        super().__init__(seed, items, micro, dropout)
        draw = torch.Generator().manual_seed(11)
        self.x = torch.randn(items, 1, 4, 4, generator=draw)
        self.y = (self.x.flatten(1) @ torch.randn(16, 3, generator=draw)).argmax(1)

    def build(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(),
            torch.nn.Dropout(self.dropout), torch.nn.Linear(16, 3),
        )  # fmt: skip

    def batch(self, epoch: int, index: int) -> Batch:
        return self._named(super().batch(epoch, index))

    def forward(self, module: torch.nn.Module, batch: Batch, needs: Any) -> Outputs:
        logits = module(batch.tensors["images"])
        return Outputs(torch.nn.functional.cross_entropy(logits, batch.tensors["labels"]), logits)

    def probe(self, size: int) -> Sequence[Batch]:
        return [self._named(batch) for batch in super().probe(size)]

    def _named(self, batch: Batch) -> Batch:
        """Call the tensors as `image_classification` calls them, for what is written against one runs on the other."""
        return replace(batch, tensors={"images": batch.tensors["x"], "labels": batch.tensors["y"]})
