"""What stands beside the base in place of a run's own adapter, for as long as it is looked at.

Nothing is written into the base, and nothing of it is copied: the modules of the adapter are lent other parameters,
whose rank may be another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .adapters import Adapter, Factor
from .deltas import Pair
from .errors import PluginError


@dataclass(frozen=True)
class Composition:
    """One pair of factors by target; beside a target that has none the base speaks alone."""

    pairs: Mapping[str, Pair]


Lent = Mapping[str, tuple[Parameter, Parameter]]


class StandIn:
    """The places of a module in which its adapter's factors lie, and compositions put there for a while."""

    def __init__(self, module: Module, adapter: Adapter | None) -> None:
        self._factors = {factor.name: factor for factor in adapter.factors} if adapter and adapter.one else {}
        own = {id(tensor) for factor in self._factors.values() for tensor in (factor.a, factor.b)}
        self._places = [
            (part, name, id(p)) for part in module.modules() for name, p in part._parameters.items() if id(p) in own
        ]

    @contextmanager
    def lent(self, composition: Composition) -> Iterator[Lent]:
        """Let a composition speak in the forward passes within, and give its factors by target; all is put back.

        Raises `PluginError` where the run trains no adapter of one pair a target, or a pair does not fit its target.
        """
        if not self._factors:
            text = "evaluate was given a composition, but this run trains no adapter that it could stand in for"
            raise PluginError(text)
        unknown = sorted(set(composition.pairs) - set(self._factors))
        if unknown:
            raise PluginError(f"evaluate was given a composition for {unknown[0]}, which has no adapter in this run")
        new: dict[int, Parameter] = {}
        shown = {}
        for name, factor in self._factors.items():
            a, b = _fitted(factor, composition.pairs.get(name))
            shown[name] = new[id(factor.a)], new[id(factor.b)] = (
                Parameter(a, factor.a.requires_grad),
                Parameter(b, factor.b.requires_grad),
            )
        before = [(part, name, part._parameters[name]) for part, name, _ in self._places]
        try:
            for part, name, own in self._places:  # the entry alone: a Parameter's data keep the shape of old gradients
                part._parameters[name] = new[own]
            yield shown
        finally:
            for part, name, p in before:
                part._parameters[name] = p


def _fitted(factor: Factor, pair: Pair | None) -> tuple[Tensor, Tensor]:
    """Return a pair as the target's own parameters hold theirs; one of rank 0 where there is none."""
    (rows, columns), a = (factor.b.shape[0], factor.a.shape[1]), factor.a
    if pair is None:
        return a.new_empty((0, columns)), a.new_empty((rows, 0))
    if pair.a.shape[1] != columns or pair.b.shape[0] != rows or pair.a.shape[0] != pair.b.shape[1]:
        given = f"A {tuple(pair.a.shape)} and B {tuple(pair.b.shape)}"
        text = f"evaluate was given a composition for {factor.name} with {given}; (rank, {columns}) and ({rows}, rank)"
        raise PluginError(f"{text} are expected")
    # the target multiplies by its own scaling; equal ones are left alone, so that a run's own factors keep each bit
    b = pair.b if pair.scaling == factor.scaling else pair.b * (pair.scaling / factor.scaling)
    return pair.a.detach().to(a.device, a.dtype), b.detach().to(a.device, factor.b.dtype)


def pulls(lent: Lent, loss: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the gradient of a loss with respect to A and B of every target, as they are lent now."""
    grads = torch.autograd.grad(loss, [p for pair in lent.values() for p in pair])
    return {name: (grads[2 * i], grads[2 * i + 1]) for i, name in enumerate(lent)}
