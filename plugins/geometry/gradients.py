"""How much of the pull on the weights is whose."""

from __future__ import annotations

import math
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


def cosine(left: Grads, right: Grads) -> Tensor | None:
    """Return the cosine of two gradients, all parameters as one vector, in float64; None where one is zero.

    1: a small step against one lowers the other's loss as well; -1: it raises it. Breaks as a forecast over long
    stretches of training, since both gradients turn on the way.
    """
    sizes = [math.sqrt(_inner(side, side)) for side in (left, right)]
    return torch.tensor(_inner(left, right) / sizes[0] / sizes[1], dtype=torch.float64) if min(sizes) > 0 else None


def _inner(left: Grads, right: Grads) -> float:
    pairs = [(x, y) for x, y in zip(left, right, strict=True) if x is not None and y is not None]
    return math.fsum(float((_wide(x) * _wide(y)).sum()) for x, y in pairs)


def _wide(grad: Tensor) -> Tensor:
    """Return a gradient in float64, on the host where its device has none."""
    return grad.cpu().double() if grad.device.type == "mps" else grad.double()


def shares(norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each part's |weight · gradient| over the sum of all parts' norms; they sum to 1, or are 0 if all are.

    Breaks as a measure of effect where parts pull against each other: norms add, the gradients then do not.
    """
    total = torch.stack(list(norms.values())).sum()
    return {name: torch.where(total > 0, value / total, 0) for name, value in norms.items()}
