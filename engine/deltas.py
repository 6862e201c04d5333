"""What a phase changed of the effective weights, as pairs of factors; no product of a pair is ever formed.

The effective delta of a phase is scaling·(B₁A₁ − B₀A₀) for each target, with 0 its start and 1 its end. Formulas are
ours; the quantity is that of the public "Surface Tension Transformers" code, whose dense float32 form they replace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .adapters import Factor


@dataclass(frozen=True)
class Pair:
    """A low-rank change of one target's weight, `scaling * b @ a`: a `(k, in)`, b `(out, k)`, float32 on the host."""

    a: Tensor
    b: Tensor
    scaling: float

    def dense(self) -> Tensor:
        """Return the change itself, (out, in), in float64; for checks, since its size is that of the weight."""
        return self.scaling * (self.b.double() @ self.a.double())


Delta = Mapping[str, Pair]


@dataclass(frozen=True)
class Cosine:
    """The cosines of two deltas by target, and their mean; None where a target, or every one, did not change."""

    mean: float | None
    targets: Mapping[str, float | None]


@torch.no_grad()
def increment(factors: Iterable[Factor], start: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Return what changed since `start` (from `Adapter.snapshot`) for each target.

    scaling·[B₁ − B₀, B₀]·[A₁; A₁ − A₀], which is scaling·[B₁, −B₀]·[A₁; A₀] without its cancellation: a small change
    of large factors keeps its digits, and none is exactly zero. Rank 2r; r where B₀ is zero, as after a cold reset.
    """
    return {f.name: _change(f, start[f"{f.name}.a"], start[f"{f.name}.b"]) for f in factors}


def _change(factor: Factor, a0: Tensor, b0: Tensor) -> Pair:
    a1, b1, a0, b0 = (t.detach().to("cpu", torch.float32) for t in (factor.a, factor.b, a0, b0))
    if not b0.any():
        return Pair(a1.clone(), b1.clone(), factor.scaling)
    return Pair(torch.cat([a1, a1 - a0]), torch.cat([b1 - b0, b0], dim=1), factor.scaling)


def inner(left: Pair, right: Pair) -> float:
    """Return the Frobenius inner product ⟨B₁A₁, B₂A₂⟩ = tr[(B₁ᵀB₂)(A₂A₁ᵀ)], scalings included, in float64.

    Costs k₁·k₂·(in + out) instead of in·out·(k₁ + k₂). Raises `ValueError` for pairs of different targets' shapes.
    """
    if left.a.shape[1] != right.a.shape[1] or left.b.shape[0] != right.b.shape[0]:
        shapes = ", ".join(str((pair.b.shape[0], pair.a.shape[1])) for pair in (left, right))
        raise ValueError(f"two deltas of one target must have one shape, given {shapes}")
    write = left.b.double().T @ right.b.double()
    read = left.a.double() @ right.a.double().T
    return left.scaling * right.scaling * float((write * read).sum())


def cosine(left: Delta, right: Delta) -> Cosine:
    """Return the cosine of two deltas: the mean over targets of ⟨Δ₁, Δ₂⟩ / (‖Δ₁‖·‖Δ₂‖).

    Targets that did not change, or that only one delta has, have None and no part in the mean; that of none is None.
    Breaks where a change is below 1e-7 of what its two parts would be alone: a pair's parts may then cancel.
    """
    found = {
        name: _angle(left[name], right[name]) if name in left and name in right else None
        for name in dict.fromkeys([*left, *right])
    }
    known = [value for value in found.values() if value is not None]
    return Cosine(math.fsum(known) / len(known) if known else None, found)


def _angle(left: Pair, right: Pair) -> float | None:
    squares = inner(left, left), inner(right, right)
    if min(squares) <= 0 or not all(map(math.isfinite, squares)):
        return None
    return max(-1.0, min(1.0, inner(left, right) / math.sqrt(squares[0]) / math.sqrt(squares[1])))


def packed(deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Return deltas by phase as a tree that a checkpoint can hold."""
    return {
        phase: {name: {"a": pair.a, "b": pair.b, "scaling": pair.scaling} for name, pair in delta.items()}
        for phase, delta in deltas.items()
    }


def unpacked(tree: Mapping[str, Any]) -> dict[str, dict[str, Pair]]:
    """Take back what `packed` gave."""
    return {phase: {name: Pair(**pair) for name, pair in delta.items()} for phase, delta in tree.items()}
