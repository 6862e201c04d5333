"""Loss, forward pass and scores of the task `sequence`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from ctr.engine.probe import eval_mode
from ctr.engine.task import Batch, Needs, Outputs


def forward(module: Module, batch: Batch, needs: Needs) -> Outputs:
    """Return the mean cross-entropy over all targets in float32, logits (batch, seq, vocab), and what `needs` asks."""
    seen = module(batch.tensors["inputs"], needs)
    loss = cross_entropy(seen.logits.flatten(0, 1).float(), batch.tensors["targets"].flatten())
    extra = {} if seen.branches is None else {"branches": seen.branches}
    return Outputs(loss, seen.logits, hidden=seen.hidden, attention=seen.attention, extra=extra)


def score(module: Module, inputs: Tensor, targets: Tensor, size: int) -> tuple[NDArray[np.float64], ...]:
    """Return loss and correctness (0 or 1) per target, (items, seq) each, by one transfer at the end."""
    with eval_mode(module), torch.no_grad():
        parts = zip(torch.split(inputs, size), torch.split(targets, size), strict=True)
        both = torch.cat([_score(module, *part) for part in parts], dim=1).cpu().numpy().astype(np.float64)
    return both[0], both[1]


def _score(module: Module, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = module(inputs).logits.float()
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return torch.stack([losses, (logits.argmax(-1) == targets).float()])
