"""The adapter of a run as pairs of factors, and what a reset does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.optim import Optimizer

from .errors import PluginError
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

    def snapshot(self) -> dict[str, Tensor]:
        """Return a copy of every factor, named `<target>.a` and `<target>.b`."""
        pairs = ((f"{f.name}.{side}", getattr(f, side)) for f in self.factors for side in "ab")
        return {name: tensor.detach().clone() for name, tensor in pairs}

    @torch.no_grad()
    def reset(self, reset: Reset, generator: Generator, optimizer: Optimizer | None) -> dict[str, Any]:
        """Do what `reset` says and check it; return the norms before and after, for the record.

        Raises `PluginError` where an A that a plugin returned has another shape or is not finite.
        """
        before = self.norms()
        for factor in self.factors:
            if reset.merge:
                factor.base.add_((factor.b @ factor.a).to(factor.base.dtype), alpha=factor.scaling)
            if reset.a == "redraw":
                factor.a.copy_(self._draw(factor.a, generator))
            elif callable(reset.a):
                new = reset.a(factor.a.clone(), self.start[factor.name].clone(), generator)
                if new.shape != factor.a.shape or not torch.isfinite(new).all():
                    text = f"adapter_reset answered an A for {factor.name} of shape {tuple(new.shape)}, or not finite"
                    raise PluginError(f"{text}; {tuple(factor.a.shape)} is expected", hook="adapter_reset")
                factor.a.copy_(new)
            if reset.b == 0:
                factor.b.zero_()
            elif reset.b != 1:
                factor.b.mul_(reset.b)
            for side in sorted(reset.clear):
                state = optimizer.state.get(getattr(factor, side), {}) if optimizer is not None else {}
                for moment in state.values():  # zeroed, not dropped: fused SGD refuses buffers on some parameters only
                    if isinstance(moment, Tensor):
                        moment.zero_()
        a = reset.a if isinstance(reset.a, str) else getattr(reset.a, "__name__", "function")
        cleared = sorted(reset.clear)
        return {"a": a, "b": reset.b, "clear": cleared, "merge": reset.merge, "before": before, "after": self.norms()}

    def norms(self) -> Mapping[str, float]:
        """Return the Frobenius norm of all A and of all B."""
        if not self.factors:
            return {"a": 0.0, "b": 0.0}
        a, b = (torch.stack([getattr(f, side).detach().norm() for f in self.factors]).norm() for side in "ab")
        return {"a": float(a), "b": float(b)}
