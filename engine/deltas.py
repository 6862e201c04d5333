"""Changes of effective weights as pairs of factors, and sums of them; no product of a pair is formed on the way.

The effective delta of a phase is scaling·(B₁A₁ − B₀A₀) for each target, with 0 its start and 1 its end. Formulas are
ours; the quantity is that of the public "Surface Tension Transformers" code, whose dense float32 form they replace.

Sums are of one of two spaces. In *effective space* (`scaled`, `added`, `subtracted`) it is the changes of the weights
that add up: exact and linear, and ranks add up with them until `truncated` cuts them. In *factor space*
(`factor_sum`), the form of that code, A and B are added apart, so the change that results has cross terms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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

    @property
    def rank(self) -> int:
        """How many rows A has; the rank of the change itself is at most this."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (out, in) of the weight that changes."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def dense(self) -> Tensor:
        """Return the change itself, (out, in), in float64; for checks, since its size is that of the weight."""
        return self.scaling * (self.b.double() @ self.a.double())


Delta = Mapping[str, Pair]
Weight = float | Mapping[str, float]
FactorWeight = float | tuple[float, float] | Mapping[str, float]


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
    _check_shapes([left, right])
    write = left.b.double().T @ right.b.double()
    read = left.a.double() @ right.a.double().T
    return left.scaling * right.scaling * float((write * read).sum())


def _check_shapes(pairs: Sequence[Pair], target: str = "one target") -> None:
    if len({pair.shape for pair in pairs}) > 1:
        shapes = ", ".join(str(pair.shape) for pair in pairs)
        raise ValueError(f"two deltas of {target} must have one shape, given {shapes}")


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


# ---------------------------------------------------------------------------------------------------- effective space
def scaled(delta: Delta, weight: Weight) -> dict[str, Pair]:
    """Return weight·Δ, by one number or by one for each target; only the scaling changes, so 1 changes no bit.

    Raises `ValueError` for a weight that is not finite, or a target to which a mapping gives none.
    """
    return {name: Pair(p.a, p.b, p.scaling * _weight(weight, name)) for name, p in delta.items()}


def _weight(weight: Weight, name: str) -> float:
    if isinstance(weight, Mapping) and name not in weight:
        raise ValueError(f"no weight is given for {name}; one for each target is expected")
    value = float(weight[name] if isinstance(weight, Mapping) else weight)
    if not math.isfinite(value):
        raise ValueError(f"the weight of {name} is {value}; a finite number is expected")
    return value


def added(deltas: Iterable[Delta]) -> dict[str, Pair]:
    """Return Δ₁ + Δ₂ + …, the sum of the effective weights, at every target that any of them has.

    [s₁B₁, s₂B₂, …]·[A₁; A₂; …]: exact but for the rounding of sᵢBᵢ where scalings differ, in float32 at least. Ranks
    add up; a pair whose scaling is 0 takes no part, and a pair that is alone is given back as it is. Raises
    `ValueError` for pairs of different shapes at one target.
    """
    found: dict[str, list[Pair]] = {}
    for delta in deltas:
        for name, pair in delta.items():
            found.setdefault(name, []).append(pair)
    return {name: _joined(name, pairs) for name, pairs in found.items()}


def _joined(name: str, pairs: list[Pair]) -> Pair:
    _check_shapes(pairs, name)
    spoken = [pair for pair in pairs if pair.scaling] or pairs[:1]
    if len(spoken) == 1:
        return spoken[0]
    dtype = torch.float32
    for pair in spoken:
        dtype = torch.promote_types(dtype, torch.promote_types(pair.a.dtype, pair.b.dtype))
    one = spoken[0].scaling if len({pair.scaling for pair in spoken}) == 1 else 1.0
    b = [pair.b.to(dtype) if pair.scaling == one else pair.b.to(dtype) * pair.scaling for pair in spoken]
    return Pair(torch.cat([pair.a.to(dtype) for pair in spoken]), torch.cat(b, dim=1), one)


def subtracted(left: Delta, right: Delta) -> dict[str, Pair]:
    """Return Δ₁ − Δ₂, at every target that either has; ranks add up, as in `added`."""
    return added([left, scaled(right, -1.0)])


@torch.no_grad()
def truncated(delta: Delta, rank: int | Mapping[str, int]) -> tuple[dict[str, Pair], dict[str, float]]:
    """Return the nearest delta of at most this rank at each target, and ‖Δ − Δᵣ‖ / ‖Δ‖ by target (Frobenius).

    With B = QₗRₗ and Aᵀ = QᵣRᵣ the singular values of Δ are those of scaling·RₗRᵣᵀ, (k, k), in float64: what is dropped
    are the smallest, so the error is the root of the sum of their squares over that of all (Eckart and Young). A pair
    of no higher rank is given back as it is, with an error of 0, as is one that changes nothing.
    """
    pairs, errors = {}, {}
    for name, pair in delta.items():
        asked = rank if isinstance(rank, int) else rank.get(name, pair.rank)
        if asked < 1:
            raise ValueError(f"rank {asked} is asked of {name}; at least 1 is expected")
        pairs[name], errors[name] = (pair, 0.0) if asked >= pair.rank else _cut(pair, asked)
    return pairs, errors


def _cut(pair: Pair, rank: int) -> tuple[Pair, float]:
    left, write = torch.linalg.qr(pair.b.double())
    right, read = torch.linalg.qr(pair.a.double().T)
    u, s, v = torch.linalg.svd(pair.scaling * (write @ read.T), full_matrices=False)
    whole = float(s.norm())
    root = s[:rank].sqrt()  # half of each singular value to either side: neither factor is much larger
    dtype = torch.promote_types(torch.float32, torch.promote_types(pair.a.dtype, pair.b.dtype))
    a, b = (root[:, None] * v[:rank]) @ right.T, left @ (u[:, :rank] * root)
    return Pair(a.to(dtype), b.to(dtype), 1.0), float(s[rank:].norm()) / whole if whole else 0.0


@torch.no_grad()
def applied(delta: Delta, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return weights by target, each (out, in), with the delta added; those without a change are passed on.

    Products and sums are in `dtype`, such as float64 for a merge, or else in the weight's own, float32 at least; the
    result is as the weight was. Raises `ValueError` for a target that the weights lack, or one of another shape.
    """
    unknown = [name for name in delta if name not in weights]
    if unknown:
        raise ValueError(f"the delta changes {unknown[0]}, of which no weight is given")
    found = dict(weights)
    for name, pair in delta.items():
        weight = weights[name]
        if tuple(weight.shape) != pair.shape:
            raise ValueError(f"the delta of {name} is {pair.shape}, and the weight is {tuple(weight.shape)}")
        wide = dtype or torch.promote_types(torch.float32, weight.dtype)
        change = pair.b.to(weight.device, wide) @ pair.a.to(weight.device, wide)
        found[name] = (weight.to(wide) + pair.scaling * change).to(weight.dtype)
    return found


# ------------------------------------------------------------------------------------------------------- factor space
def factor_difference(end: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what became of each factor, end − start, by the names of `Adapter.snapshot`."""
    _check_names(start, end)
    return {name: end[name] - start[name] for name in start}


def factor_sum(
    start: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], weights: Sequence[FactorWeight]
) -> dict[str, Tensor]:
    """Return start + Σ wᵢ·deltaᵢ of each factor, A and B apart, by the names of `Adapter.snapshot`.

    A weight is one number, one for A and one for B, or one for each name. The change that results is bilinear:
    (B₀ + Σ bᵢδBᵢ)(A₀ + Σ aⱼδAⱼ) holds bᵢaᵢ·δBᵢδAᵢ, quadratic where both weights are one, and the cross terms
    bᵢaⱼ·δBᵢδAⱼ of every two deltas, which neither of them alone means. Raises `ValueError` for other names or shapes
    than those of `start`, or a weight that is not finite.
    """
    if len(deltas) != len(weights):
        raise ValueError(f"{len(deltas)} deltas and {len(weights)} weights are given; one weight for each is expected")
    for delta in deltas:
        _check_names(start, delta)
    total = dict(start)
    for delta, weight in zip(deltas, weights, strict=True):
        for name, change in delta.items():
            total[name] = total[name] + _factor_weight(weight, name) * change
    return total


def _check_names(start: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differing = sorted(set(start) ^ set(other)) or [n for n in start if start[n].shape != other[n].shape]
    if differing:
        raise ValueError(f"factors must have one set of names and shapes; {differing[0]} differs or is missing")


def _factor_weight(weight: FactorWeight, name: str) -> float:
    return _weight(weight[name.endswith(".b")] if isinstance(weight, tuple) else weight, name)


def packed(deltas: Mapping[str, Delta]) -> dict[str, Any]:
    """Return deltas by phase as a tree that a checkpoint can hold."""
    return {
        phase: {name: {"a": pair.a, "b": pair.b, "scaling": pair.scaling} for name, pair in delta.items()}
        for phase, delta in deltas.items()
    }


def unpacked(tree: Mapping[str, Any]) -> dict[str, dict[str, Pair]]:
    """Take back what `packed` gave."""
    return {phase: {name: Pair(**pair) for name, pair in delta.items()} for phase, delta in tree.items()}
