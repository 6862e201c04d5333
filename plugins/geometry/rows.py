"""Which token vectors a term sees: padding left out, rows drawn, and never a wait for the device."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize


def checked(name: str, hidden: Tensor, mask: Tensor | None) -> None:
    """Refuse hidden states that are not (batch, seq, features), and a mask that is not (batch, seq)."""
    if hidden.ndim != 3:
        raise ValueError(f"{name} needs hidden states of shape (batch, seq, features), not {tuple(hidden.shape)}")
    if mask is not None and mask.shape != hidden.shape[:2]:
        text = f"{name} was given a mask of shape {tuple(mask.shape)} for hidden states of {tuple(hidden.shape)}"
        raise ValueError(f"{text}; it must be (batch, seq)")


def full(x: Tensor) -> Tensor:
    """Return `x` in at least float32: a cosine in bfloat16 has three digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def unit(x: Tensor, eps: float) -> Tensor:
    """Return x / max(|x|, eps) along the last axis; a zero vector stays zero, with no gradient through its norm."""
    return normalize(full(x), dim=-1, eps=eps)


def zero(x: Tensor) -> Tensor:
    """Return a 0-d zero without a graph, where `x` lies and as a term on `x` would be typed."""
    return torch.zeros((), device=x.device, dtype=full(x[:0]).dtype)


def real_first(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the flat positions of `mask` (any shape, bool), real ones first and in order, and how many are real."""
    flat = mask.reshape(-1).bool()
    return torch.argsort((~flat).to(torch.uint8), stable=True), flat.sum()


def pick(hidden: Tensor, mask: Tensor | None, sample: int, generator: Generator | None) -> tuple[Tensor, Tensor | None]:
    """Return at most `sample` token vectors (rows, features), and which of them are real (None: all).

    Without replacement, uniformly over the real tokens of the batch; without a generator, the first ones. Real rows
    come first, others are zero, whatever stood there (NaN included), and get no gradient. Shapes depend on shapes
    alone, so that nothing waits for the device. Draws are made by rank among the real tokens: on the CPU, where a
    longer draw begins as a shorter one does, padding may be longer and nothing changes.
    """
    flat = hidden.flatten(0, 1)
    total = len(flat)
    if mask is None:
        if total <= sample:
            return flat, None
        if generator is None:
            return flat[:sample], None
        return flat[torch.randperm(total, generator=generator, device=flat.device)[:sample]], None
    order, count = real_first(mask)
    if generator is not None and total > sample:
        keys = torch.rand(total, generator=generator, device=flat.device)
        keys = torch.where(torch.arange(total, device=flat.device) < count, keys, -1.0)
        order = order[keys.topk(sample).indices]
    order = order[:sample]
    real = torch.arange(len(order), device=flat.device) < count
    return torch.where(real[:, None], flat[order], 0), real


def masked_mean(x: Tensor, keep: Tensor | None) -> Tensor:
    """Return the mean of `x` where `keep` (broadcastable to it) is true; 0 where that is nowhere."""
    if keep is None:
        return x.mean()
    keep = keep.expand_as(x)
    return torch.where(keep, x, 0).sum() / keep.sum().clamp(min=1)
