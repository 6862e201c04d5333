"""Each slot of a bank moves as torch moves a tensor of its own, and rests to the bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.lora_bank import LoraBank
from ctr.engine.optim import direction

from .small_bank import SLOTS, bits, held, made, optimizer_of

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}),
    "sgd-decay": ("sgd", {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.2}),
    "momentum": ("sgd", {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.1}),
    "dampened": ("sgd", {"momentum": 0.9, "dampening": 0.2, "nesterov": False, "weight_decay": 0.0}),
    "nesterov": ("sgd", {"momentum": 0.9, "dampening": 0.0, "nesterov": True, "weight_decay": 0.1}),
    "adam": ("adam", {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}),
    "adam-decay": ("adam", {"betas": (0.8, 0.999), "eps": 1e-6, "weight_decay": 0.3}),
    "adamw": ("adamw", {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.5}),
    "signed": ("adamw", {"betas": (0.0, 0.999), "eps": 1e-10, "weight_decay": 1.0}),
    "no-memory": ("adam", {"betas": (0.0, 0.0), "eps": 1e-3, "weight_decay": 0.0}),
}
RATES: dict[str, Any] = {
    "number": 0.03,
    "tensor": torch.tensor(0.03, dtype=torch.float64),
    "by slot": torch.tensor([0.03, 0.0, 0.1, 0.5], dtype=torch.float64),
}
TORCH: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def slot_of(value: Any, slot: int) -> float:
    return float(value[slot]) if isinstance(value, Tensor) and value.dim() else float(value)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", SETTINGS)
def test_each_slot_moves_as_torch_moves_it_and_rests_to_the_bit(name: str, rate: str) -> None:
    kind, settings = SETTINGS[name]
    _, bank = made()
    optimizer = optimizer_of(bank, kind, **settings)
    for group in optimizer.param_groups:
        group["lr"] = RATES[rate]
    alone = {
        (p, slot): TORCH[kind]([p[:, slot].detach().clone()], lr=slot_of(RATES[rate], slot), **settings)
        for p in bank.parameters()
        for slot in range(SLOTS)
    }
    random = Generator().manual_seed(2)
    rests = [None, (1, 0, 1, 1), (0, 0, 1, 1), None, (1, 1, 0, 0), (0, 0, 0, 0), None]
    for mask in rests:
        bank.active = None if mask is None else torch.tensor(mask, dtype=torch.bool)
        moves = [mask is None or bool(mask[slot]) for slot in range(SLOTS)]
        for p in bank.parameters():
            p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype)
        before = {key: held(optimizer, *key) for key in alone}
        optimizer.step()
        for (p, slot), theirs in alone.items():
            (q,) = theirs.param_groups[0]["params"]
            if not moves[slot]:
                assert held(optimizer, p, slot) == before[p, slot]
                continue
            assert p.grad is not None
            q.grad = p.grad[:, slot]
            theirs.step()
            torch.testing.assert_close(p[:, slot].detach(), q, rtol=1e-11, atol=1e-13)
            for moment, value in optimizer.state[p].items():
                if moment != "step":
                    torch.testing.assert_close(value[:, slot], theirs.state[q][moment], rtol=1e-11, atol=1e-13)
    steps = [sum(mask is None or mask[slot] for mask in rests) for slot in range(SLOTS)]
    assert steps == [5, 4, 5, 5] and all(s["step"].tolist() == steps for s in optimizer.state.values())


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_decay_may_be_of_each_slot_s_own(kind: str) -> None:
    _, bank = made()
    decay = torch.tensor([0.0, 0.1, 1.0, 5.0], dtype=torch.float64)
    more: dict[str, Any] = {"momentum": 0.0, "dampening": 0.0, "nesterov": False} if kind == "sgd" else {}
    settings = {**more, **({} if kind == "sgd" else {"betas": (0.9, 0.99), "eps": 1e-8})}
    optimizer = optimizer_of(bank, kind, weight_decay=decay, lr=0.05, **settings)
    for p in bank.parameters():
        p.grad = torch.ones_like(p) / 7
    before = {p: p.detach().clone() for p in bank.parameters()}
    predicted = optimizer.direction()
    steps = zip(bank.parameters(), [*predicted["lora_a"], *predicted["lora_b"]], strict=True)
    optimizer.step()
    for p, step in steps:
        old = before[p]
        torch.testing.assert_close(old - p.detach(), 0.05 * step, rtol=1e-9, atol=1e-12)
        for slot in range(SLOTS):
            q = old[:, slot].clone()
            theirs = TORCH[kind]([q], lr=0.05, weight_decay=float(decay[slot]), **settings)
            q.grad = torch.ones_like(q) / 7
            theirs.step()
            torch.testing.assert_close(p[:, slot].detach(), q, rtol=1e-11, atol=1e-13)


def test_the_first_signed_step_is_the_rate_in_single_precision() -> None:
    """1 - 0.999 taken as a power would be wrong in its fifth digit, and so would the step."""
    _, bank = made(torch.float32)
    for p in bank.parameters():
        p.data.zero_()
        p.grad = torch.randn(p.shape)
    optimizer = optimizer_of(bank, "adamw", betas=(0.0, 0.999), eps=1e-10, weight_decay=0.0, lr=0.01)
    optimizer.step()
    for p in bank.parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.detach(), -0.01 * p.grad.sign(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("active", [None, torch.tensor([True, False, True, True])])
@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_not_finite_moves_nothing(name: str, active: Tensor | None) -> None:
    kind, settings = SETTINGS[name]
    _, bank = made()
    _, other = made()
    optimizer, never = optimizer_of(bank, kind, **settings, lr=0.1), optimizer_of(other, kind, **settings, lr=0.1)
    optimizer.found_inf, bank.active, other.active = torch.zeros(()), active, active

    def step(which: BankOptimizer, of: LoraBank, seed: int, spoiled: float = 1.0) -> None:
        random = Generator().manual_seed(seed)
        for p in of.parameters():
            p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype) * spoiled
        which.step()

    step(optimizer, bank, 1)
    step(never, other, 1)
    before = [held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)]
    for wrong in (math.nan, math.inf):
        optimizer.found_inf.fill_(1.0)
        step(optimizer, bank, 2, wrong)
        assert [held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)] == before
    optimizer.found_inf.zero_()
    step(optimizer, bank, 3)
    step(never, other, 3)
    assert bits(*bank.parameters()) == bits(*other.parameters()), "the flagged steps are as if they had not been"


def test_each_slot_s_gradient_is_clipped_by_its_own_norm() -> None:
    _, bank = made()
    optimizer = optimizer_of(bank, "sgd", **SETTINGS["sgd"][1])
    random = Generator().manual_seed(5)
    sizes = torch.tensor([0.0, 1e-3, 1.0, 50.0], dtype=torch.float64).view(1, -1, 1, 1)
    for p in bank.parameters():
        p.grad = torch.randn(p.shape, generator=random, dtype=p.dtype) * sizes
    before = [p.grad.clone() for p in bank.parameters() if p.grad is not None]
    norm = optimizer.clip(max_norm=2.0)
    assert float(norm) == pytest.approx(float(torch.cat([g.flatten() for g in before]).norm()), rel=1e-12)
    for slot in range(SLOTS):
        alone = [torch.zeros_like(g[:, slot]).requires_grad_() for g in before]
        for q, grad in zip(alone, before, strict=True):
            q.grad = grad[:, slot].clone()
        torch.nn.utils.clip_grad_norm_(alone, 2.0)
        for q, p in zip(alone, bank.parameters(), strict=True):
            assert p.grad is not None and q.grad is not None
            torch.testing.assert_close(p.grad[:, slot], q.grad, rtol=1e-12, atol=0)
    first = next(bank.parameters()).grad
    assert first is not None
    shares = (first[:, 1:] / before[0][:, 1:]).mean((0, 2, 3))
    assert shares[0] == 1 and shares[1] < 0.5 and shares[2] < 0.05


def test_a_slot_at_rest_is_not_touched_by_what_is_not_finite_in_it() -> None:
    _, bank = made()
    optimizer = optimizer_of(bank, "adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, lr=0.1)
    bank.active = torch.tensor([True, False, True, True])
    before = bits(*(p[:, 1] for p in bank.parameters()))
    for p in bank.parameters():
        p.grad = torch.randn(p.shape, dtype=p.dtype)
        p.grad[:, 1] = math.nan
    optimizer.step()
    assert bits(*(p[:, 1] for p in bank.parameters())) == before
    assert all(torch.isfinite(p).all() for p in bank.parameters())
    for state in optimizer.state.values():
        assert state["step"].tolist() == [1, 0, 1, 1] and torch.isfinite(state["exp_avg_sq"]).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_direction_is_what_the_next_step_subtracts_per_unit_rate(name: str) -> None:
    kind, settings = SETTINGS[name]
    _, bank = made()
    optimizer = optimizer_of(bank, kind, **settings, lr=0.01)
    masks = [None, torch.tensor([True, False, True, False]), None]
    for mask in masks:
        bank.active = mask
        for p in bank.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype)
        before = [held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)]
        predicted = direction(optimizer)
        assert [held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)] == before
        assert list(predicted) == ["lora_a", "lora_b"]
        then = {p: p.detach().clone() for p in bank.parameters()}
        optimizer.step()
        for group in optimizer.param_groups:
            for p, step in zip(group["params"], predicted[group["name"]], strict=True):
                assert not step.requires_grad
                torch.testing.assert_close(then[p] - p.detach(), 0.01 * step, rtol=1e-9, atol=1e-13)
                if mask is not None:
                    assert not step[:, ~mask].any() and step[:, mask].all()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moments_that_an_earlier_phase_did_not_need_begin_at_zero(kind: str) -> None:
    """A phase may keep the moments of one whose momentum, or whose first beta, was 0."""
    _, bank = made()
    without, with_it = (
        {"sgd": {"momentum": m, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
         "adamw": {"betas": (m, 0.99), "eps": 1e-8, "weight_decay": 0.0}}[kind] for m in (0.0, 0.9)
    )  # fmt: skip
    first, second = optimizer_of(bank, kind, **without, lr=0.1), optimizer_of(bank, kind, **with_it, lr=0.1)
    for p in bank.parameters():
        p.grad = torch.ones_like(p)
    first.step()
    second.state.update(first.state)
    second.step()
    moment = "momentum_buffer" if kind == "sgd" else "exp_avg"
    for state in second.state.values():
        assert state["step"].tolist() == [2.0] * SLOTS
        torch.testing.assert_close(state[moment], torch.full_like(state[moment], 1.0 if kind == "sgd" else 0.1))


@pytest.mark.parametrize("name", SETTINGS)
def test_that_all_move_may_be_said_or_left_out(name: str) -> None:
    """To the bit: a document's scores must not depend on whether another's ended."""
    kind, settings = SETTINGS[name]
    found = []
    for active in (None, torch.ones(SLOTS, dtype=torch.bool)):
        _, bank = made(torch.float32)
        optimizer, bank.active = optimizer_of(bank, kind, **settings, lr=0.1), active
        random = Generator().manual_seed(4)
        for _ in range(3):
            for p in bank.parameters():
                p.grad = torch.randn(p.shape, generator=random)
            optimizer.step()
        found.append([held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)])
    assert found[0] == found[1]
