"""How far an adapter has come: the size of A against its start, the turn of its row space, the size of B.

Factors have a leading index for adapters: A (adapters, rank, in), B (adapters, out, rank).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def growth(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the mean over sites and adapters of rms(A) / rms(A at the start), 0-d; pairs are (A, start) of a site.

    Breaks where a start is all zeros, of which nothing is a multiple.
    """
    return torch.cat([_rms(now) / _rms(start) for now, start in pairs]).mean()


def size(factors: Iterable[Tensor]) -> Tensor:
    """Return the root mean square over adapters of the Frobenius norm over all sites, 0-d."""
    squares = torch.stack([factor.square().sum((-2, -1)) for factor in factors]).sum(0)
    return squares.mean().sqrt()


@torch.no_grad()
def angles(now: Tensor, before: Tensor) -> Tensor:
    """Return the principal angles between the row spaces of A now and before, in radians, rising: (adapters, rank).

    cos θ are the singular values of Q₁ᵀQ₂, Q orthonormal bases of the row spaces, from Aᵀ = QR (Björck and Golub 1973).
    In float64, on the host where the device has none: angles below 3e-8 are noise, for a cosine near 1 holds no more.
    Two random spaces of small rank in many dimensions are nearly orthogonal; for rank = in every angle is 0. Dependent
    rows leave directions open, whose angles then mean nothing.
    """
    one, other = (torch.linalg.qr(_double(a).mT)[0] for a in (now, before))
    cosines: Tensor = torch.linalg.svdvals(one.mT @ other)
    return cosines.clamp(max=1.0).acos()


def turned(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the smallest, mean and largest principal angle, each the mean over sites and adapters, 0-d, in radians.

    Sites of one shape are taken together.
    """
    shapes: dict[tuple[int, ...], list[str]] = {}
    for name, a in now.items():
        shapes.setdefault(tuple(a.shape), []).append(name)
    found = [
        angles(torch.cat([now[name] for name in names]), torch.cat([before[name] for name in names]))
        for names in shapes.values()
    ]
    each = {"min": [a.amin(-1) for a in found], "mean": [a.mean(-1) for a in found], "max": [a.amax(-1) for a in found]}
    return {name: torch.cat(values).mean() for name, values in each.items()}


def _rms(a: Tensor) -> Tensor:
    return a.square().mean((-2, -1)).sqrt()


def _double(a: Tensor) -> Tensor:
    return a.cpu().double() if a.device.type == "mps" else a.double()
