"""How much of the pull on the weights is whose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Grads = list[Tensor | None]


def gradient(value: Tensor, parameters: Sequence[Tensor]) -> Grads:
    """Return d value / d parameter for each, None where `value` does not depend on it; the graph is kept."""
    if not value.requires_grad:
        return [None] * len(parameters)
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True))


def added(total: Grads, more: Grads, share: float) -> Grads:
    """Return total + share · more, where None is zero."""
    return [t if m is None else share * m if t is None else t + share * m for t, m in zip(total, more, strict=True)]


def norm(grads: Grads) -> Tensor | None:
    """Return the L2 norm over all parameters; None where nothing depends on any."""
    found = [torch.linalg.vector_norm(grad.float()) for grad in grads if grad is not None]
    return torch.linalg.vector_norm(torch.stack(found)) if found else None


def shares(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each part's |weight · gradient| over the sum of all parts' norms; they sum to 1, or are 0 if all are.

    Breaks as a measure of effect where parts pull against each other: norms add, the gradients then do not.
    """
    total = torch.stack(list(norms.values())).sum()
    return {name: torch.where(total > 0, value / total, 0) for name, value in norms.items()}
