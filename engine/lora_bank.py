"""A bank of low-rank adapters beside one base: one adapter per slot, all of them in two products a site.

A site is a module of the base whose output gains scaling * (x A^T) B^T, with an A and a B of each slot's own. Row i of
a batch belongs to slot i, or to slot `rows[i]` where some slots sit a pass out. The base's own forward runs; there is
no second copy of it. Factors of sites of equal shape lie in one tensor, A `(sites, slots, rank, in)` and B
`(sites, slots, out, rank)`, so that an optimizer sees few and large ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from .adapters import Adapter, Factor, confirm, describe, redrawn
from .bank_optimizer import BankOptimizer
from .errors import PluginError
from .hooks import Reset
from .seeding import mix, stream


@dataclass(frozen=True)
class Site:
    """A module of the base that gains an adapter: its name, what it reads and writes in features."""

    name: str
    reads: int
    writes: int


class LoraBank(nn.Module):
    """The factors of all slots at all sites, hooked into the modules they stand beside."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        sites: Sequence[Site],
        slots: int,
        rank: int,
        alpha: float,
        rule: str = "auto",
    ) -> None:
        super().__init__()
        self.sites, self.slots, self.rank, self.alpha, self.rule = list(sites), slots, rank, alpha, rule
        self.scale_for("adamw")
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self._place: dict[str, tuple[str, int]] = {}
        self._stacks: dict[str, list[Site]] = {}
        for site in self.sites:
            stack = self._stacks.setdefault(f"{site.reads}x{site.writes}", [])
            self._place[site.name] = (f"{site.reads}x{site.writes}", len(stack))
            stack.append(site)
        for key, stack in self._stacks.items():
            self.lora_A[key] = nn.Parameter(torch.zeros(len(stack), slots, rank, stack[0].reads))
            self.lora_B[key] = nn.Parameter(torch.zeros(len(stack), slots, stack[0].writes, rank))
        self.active: Tensor | None = None  # of a pass: which slots its update may move; None: all
        self._pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for site in self.sites:
            parts[site.name].register_forward_hook(self._beside(site.name), with_kwargs=True)

    def scale_for(self, optimizer: str) -> None:
        """Set the factor on B A: alpha/r, alpha/sqrt(r) or 1; `auto` is alpha/sqrt(r) for `sgd`, else alpha/r.

        After one step from B = 0 the output has moved by lr·s·r under Adam, whose steps have one size, and by lr·s²·r
        under SGD (Kalajdzievski 2023): so it does not grow with the rank.
        """
        rule = self.rule if self.rule != "auto" else "rank_stabilised" if optimizer == "sgd" else "alpha_over_rank"
        divisors = {"alpha_over_rank": self.rank, "rank_stabilised": math.sqrt(self.rank), "none": self.alpha}
        self.scaling = self.alpha / divisors[rule]

    @contextmanager
    def speaking(self, rows: Tensor | None = None) -> Iterator[None]:
        """Let the adapters speak in the forward passes within; outside the base is as if there were none.

        `rows` (int64) names the slot of each row of the batch; None: row i is slot i's.
        """
        pairs = {}
        for key, stack in self._stacks.items():
            a, b = self.lora_A[key], self.lora_B[key]
            if rows is not None:
                a, b = a.index_select(1, rows), b.index_select(1, rows)
            # one view a site, taken apart once: the gradient comes back as one stack
            for site, *pair in zip(stack, a.unbind(0), b.unbind(0), strict=True):
                pairs[site.name] = (pair[0], pair[1])
        self._pairs = pairs
        try:
            yield
        finally:
            self._pairs = {}

    def _beside(self, name: str) -> Any:
        def add(_: nn.Module, inputs: Any, named: Any, output: Any) -> Any:
            pair = self._pairs.get(name)
            if pair is None:
                return None
            a, b = pair
            x = inputs[0] if inputs else named["hidden_states"]
            y = output if isinstance(output, Tensor) else output[0]
            read = torch.bmm(x.to(a.dtype), a.mT)
            if y.dtype == read.dtype == b.dtype:
                new = torch.baddbmm(y, read, b.mT, alpha=self.scaling)
            else:
                new = (y + self.scaling * torch.bmm(read, b.mT)).to(y.dtype)  # rounded once, and last
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return add

    def factors(self) -> list[Factor]:
        """Return every site's pair of stacks, A `(slots, rank, in)` and B `(slots, out, rank)`, seen without copy."""
        nothing, found = torch.empty(0), []
        apart = {key: (self.lora_A[key].detach().unbind(0), self.lora_B[key].detach().unbind(0)) for key in self.lora_A}
        for site in self.sites:
            key, at = self._place[site.name]
            found.append(Factor(site.name, apart[key][0][at], apart[key][1][at], self.scaling, nothing))
        return found

    def slot(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return copies of one slot's A `(rank, in)` and B `(out, rank)` by site."""
        if not 0 <= index < self.slots:
            raise IndexError(f"slot {index} of a bank of {self.slots}")
        return {f.name: (f.a[index].clone(), f.b[index].clone()) for f in self.factors()}


# ------------------------------------------------------------------------------------------------------ resets
class BankAdapter(Adapter):
    """The bank as the kernel's adapter: a boundary concerns some slots, and each draw has a key of its own."""

    one = False

    def __init__(self, bank: LoraBank) -> None:
        self.bank = bank
        super().__init__(bank.factors(), draw)

    @property
    def factors(self) -> list[Factor]:
        """Every site's pair of stacks, as the bank scales them now."""
        return self.bank.factors()

    @factors.setter
    def factors(self, _: Sequence[Factor]) -> None:
        """Take nothing: the bank holds them."""

    def tensors(self) -> list[Tensor]:
        """Return the stacks, of which factors are views."""
        return list(self.bank.parameters())

    def snapshot(self) -> dict[str, Tensor]:
        """Return nothing: slots are reset all the time, so a phase leaves no difference that means anything."""
        return {}

    def redraw(self, generator: Generator) -> None:
        """Draw every A anew, as at the beginning of a run; the generator's first state is the key."""
        self.reset(Reset(), generator, None)
        self.start = {f.name: f.a.clone() for f in self.factors}

    @torch.no_grad()
    def reset(
        self, reset: Reset, generator: Generator, optimizer: Optimizer | None, slots: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Reset some slots, all where none is named; a draw depends on the boundary, the site and the slot alone."""
        if reset.merge:
            raise PluginError("a bank's adapters belong to different slots; merge is for one", hook="adapter_reset")
        chosen, factors = list(slots) or list(range(self.bank.slots)), self.factors
        index = torch.tensor(chosen, device=factors[0].a.device)
        before = self.norms(chosen)
        key = generator.initial_seed()
        for factor in factors:
            start, site = self.start[factor.name], stream(0, factor.name)
            a, b = factor.a.index_select(0, index), factor.b.index_select(0, index)
            for slot, now in zip(chosen, a, strict=True) if reset.a != "keep" else ():
                generator.manual_seed(mix(key, site, slot))
                factor.a[slot].copy_(redrawn(reset, factor.name, now, start[slot], generator, self._draw))
            if reset.b == 0:
                factor.b.index_fill_(0, index, 0.0)  # not a product, in which NaN would stay
            elif reset.b != 1:
                factor.b.index_copy_(0, index, b * reset.b)
            confirm(reset, factor.name, (a, b), (factor.a.index_select(0, index), factor.b.index_select(0, index)))
        if isinstance(optimizer, BankOptimizer):
            optimizer.forget(index, reset.clear)
        return {**describe(reset), "before": before, "after": self.norms(chosen)}

    def norms(self, slots: Sequence[int] = ()) -> Mapping[str, float]:
        """Return the root mean square over slots of the Frobenius norm of all A and of all B."""
        stacks = {"a": self.bank.lora_A.values(), "b": self.bank.lora_B.values()}
        chosen = list(slots) or list(range(self.bank.slots))
        parts = {side: [p.detach()[:, chosen].norm() for p in every] for side, every in stacks.items()}
        return {side: float(torch.stack(norms).norm()) / math.sqrt(len(chosen)) for side, norms in parts.items()}


def draw(a: Tensor, generator: Generator) -> Tensor:
    """Draw an A as PEFT does: uniform within ±1/sqrt(in)."""
    bound = 1 / math.sqrt(a.shape[-1])
    return torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator).to(a)
