"""Terms on the branches of a divided feed-forward block. `outputs` (…, branches, features), `gates` (…, branches).

`keep` is bool and broadcasts to the leading axes (…), true for real tokens; None takes all for real. All three are
dimensionless, 0-d, at least float32. Source: the public "Surface Tension Transformers" code, `losses.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .rows import masked_mean, unit, zero

_EPS = 1e-8


def branch_repulsion(outputs: Tensor, keep: Tensor | None = None) -> Tensor:
    """Measure how alike the branches answer a token; lower is more different.

        mean over tokens and ordered pairs i != j of cos(o_i, o_j) = mean of (|sum ô|² - sum |ô|²) / (K (K - 1))

    with ô = o / max(|o|, 1e-8). In [-1/(K - 1), 1]; 0 with one branch.

    Breaks with top-k gates: branches that are not used for a token are pushed apart on it all the same.
    """
    if outputs.ndim < 3:
        raise ValueError(f"branch_repulsion needs outputs of shape (…, branches, features), not {tuple(outputs.shape)}")
    count = outputs.shape[-2]
    if count < 2:
        return zero(outputs)
    x = unit(_blank(outputs, keep, 2), _EPS)
    pairs = x.sum(-2).square().sum(-1) - x.square().sum((-2, -1))
    return masked_mean(pairs / (count * (count - 1)), keep)


def load_balance(gates: Tensor, keep: Tensor | None = None) -> Tensor:
    """Measure how unevenly branches are used: sum over k of (u_k - 1/K)², u_k the mean gate over all leading axes.

    In float32 at least. In [0, 1 - 1/K] for gates that sum to 1; 0 with one branch or without a real token.

    Breaks over several layers: `u` pools them, so that two layers which each use another branch only look balanced.
    """
    if gates.ndim < 2:
        raise ValueError(f"load_balance needs gates of shape (…, branches), not {tuple(gates.shape)}")
    count = gates.shape[-1]
    if count < 2:
        return zero(gates)
    gates = gates if gates.dtype == torch.float64 else gates.float()
    leading = tuple(range(gates.ndim - 1))
    if keep is None:
        return (gates.mean(leading) - 1 / count).square().sum()
    keep = keep.expand(gates.shape[:-1])
    tokens = keep.sum()
    usage = torch.where(keep[..., None], gates, 0).sum(leading) / tokens.clamp(min=1)
    return torch.where(tokens > 0, (usage - 1 / count).square().sum(), 0)


def inhibition(outputs: Tensor, gates: Tensor, keep: Tensor | None = None, *, by_coactivity: bool = False) -> Tensor:
    """Penalise branches that answer alike while both are open.

        sum over tokens and i != j of relu(cos(o_i, o_j)) g_i g_j, divided by the number of tokens

    In [0, 1 - 1/K]; 0 with one branch. With gates that forward zeros but pass a gradient (top-k, straight through) the
    value can be 0 while the gradient is not; divided by tokens, that gradient does not depend on the batch's size.

    `by_coactivity` divides as the source does, by max(sum of g_i g_j, 1). Breaks with top-1 gates: the sum is 0, the
    divisor 1, and the gradient grows with the number of tokens (29.5 at batch 32, where cross-entropy has 0.35).
    """
    if outputs.ndim < 3 or outputs.shape[:-1] != gates.shape:
        text = f"inhibition needs outputs (…, branches, features) and gates (…, branches), not {tuple(outputs.shape)}"
        raise ValueError(f"{text} and {tuple(gates.shape)}")
    if outputs.shape[-2] < 2:
        return zero(outputs)
    x = unit(_blank(outputs, keep, 2), _EPS)
    gates = _blank(gates if gates.dtype == torch.float64 else gates.float(), keep, 1)
    apart = 1 - torch.eye(outputs.shape[-2], device=outputs.device, dtype=gates.dtype)
    together = gates[..., :, None] * gates[..., None, :] * apart
    penalty = (torch.relu(x @ x.mT) * together).sum((-2, -1))
    if by_coactivity:
        return penalty.sum() / together.sum().clamp(min=1)
    return masked_mean(penalty, keep)


def _blank(x: Tensor, keep: Tensor | None, trailing: int) -> Tensor:
    """Put zeros where `keep` is false, so that nothing that stands there reaches value or gradient."""
    return x if keep is None else torch.where(keep[(...,) + (None,) * trailing], x, 0)
