"""A bank's slots are what they would be alone: in their forward pass, in their scale, in their resets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.errors import PluginError
from ctr.engine.hooks import Reset
from ctr.engine.lora_bank import BankAdapter, LoraBank, Site

from .small_bank import SLOTS, Net, by_hand, held, made, optimizer_of


# --------------------------------------------------------------------------------------------------- the forward pass
def test_every_row_reads_the_weights_of_its_own_slot() -> None:
    net, bank = made()
    x = torch.randn(SLOTS, 3, 5, dtype=torch.float64)
    with bank.speaking():
        torch.testing.assert_close(net(x), by_hand(net, bank, x, range(SLOTS)), rtol=1e-12, atol=1e-12)
    with bank.speaking(torch.tensor([3, 1])):
        torch.testing.assert_close(net(x[:2]), by_hand(net, bank, x[:2], [3, 1]), rtol=1e-12, atol=1e-12)


def test_absent_slots_and_other_rows_give_no_gradient() -> None:
    net, bank = made()
    with bank.speaking(torch.tensor([2, 0])):
        net(torch.randn(2, 3, 5, dtype=torch.float64)).square()[0].sum().backward()
    for p in bank.parameters():
        assert p.grad is not None
        moved = p.grad.abs().sum((0, 2, 3)) > 0
        assert moved.tolist() == [False, False, True, False]


def test_outside_the_adapters_are_silent_and_an_error_leaves_nothing_behind() -> None:
    net, bank = made()
    torch.manual_seed(0)
    plain = Net().double()
    x = torch.randn(SLOTS, 3, 5, dtype=torch.float64)
    with bank.speaking():
        assert not torch.equal(net(x), plain(x))
    with pytest.raises(ZeroDivisionError), bank.speaking():
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="Expected size"), bank.speaking():
        net(x[:2])  # two rows for four slots
    with pytest.raises((IndexError, RuntimeError)), bank.speaking(torch.tensor([0, SLOTS])):
        pytest.fail("there is no such slot")
    assert torch.equal(net(x), plain(x)) and not bank._pairs


@pytest.mark.parametrize("way", ["bfloat16 base", "autocast"])
def test_factors_stay_in_full_where_the_base_is_short(way: str) -> None:
    net, bank = made(torch.float32)
    x = torch.randn(SLOTS, 3, 5)
    with bank.speaking():
        whole = net(x)
        if way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                short = net(x)
        else:
            short = net.bfloat16()(x.bfloat16())
        short.float().square().sum().backward()
    assert short.dtype == torch.bfloat16 and whole.dtype == torch.float32
    assert (short - whole).norm() < 0.02 * whole.norm()
    with torch.no_grad():
        silent = net(x.to(net.first.weight.dtype))
    assert (silent.float() - whole).norm() > 0.2 * whole.norm(), "what the adapters say is far above the rounding"
    for p in bank.parameters():
        assert p.dtype == torch.float32 and p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any()


def test_a_short_output_is_rounded_once() -> None:
    """The sum is made in full precision, as PEFT makes it, and not of a part that is rounded already."""
    net, bank = made(torch.float32)
    net.bfloat16()
    x = torch.randn(SLOTS, 3, 5).bfloat16()
    with torch.no_grad(), bank.speaking():
        spoken = net.first(x)
    a, b = (torch.stack([bank.slot(i)["first"][side] for i in range(SLOTS)]) for side in (0, 1))
    added = torch.bmm(torch.bmm(x.float(), a.mT), b.mT) * bank.scaling
    assert torch.equal(spoken, (net.first(x).float() + added).bfloat16())


# ------------------------------------------------------------------------------------------------------- the scale
@pytest.mark.parametrize(
    ("rule", "optimizer", "scaling"),
    [
        ("alpha_over_rank", "sgd", 0.5),
        ("rank_stabilised", "adamw", 2.0),
        ("none", "adamw", 1.0),
        ("none", "sgd", 1.0),
        ("auto", "adam", 0.5),
        ("auto", "adamw", 0.5),
        ("auto", "sgd", 2.0),
    ],
)
def test_the_scale_of_alpha_8_at_rank_16(rule: str, optimizer: str, scaling: float) -> None:
    bank = LoraBank({"map": nn.Linear(20, 20)}, [Site("map", 20, 20)], 1, 16, 8.0, rule)
    bank.scale_for(optimizer)
    assert bank.scaling == scaling and bank.factors()[0].scaling == scaling


# ---------------------------------------------------------------------------------------------------------- resets
def trained() -> tuple[LoraBank, BankAdapter, BankOptimizer]:
    """Return a bank that has taken two steps, with its adapter and its optimizer."""
    _, bank = made()
    adapter = BankAdapter(bank)
    optimizer = optimizer_of(bank, "adamw", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, lr=0.05)
    for _ in range(2):
        for p in bank.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype)
        optimizer.step()
    return bank, adapter, optimizer


def key(number: int) -> Generator:
    return Generator().manual_seed(number)


def drawn(number: int, *resets: list[int]) -> dict[tuple[str, int], Tensor]:
    """Return every A by site and slot after resets of some slots, each with the same key."""
    bank, adapter, optimizer = trained()
    for slots in resets:
        adapter.reset(Reset(), key(number), optimizer, slots)
    return {(f.name, slot): f.a[slot].clone() for f in bank.factors() for slot in range(SLOTS)}


def test_a_draw_depends_on_the_boundary_the_site_and_the_slot_alone() -> None:
    whole, some, one_by_one = drawn(7, []), drawn(7, [2, 0]), drawn(7, [0], [2])
    before = drawn(7)
    for (name, slot), a in whole.items():
        expected = a if slot in (0, 2) else before[name, slot]
        assert torch.equal(some[name, slot], expected) and torch.equal(one_by_one[name, slot], expected)
    other = drawn(8, [])
    everything = [*whole.values(), *other.values()]
    same = [torch.equal(x, y) for i, x in enumerate(everything) for y in everything[:i] if x.shape == y.shape]
    assert len(same) > 100 and not any(same)


def test_a_draw_is_peft_s_own() -> None:
    bank = LoraBank({"map": nn.Linear(400, 50)}, [Site("map", 400, 50)], 2, 40, 1.0)
    BankAdapter(bank).redraw(key(1))
    for a, b in bank.slot(0).values():
        assert 0.99 / 20 < a.abs().max() <= 1 / 20 and not b.any()
        assert a.std().item() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.02) and abs(a.mean().item()) < 1e-3


@pytest.mark.parametrize("slots", [[1, 3], []])
@pytest.mark.parametrize("clear", [frozenset(), frozenset("a"), frozenset("b"), frozenset("ab")])
@pytest.mark.parametrize("b", [0.0, 1.0, 0.5])
def test_a_reset_concerns_the_slots_and_the_moments_it_names(slots: list[int], clear: frozenset[str], b: float) -> None:
    bank, adapter, optimizer = trained()
    named = slots or list(range(SLOTS))
    before = {(p, slot): held(optimizer, p, slot) for p in bank.parameters() for slot in range(SLOTS)}
    then = {p: p.detach().clone() for p in bank.parameters()}
    told = adapter.reset(Reset(a="keep", b=b, clear=clear), key(1), optimizer, slots)
    for side, stacks in (("a", bank.lora_A), ("b", bank.lora_B)):
        for p in stacks.values():
            for slot in range(SLOTS):
                now, was = held(optimizer, p, slot), before[p, slot]
                if slot not in named:
                    assert now == was
                    continue
                if side == "a" or b == 1.0:
                    assert now[0] == was[0], "kept to the bit"
                else:
                    assert torch.equal(p[:, slot].detach(), then[p][:, slot] * b)
                if side in clear:
                    assert not any(any(moment) for moment in now[1:]) and any(any(moment) for moment in was[1:])
                else:
                    assert now[1:] == was[1:]
    assert told["a"] == "keep" and told["b"] == b and told["clear"] == sorted(clear) and told["merge"] is False
    total = math.sqrt(sum(float(then[p][:, named].square().sum()) for p in bank.lora_B.values()) / len(named))
    assert told["before"]["b"] == pytest.approx(total) and told["after"]["b"] == pytest.approx(b * total)
    assert told["after"]["a"] == told["before"]["a"] > 0


def test_a_cleared_slot_steps_as_a_new_one() -> None:
    """Counters are cleared with the moments: else a first step would be scaled as a third."""
    bank, adapter, optimizer = trained()
    adapter.reset(Reset(a="keep", b=0.0), key(1), optimizer, [1])
    for p in bank.parameters():
        p.grad = torch.ones_like(p)
    then = {p: p.detach().clone() for p in bank.parameters()}
    optimizer.step()
    for p in bank.parameters():
        moved = (then[p] * (1 - 0.05 * 0.1) - p.detach())[:, 1]
        torch.testing.assert_close(moved, torch.full_like(moved, 0.05), rtol=1e-6, atol=0)
        assert optimizer.state[p]["step"].tolist() == [3, 1, 3, 3]


def test_zeroing_takes_away_what_is_not_finite() -> None:
    bank, adapter, optimizer = trained()
    for p in bank.lora_B.values():
        p.data[:, 2] = math.nan
    adapter.reset(Reset(a="keep"), key(1), optimizer, [2])
    assert all(not p[:, 2].any() and torch.isfinite(p).all() for p in bank.lora_B.values())


def test_a_plugin_s_function_makes_each_slot_s_a_from_its_own() -> None:
    bank, adapter, optimizer = trained()
    start = {f.name: f.a.clone() for f in BankAdapter(bank).factors}
    adapter.start = {name: a + 1 for name, a in start.items()}
    seen: list[tuple[int, ...]] = []

    def policy(now: Tensor, at_start: Tensor, generator: Generator) -> Tensor:
        seen.append(tuple(now.shape))
        torch.testing.assert_close(at_start, now + 1)
        noise = torch.rand(now.shape, generator=generator, dtype=now.dtype)
        now.zero_()  # it is a copy, so that this changes nothing
        return at_start + noise

    told = adapter.reset(Reset(a=policy, b=1.0), key(3), optimizer, [0, 3])
    assert told["a"] == "policy" and sorted(seen) == sorted([(2, 5)] * 6 + [(2, 7)] * 2)
    after = {f.name: f.a.clone() for f in bank.factors()}
    for name, a in after.items():
        noise = a - start[name] - 1
        assert torch.equal(a[1:3], start[name][1:3]) and 0 <= noise[[0, 3]].min() and noise[[0, 3]].max() < 1
    again, other, _ = trained()
    other.start = {name: a + 1 for name, a in start.items()}
    other.reset(Reset(a=policy, b=1.0), key(3), None, [3])
    assert all(torch.equal(f.a[3], after[f.name][3]) for f in again.factors()), "whichever others are reset beside it"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda now, start, generator: now[:1], r"an A for first of shape \(1, 5\), or not finite; \(2, 5\) is"),
        (lambda now, start, generator: now * math.nan, r"first of shape \(2, 5\), or not finite"),
        (lambda now, start, generator: now.double() * 1e300, r"first of shape \(2, 5\), or not finite"),
        (lambda now, start, generator: None, r"an A for first that is a NoneType; \(2, 5\) is expected"),
    ],
)
def test_an_a_that_cannot_be_is_refused(answer: Callable[..., Any], text: str) -> None:
    _, bank = made(torch.float32)
    with pytest.raises(PluginError, match=text):
        BankAdapter(bank).reset(Reset(a=answer), key(1), None, [1])


def test_merging_is_refused_for_there_are_many_to_merge() -> None:
    _, adapter, optimizer = trained()
    with pytest.raises(PluginError, match="belong to different slots; merge is for one"):
        adapter.reset(Reset(merge=True), key(1), optimizer, [0])


def test_after_a_reset_the_net_is_the_base_to_the_bit() -> None:
    net, bank = made(torch.float32)
    x = torch.randn(SLOTS, 3, 5)
    silent = net(x)
    BankAdapter(bank).reset(Reset(), key(1), None, [0, 2])
    with bank.speaking():
        spoken = net(x)
    assert [torch.equal(spoken[i], silent[i]) for i in range(SLOTS)] == [True, False, True, False]


def test_there_is_no_slot_beyond_the_last() -> None:
    _, bank = made()
    for index in (-1, SLOTS):
        with pytest.raises(IndexError, match=f"slot {index} of a bank of 4"):
            bank.slot(index)
