"""A task of documents that come to an adapter one after the other: where `adapter_reset` is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ctr.engine.task import Batch, Outputs

from .tiny import Tiny


class TinyDocuments(Tiny):
    """The tiny task with an adapter in groups of its own; a document begins with every third micro-batch of six."""

    provides = frozenset({"reference"})

    def __init__(self, seed: int = 0, dropout: float = 0.2, compared: bool = False) -> None:
        super().__init__(seed, dropout=dropout, lora=True)
        self.documents = {0: (0,), 3: (0,)}
        self.compared = compared

    def groups(self, module: Any) -> Mapping[str, list[Any]]:
        rest = [p for p in module[1:].parameters() if p.requires_grad]
        return {"base": rest, "lora_a": [module[0].a], "lora_b": [module[0].b]}

    def batch(self, epoch: int, index: int) -> Batch:
        return replace(super().batch(epoch, index), group=2 * epoch + index // 3)

    def forward(self, module: torch.nn.Module, batch: Batch, needs: Any) -> Outputs:
        """Run a batch; where that is asked for, say what the base alone makes of it, as it is in eval mode."""
        outputs = super().forward(module, batch, needs)
        if self.compared or "reference" in needs:
            module.eval()
            with torch.no_grad():
                b = torch.zeros_like(self.pair(module).b)
                logits = functional_call(module, {"0.b": b}, (batch.tensors["x"],))
            module.train()
            outputs.extra = {"reference": Outputs(cross_entropy(logits, batch.tensors["y"]), logits)}
        return outputs
