"""What A becomes, how far it has moved and whether that helped: each held against a slow telling of its formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from ctr.engine.adapters import Adapter, Factor
from ctr.engine.lora_bank import BankAdapter, LoraBank, Site
from ctr.plugins.warm_a.guard import State, advance, gain
from ctr.plugins.warm_a.measures import angles, growth, size, turned
from ctr.plugins.warm_a.policies import norm, orth, pull

SHAPES = pytest.mark.parametrize("shape", [(3, 7), (4, 3, 7), (2, 4, 5, 5), (1, 6)], ids=str)


def drawn(shape: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))  # type: ignore[return-value]


def each(a: Tensor) -> Tensor:
    """Return (adapters, rank, in)."""
    return a.reshape(-1, *a.shape[-2:])


@SHAPES
def test_norm_keeps_directions_and_gives_back_lengths(shape: tuple[int, ...]) -> None:
    now, start = drawn(shape)
    found = norm(now, start)
    for one, before, first in zip(each(found), each(now), each(start), strict=True):
        for row, was, at_first in zip(one, before, first, strict=True):
            assert float(row.norm()) == pytest.approx(float(at_first.norm()), rel=1e-12)
            assert float(row @ was / row.norm() / was.norm()) == pytest.approx(1.0, abs=1e-12)


def test_norm_leaves_an_untouched_a_as_it_is_and_a_row_of_zeros_the_start_s() -> None:
    now, start = drawn((3, 7), dtype=torch.float32)
    assert torch.equal(norm(start, start), start)
    now[1] = 0
    found = norm(now, start)
    assert torch.equal(found[1], start[1]) and torch.isfinite(found).all()


@SHAPES
def test_pull_goes_back_by_a_share(shape: tuple[int, ...]) -> None:
    now, start = drawn(shape)
    assert torch.equal(pull(now, start, 0.0), start) and torch.allclose(pull(now, start, 1.0), now)
    assert torch.allclose(pull(now, start, 0.25), 0.75 * start + 0.25 * now)
    assert torch.equal(pull(start, start, 0.3), start)


def gram_schmidt(rows: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for row in rows:
        for one in found:
            row = row - (row @ one) * one
        found.append(row / row.norm())
    return found


@SHAPES
def test_orth_is_gram_and_schmidt_s_at_the_start_s_size(shape: tuple[int, ...]) -> None:
    """Whatever sign the factorisation chose."""
    now, start = drawn(shape)
    found = orth(now, start)
    assert found.shape == now.shape
    for one, before, first in zip(each(found), each(now), each(start), strict=True):
        length = first.square().mean().sqrt() * math.sqrt(shape[-1])
        wanted = torch.stack(gram_schmidt(before)) * length
        torch.testing.assert_close(one, wanted, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one @ one.T, length**2 * torch.eye(shape[-2], dtype=one.dtype), rtol=1e-9, atol=1e-9)
        assert float(one.square().mean().sqrt()) == pytest.approx(float(first.square().mean().sqrt()), rel=1e-12)


def test_orth_of_dependent_rows_is_orthogonal_and_the_same_each_time() -> None:
    now, start = drawn((3, 7), dtype=torch.float32)
    now[2] = 2 * now[0]
    found = orth(now, start)
    products = found @ found.T
    assert torch.allclose(products, products[0, 0] * torch.eye(3), atol=1e-5 * float(products[0, 0]))
    assert torch.equal(found, orth(now.clone(), start))
    with pytest.raises(ValueError, match="8 rows of 7 numbers cannot be orthogonal; take a rank of at most 7"):
        orth(*drawn((8, 7)))


# ---------------------------------------------------------------------------------------------------- measures
def test_growth_is_a_mean_of_ratios_over_sites_and_adapters() -> None:
    pairs = [drawn((4, 3, 7), 1), drawn((4, 2, 5), 2)]
    wanted = [np.sqrt((n**2).mean()) / np.sqrt((s**2).mean())
              for now, start in pairs for n, s in zip(now.numpy(), start.numpy(), strict=True)]  # fmt: skip
    assert len(wanted) == 8 and float(growth(pairs)) == pytest.approx(np.mean(wanted))
    assert float(growth([(3 * start, start) for _, start in pairs])) == pytest.approx(3.0)


def test_size_is_the_norm_that_a_reset_records() -> None:
    factors = [Factor(name, *drawn((3, 4), seed), 1.0, torch.empty(0)) for seed, name in enumerate("qv")]
    plain = Adapter(factors, lambda a, generator: a)
    assert float(size(f.b[None] for f in factors)) == pytest.approx(plain.norms()["b"])
    parts = {"a": torch.nn.Linear(5, 3), "b": torch.nn.Linear(3, 3)}
    bank = BankAdapter(LoraBank(parts, [Site("a", 5, 3), Site("b", 3, 3)], 4, 2, 1.0))
    bank.redraw(torch.Generator().manual_seed(1))
    for slots in ([], [0, 2]):
        chosen = slots or [0, 1, 2, 3]
        assert float(size(f.a[chosen] for f in bank.factors)) == pytest.approx(bank.norms(slots)["a"], rel=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_angles_are_those_between_subspaces(rank: int) -> None:
    now, before = drawn((5, rank, 9))
    now[0] = before[0] + 1e-3 * now[0]
    found = angles(now, before).numpy()
    for one, left, right in zip(found, now.numpy(), before.numpy(), strict=True):
        assert one == pytest.approx(subspace_angles(left.T, right.T)[::-1], abs=1e-7)


def test_angles_of_a_turned_plane_and_of_what_did_not_turn() -> None:
    before = torch.eye(4)[None, :2]
    turn = 0.3
    now = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, math.cos(turn), math.sin(turn), 0.0]]])
    assert angles(now, before)[0].tolist() == pytest.approx([0.0, turn], abs=1e-7)
    mixed = torch.tensor([[[1.0, 2.0], [-3.0, 0.5]]]) @ before  # other rows of the same plane
    assert float(angles(mixed, before).max()) < 1e-6
    assert float(angles(*drawn((2, 4, 4))).max()) < 1e-6, "all of the space is one space"
    aside = torch.tensor([[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]])
    assert angles(aside, before)[0].tolist() == pytest.approx([math.pi / 2] * 2)


def test_turns_are_means_over_sites_of_any_shape() -> None:
    shapes = {"q": (2, 3, 9), "k": (2, 3, 9), "head": (2, 3, 5)}
    pairs = {name: drawn(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    found = turned({n: p[0] for n, p in pairs.items()}, {n: p[1] for n, p in pairs.items()})
    one = [angles(*pair).numpy() for pair in pairs.values()]
    wanted = {"min": [a.min(1) for a in one], "mean": [a.mean(1) for a in one], "max": [a.max(1) for a in one]}
    assert {n: float(v) for n, v in found.items()} == pytest.approx({n: np.mean(v) for n, v in wanted.items()})


# ---------------------------------------------------------------------------------------------------- guard
def judged(gains: list[tuple[float, int]], groups: int, margin: float) -> list[bool]:
    state, told = State(), []
    for nats, tokens in gains:
        state = advance(state, nats, tokens, groups, margin)
        told.append(state.alarm)
    return told


@pytest.mark.parametrize(
    ("gains", "groups", "margin", "alarms"),
    [
        ([(1, 10), (-2, 10), (-3, 10), (9, 10)], 1, 0.0, [0, 1, 1, 0]),
        ([(1, 10), (-2, 10), (-3, 10), (-3, 10)], 2, 0.0, [0, 1, 0, 1]),  # after an alarm the window begins anew
        ([(-3, 10), (-3, 10), (-3, 10)], 3, 0.0, [0, 0, 1]),  # never of fewer than asked for
        ([(-3, 10), (2, 10), (0.5, 10), (0.5, 10)], 3, 0.0, [0, 0, 1, 0]),
        ([(-1, 10), (-1, 10)], 1, 0.1, [0, 0]),  # exactly at the margin is borne
        ([(-1.01, 10), (-1, 10)], 1, 0.1, [1, 0]),
        ([(-5, 10), (5, 1000)], 2, 0.0, [0, 0]),
        ([(0, 0), (0, 0)], 1, 0.0, [0, 0]),  # nothing scored is no harm
    ],
)
def test_the_guard_judges_whole_windows(gains: Any, groups: int, margin: float, alarms: list[int]) -> None:
    assert judged(gains, groups, margin) == [bool(alarm) for alarm in alarms]


def test_gains_are_a_token_and_not_a_group() -> None:
    assert gain(((-5.0, 10), (5.0, 90))) == 0.0 and gain(((3.0, 10), (3.0, 20))) == pytest.approx(0.2) and gain(()) == 0
