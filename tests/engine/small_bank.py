"""A bank beside a net of four maps: what the tests of banks and of their optimizer train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.lora_bank import BankAdapter, LoraBank, Site

SLOTS, RANK = 4, 2


class Named(nn.Module):
    """A map that is called by name and answers with a tuple, as attention is."""

    def __init__(self, reads: int, writes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(writes, reads))

    def forward(self, *, hidden_states: Tensor) -> tuple[Tensor, str]:
        return hidden_states @ self.weight.T, "maps"


class Net(nn.Module):
    """Two maps of equal shape, one of another, and one that is called by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.wide, self.named = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 7), Named(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.named(hidden_states=self.wide(self.second(self.first(x))))[0]
        return y


def made(dtype: torch.dtype = torch.float64, **more: Any) -> tuple[Net, LoraBank]:
    """Return a net and a bank beside all of it, whose A and B are both random."""
    torch.manual_seed(0)
    net = Net()
    sites = [Site("first", 5, 5), Site("wide", 5, 7), Site("second", 5, 5), Site("named", 7, 7)]
    settings = {"slots": SLOTS, "rank": RANK, "alpha": 3.0, "rule": "alpha_over_rank", **more}
    bank = LoraBank(dict(net.named_modules()), sites, **settings)
    BankAdapter(bank).redraw(Generator().manual_seed(1))
    for p in bank.lora_B.values():
        p.data.copy_(torch.randn(p.shape) / 3)
    return net.to(dtype), bank.to(dtype)


def by_hand(net: Net, bank: LoraBank, x: Tensor, slots: Iterable[int]) -> Tensor:
    """Return what the net gives where each row has the weights W + scaling · B · A of its own slot."""
    rows = []
    for row, slot in zip(x, slots, strict=True):
        pairs = bank.slot(slot)
        for name in ("first", "second", "wide", "named"):
            part = getattr(net, name)
            a, b = pairs[name]
            row = row @ (part.weight + bank.scaling * b @ a).T + getattr(part, "bias", 0)
        rows.append(row)
    return torch.stack(rows)


def bits(*tensors: Tensor) -> list[bytes]:
    return [t.detach().contiguous().cpu().numpy().tobytes() for t in tensors]


def optimizer_of(bank: LoraBank, kind: str, **settings: Any) -> BankOptimizer:
    groups = [
        {"params": list(bank.lora_A.values()), "name": "lora_a"},
        {"params": list(bank.lora_B.values()), "name": "lora_b"},
    ]
    return BankOptimizer(bank, kind, groups, **settings)


def held(optimizer: BankOptimizer, p: Tensor, slot: int) -> list[bytes]:
    """Return everything of a slot to the bit: its part of a stack, of its moments, its counter."""
    state = optimizer.state.get(p, {})
    return bits(p[:, slot], *(v[slot] if v.dim() == 1 else v[:, slot] for _, v in sorted(state.items())))
