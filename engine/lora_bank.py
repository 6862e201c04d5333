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

from .adapters import Adapter, Factor, confirm, confirm_cleared, describe, redrawn
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
        groups: dict[str, list[Site]] = {}
        for site in self.sites:
            group = groups.setdefault(f"{site.reads}x{site.writes}", [])
            self._place[site.name] = (f"{site.reads}x{site.writes}", len(group))
            group.append(site)
        for key, group in groups.items():
            self.lora_A[key] = nn.Parameter(torch.zeros(len(group), slots, rank, group[0].reads))
            self.lora_B[key] = nn.Parameter(torch.zeros(len(group), slots, group[0].writes, rank))
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
        for key, a in self.lora_A.items():
            b = self.lora_B[key]
            # one view a site, taken apart once: the gradient comes back as one stack
            pair = (a.unbind(0), b.unbind(0)) if rows is None else _picked(a, b, rows)
            names = [name for name, (group, _) in self._place.items() if group == key]
            self._pairs.update(zip(names, zip(*pair, strict=True), strict=True))
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
                new = y + (self.scaling * torch.bmm(read, b.mT)).to(y.dtype)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        return add

    def factors(self) -> list[Factor]:
        """Return every site's pair of stacks, A `(slots, rank, in)` and B `(slots, out, rank)`, seen without copy."""
        nothing = torch.empty(0)
        found = []
        for site in self.sites:
            key, at = self._place[site.name]
            a, b = self.lora_A[key].detach()[at], self.lora_B[key].detach()[at]
            found.append(Factor(site.name, a, b, self.scaling, nothing))
        return found

    def slot(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return copies of one slot's A `(rank, in)` and B `(out, rank)` by site."""
        if not 0 <= index < self.slots:
            raise IndexError(f"slot {index} of a bank of {self.slots}")
        return {f.name: (f.a[index].clone(), f.b[index].clone()) for f in self.factors()}


def _picked(a: Tensor, b: Tensor, rows: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return a.index_select(1, rows).unbind(0), b.index_select(1, rows).unbind(0)


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
        chosen = list(slots) or list(range(self.bank.slots))
        index = torch.tensor(chosen, device=self.factors[0].a.device)
        before = self.norms(chosen)
        key = generator.initial_seed()
        for factor in self.factors:
            start, site = self.start[factor.name], stream(0, factor.name)
            a, b = factor.a.index_select(0, index), factor.b.index_select(0, index)
            for slot, now in zip(chosen, a.clone(), strict=True) if reset.a != "keep" else ():
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
        chosen = list(slots) or list(range(self.bank.slots))
        parts = {side: [getattr(f, side)[chosen].norm() for f in self.factors] for side in "ab"}
        return {side: float(torch.stack(norms).norm()) / math.sqrt(len(chosen)) for side, norms in parts.items()}


def draw(a: Tensor, generator: Generator) -> Tensor:
    """Draw an A as PEFT does: uniform within ±1/sqrt(in)."""
    bound = 1 / math.sqrt(a.shape[-1])
    return torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator).to(a)


# --------------------------------------------------------------------------------------------------- optimizer
class BankOptimizer(Optimizer):
    """SGD, Adam or AdamW of torch's formulas, with a step counter, a rate and a decay of each slot's own.

    A slot moves where the bank's `active` says so and the guard's flag is down; else nothing of it changes, its
    moments and its counter included. A rate is a number, a 0-d tensor or a tensor `(slots,)`.
    """

    def __init__(self, bank: LoraBank, kind: str, groups: Sequence[Mapping[str, Any]], **settings: Any) -> None:
        super().__init__([dict(group) for group in groups], {"lr": 0.0, **settings})
        self.bank, self.kind = bank, kind
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None

    def direction(self) -> dict[str, list[Tensor]]:
        """Return what the update would subtract per unit rate, by group; nothing changes."""
        found: dict[str, list[Tensor]] = {}
        for group in self.param_groups:
            found[group["name"]] = []
            for p in group["params"]:
                if p.grad is not None:
                    state = {name: value.clone() for name, value in self._state(p, group).items()}
                    state["step"] += 1
                    step, decay = self._rule(p, p.grad, state, group)
                    found[group["name"]].append(step if decay == 0 else step + decay * p.detach())
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        moves = self._moves()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state(p, group)
                before = None if moves is None else (p.clone(), {name: value.clone() for name, value in state.items()})
                self._update(p, p.grad, state, group)
                if moves is not None and before is not None:
                    # chosen, not scaled by 0: what the guard flagged may be NaN
                    mask = moves.view(1, -1, 1, 1)
                    p.copy_(torch.where(mask, p, before[0]))
                    for name, value in state.items():
                        value.copy_(torch.where(moves if value.dim() == 1 else mask, value, before[1][name]))

    def _moves(self) -> Tensor | None:
        active = self.bank.active
        if self.found_inf is None:
            return active
        up = self.found_inf == 0
        return up.expand(self.bank.slots) if active is None else active & up

    def _state(self, p: Tensor, group: Mapping[str, Any]) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state["step"] = torch.zeros(self.bank.slots, device=p.device)
            names = ("momentum_buffer",) if self.kind == "sgd" else ("exp_avg", "exp_avg_sq")
            wanted = group["momentum"] if self.kind == "sgd" else group["betas"][0]
            for name in names:  # without momentum the first moment is the gradient itself: nothing to remember
                if wanted or name == "exp_avg_sq":
                    state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state

    def _update(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> None:
        state["step"] += 1
        step, decay = self._rule(p, grad, state, group)
        lr = group["lr"]
        rate = lr.view(1, -1, 1, 1) if isinstance(lr, Tensor) and lr.dim() else lr
        if decay:
            p.mul_(1 - rate * decay)
        if isinstance(rate, Tensor):
            p.sub_(step.mul_(rate))
        else:
            p.sub_(step, alpha=rate)

    def _rule(self, p: Tensor, grad: Tensor, state: dict[str, Tensor], group: Any) -> tuple[Tensor, float]:
        """Advance the moments; return the direction, a tensor of its own, and the decoupled decay."""
        wd = group["weight_decay"]
        if self.kind != "adamw" and wd:
            grad = grad.add(p, alpha=wd)
        if self.kind == "sgd":
            return self._sgd(grad, state, group), 0.0
        (b1, b2), count = group["betas"], state["step"]
        if "exp_avg" in state:
            state["exp_avg"].lerp_(grad, 1 - b1)
        first = state.get("exp_avg", grad)
        second = state["exp_avg_sq"].mul_(b2).addcmul_(grad, grad, value=1 - b2)
        root = (1 - b2**count).sqrt().view(1, -1, 1, 1).to(p.dtype)
        step = first / second.sqrt().div_(root).add_(group["eps"])
        if b1:
            step.div_((1 - b1**count).view(1, -1, 1, 1).to(p.dtype))
        return step, wd if self.kind == "adamw" else 0.0

    def _sgd(self, grad: Tensor, state: dict[str, Tensor], group: Any) -> Tensor:
        momentum = group["momentum"]
        if not momentum:
            return grad.clone()
        # as torch does it: the first gradient enters the buffer whole, whatever the dampening
        fresh = (state["step"] == 1).view(1, -1, 1, 1)
        share = torch.where(fresh, 1.0, 1 - group["dampening"]).to(grad.dtype)
        buffer = state["momentum_buffer"].mul_(momentum).add_(grad * share)
        return grad.add(buffer, alpha=momentum) if group["nesterov"] else buffer.clone()

    def forget(self, slots: Tensor, factors: frozenset[str]) -> None:
        """Clear moments and counters of some slots, of the factors named `a` or `b`."""
        side = {id(p): "a" for p in self.bank.lora_A.values()} | {id(p): "b" for p in self.bank.lora_B.values()}
        for p, state in self.state.items():
            if side[id(p)] in factors:
                dims = {name: 0 if value.dim() == 1 else 1 for name, value in state.items()}
                for name, value in state.items():
                    value.index_fill_(dims[name], slots, 0.0)
                rest = {name: value.index_select(dims[name], slots) for name, value in state.items()}
                confirm_cleared(f"{side[id(p)].upper()} in the bank", rest)
