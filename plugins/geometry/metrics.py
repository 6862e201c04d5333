"""Metrics of geometry, without gradient. `rows` are real token vectors, (tokens, features), in the units of h.

Source: the public "Surface Tension Transformers" code, `metrics.py`, whose constants (1e-8, σ and not σ²) are kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_EPS = 1e-8


@torch.no_grad()
def spectrum(rows: Tensor) -> Tensor:
    """Return the singular values of the column-centred rows, largest first, min(tokens, features) of them.

    σ = sqrt(eigenvalues of the smaller of X Xᵀ and Xᵀ X), in float64 on the rows' device: squaring halves the digits,
    and effective rank weighs small σ as much as large ones. A device without float64 hands the rows to the host.
    Raises `ValueError` without a row.

    Breaks below 1.5e-8 of the largest σ, where rounding takes over: too small to change either metric in the sixth
    digit.
    """
    if rows.ndim != 2 or not len(rows):
        raise ValueError(f"the spectrum needs rows of shape (tokens, features), at least one, not {tuple(rows.shape)}")
    x = rows.cpu().double() if rows.device.type == "mps" else rows.double()
    x = x - x.mean(0)
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().flip(0)


@torch.no_grad()
def effective_rank(sigma: Tensor) -> Tensor:
    """Return exp(entropy of p), p = σ / max(Σσ, 1e-8), with ln max(p, 1e-8); from 1 to the number of σ. All zero: 1.

    Higher is more spread out. Breaks between probes of different size: the rank is at most tokens - 1.
    """
    p = sigma / sigma.sum().clamp(min=_EPS)
    return torch.exp(-(p * p.clamp(min=_EPS).log()).sum())


@torch.no_grad()
def isotropy(sigma: Tensor) -> Tensor:
    """Return σ_max / max(mean σ, 1e-8), from 1 up; 0 when all are zero. The source's name: lower is more isotropic."""
    return sigma.max() / sigma.mean().clamp(min=_EPS)


@torch.no_grad()
def active_fraction(rows: Tensor, threshold: float = 0.05) -> Tensor:
    """Return the share of numbers with |h| > threshold (strictly; in the units of h)."""
    return (rows.abs() > threshold).float().mean()


@torch.no_grad()
def branch_metrics(gates: Tensor, scores: Tensor | None, inhibition: Tensor | None) -> dict[str, Tensor]:
    """Return how branches are used, by name; `gates`, `scores`, `inhibition` are (…, branches).

    u = mean gate over leading axes. entropy: that of u / max(Σu, 1e-8) over ln K; active_fraction: share of |g| > 1e-6;
    usage_min, usage_max, usage_std (population) of u; score_entropy: mean entropy of softmax(scores) over ln K;
    inhibition_mean. Entropies are 0 with one branch.
    """
    gates = gates.float().flatten(0, -2)
    usage = gates.mean(0)
    found = {
        "entropy": _entropy(usage / usage.sum().clamp(min=_EPS)),
        "active_fraction": (gates.abs() > 1e-6).float().mean(),
        "usage_min": usage.min(),
        "usage_max": usage.max(),
        "usage_std": usage.std(correction=0),
    }
    if scores is not None:
        found["score_entropy"] = _entropy(scores.float().flatten(0, -2).softmax(-1)).mean()
    if inhibition is not None:
        found["inhibition_mean"] = inhibition.float().mean()
    return found


def _entropy(p: Tensor) -> Tensor:
    """Return the entropy over the last axis as a share of its largest value."""
    count = p.shape[-1]
    if count < 2:
        return torch.zeros(p.shape[:-1], device=p.device)
    return -(p * p.clamp(min=_EPS).log()).sum(-1) / math.log(count)
