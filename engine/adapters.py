"""The adapter of a run as pairs of factors, and what a reset does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from .errors import PluginError, VerificationError
from .hooks import Reset


@dataclass(frozen=True)
class Factor:
    """One target's pair: A `(rank, in)` reads, B `(out, rank)` writes; the base gains `scaling * B @ A`."""

    name: str
    a: Tensor
    b: Tensor
    scaling: float
    base: Tensor


class Adapter:
    """All factor pairs of a run, and what A was when the run began. `draw` fills an A as its initialisation did.

    `save` writes the adapter to a folder, with what a mapping says about it, in a form that others can load.
    """

    one = True  # a phase changes one adapter; of many that are reset on the way, no change of a phase can be told

    def __init__(
        self,
        factors: Sequence[Factor],
        draw: Callable[[Tensor, Generator], Tensor],
        save: Callable[[Path, dict[str, Any]], None] | None = None,
    ) -> None:
        self.factors = list(factors)
        self._draw = draw
        self.save = save
        self.start = {f.name: f.a.detach().clone() for f in factors}

    def tensors(self) -> list[Tensor]:
        """Return the module's own tensors that hold the factors."""
        return [tensor for f in self.factors for tensor in (f.a, f.b)]

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of every factor, named `<target>.a` and `<target>.b`."""
        pairs = ((f"{f.name}.{side}", getattr(f, side)) for f in self.factors for side in "ab")
        return {name: tensor.detach().clone() for name, tensor in pairs}

    @torch.no_grad()
    def reset(
        self, reset: Reset, generator: Generator, optimizer: Optimizer | None, slots: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Do what `reset` says and check that it is so; return it with the norms before and after, for the record.

        `slots` says which of several adapters a boundary concerns; this one is all there is. Raises `PluginError`
        where an A that a plugin returned has another shape or is not finite.
        """
        before = self.norms()
        for factor in self.factors:
            a, b = factor.a.clone(), factor.b.clone()
            if reset.merge:
                factor.base.add_((factor.b @ factor.a).to(factor.base.dtype), alpha=factor.scaling)
            if reset.a != "keep":
                new = redrawn(reset, factor.name, a.clone(), self.start[factor.name], generator, self._draw)
                factor.a.copy_(new)
            if reset.b == 0:
                factor.b.zero_()  # not a product, in which NaN would stay
            elif reset.b != 1:
                factor.b.mul_(reset.b)
            for side in sorted(reset.clear):
                state = optimizer.state.get(getattr(factor, side), {}) if optimizer is not None else {}
                for moment in state.values():  # zeroed, not dropped: fused SGD refuses buffers on some parameters only
                    if isinstance(moment, Tensor):
                        moment.zero_()
                confirm_cleared(f"{side.upper()} at {factor.name}", state)
            confirm(reset, factor.name, (a, b), (factor.a, factor.b))
        return {**describe(reset), "before": before, "after": self.norms()}

    def norms(self) -> Mapping[str, float]:
        """Return the Frobenius norm of all A and of all B."""
        if not self.factors:
            return {"a": 0.0, "b": 0.0}
        a, b = (torch.stack([getattr(f, side).detach().norm() for f in self.factors]).norm() for side in "ab")
        return {"a": float(a), "b": float(b)}


def redrawn(
    reset: Reset,
    name: str,
    now: Tensor,
    start: Tensor,
    generator: Generator,
    draw: Callable[[Tensor, Generator], Tensor],
) -> Tensor:
    """Return what becomes of the A of one adapter at target `name`: a new draw, or what the plugin's function makes."""
    if not callable(reset.a):
        return draw(now, generator)
    new = reset.a(now.clone(), start.clone(), generator)
    shape = tuple(new.shape) if isinstance(new, Tensor) else None
    if shape != tuple(now.shape) or not torch.isfinite(new.to(now.dtype)).all():
        given = f"of shape {shape}, or not finite" if shape is not None else f"that is a {type(new).__name__}"
        text = f"adapter_reset answered an A for {name} {given}"
        raise PluginError(f"{text}; {tuple(now.shape)} is expected", hook="adapter_reset")
    return new


def confirm(reset: Reset, name: str, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> None:
    """Raise `VerificationError` where what a reset keeps is not bit-equal, or what it zeroes is not zero.

    Only a tensor that two targets share, or that is no leaf of its own, could make it so.
    """
    wrong = []
    if reset.a == "keep" and not torch.equal(before[0], after[0]):
        wrong.append("A is to be kept and has moved")
    if reset.b == 1 and not torch.equal(before[1], after[1]):
        wrong.append("B is to be kept and has moved")
    if reset.b == 0 and after[1].any():
        wrong.append("B is to be zero and is not")
    if wrong:
        raise VerificationError(f"reset of the adapter at {name}: {'; '.join(wrong)}")


def confirm_cleared(what: str, state: Mapping[str, Any]) -> None:
    """Raise `VerificationError` where something is left of the moments and step counter of `what`.

    An optimizer that counts its steps outside of tensors would go on with its corrections where it stood.
    """
    left = [name for name, value in state.items() if (value.any() if isinstance(value, Tensor) else value)]
    if left:
        raise VerificationError(f"reset of the adapter: {left[0]} of {what} is to be cleared and is not")


def describe(reset: Reset) -> dict[str, Any]:
    """Return a reset as the event log holds it."""
    a = reset.a if isinstance(reset.a, str) else getattr(reset.a, "__name__", "function")
    return {"a": a, "b": reset.b, "clear": sorted(reset.clear), "merge": reset.merge}
