"""Laws of sums of effective deltas, over random shapes, ranks, patterns and dtypes, held against dense matrices."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctr.engine.deltas import (
    Delta,
    Pair,
    added,
    applied,
    factor_difference,
    factor_sum,
    scaled,
    subtracted,
    truncated,
)

torch.set_num_threads(1)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# what a sum may be off by, relative to the largest summand: folding a scaling rounds to float32, or to float64
CLOSE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-6}
LAWS = settings(max_examples=40, deadline=None)
WEIGHTS = st.floats(-3, 3).map(lambda x: round(x, 3))


@st.composite
def shapes(draw: Any) -> dict[str, tuple[int, int]]:
    side = st.integers(1, 9)
    return {f"layers.{i}.q": (draw(side), draw(side)) for i in range(draw(st.integers(1, 3)))}


def delta(seed: int, shape: dict[str, tuple[int, int]], dtype: torch.dtype, alpha: float = 4.0) -> dict[str, Pair]:
    """Draw a delta whose ranks and scalings differ by target, as by rank and alpha patterns, at some of its targets."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name, (out, into) in shape.items():
        rank = 1 + int(torch.randint(0, 5, (), generator=draw))
        root = bool(torch.randint(0, 2, (), generator=draw))  # rank-stabilised
        a = torch.randn(rank, into, generator=draw, dtype=torch.float64).to(dtype)
        b = torch.randn(out, rank, generator=draw, dtype=torch.float64).to(dtype)
        found[name] = Pair(a, b, alpha / (math.sqrt(rank) if root else rank))
    return found


def dense(one: Delta, shape: dict[str, tuple[int, int]]) -> dict[str, Tensor]:
    zero = {name: torch.zeros(size, dtype=torch.float64) for name, size in shape.items()}
    return zero | {name: pair.dense() for name, pair in one.items()}


def agree(left: Delta, right: Any, shape: Any, dtype: torch.dtype, scale: float = 30.0) -> None:
    found, wanted = dense(left, shape), right if isinstance(right, dict) and _is_dense(right) else dense(right, shape)
    for name in shape:
        assert torch.allclose(found[name], wanted[name], rtol=0, atol=scale * CLOSE[dtype]), name


def _is_dense(right: dict[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in right.values())


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES))
@LAWS
def test_identity_and_zero(seed: int, shape: Any, dtype: torch.dtype) -> None:
    x, y = delta(seed, shape, dtype), delta(seed + 1, shape, dtype)
    for same in (scaled(x, 1.0), added([x]), added([scaled(x, 1.0)]), added([x, scaled(y, 0.0)]), added([x, {}])):
        for name in shape:  # to the bit, rank and scaling included
            assert same[name].a is x[name].a and same[name].b is x[name].b and same[name].scaling == x[name].scaling
    zero = {name: torch.zeros(size, dtype=torch.float64) for name, size in shape.items()}
    agree(scaled(x, 0.0), zero, shape, dtype, 0.0)
    agree(subtracted(x, x), zero, shape, dtype)
    assert added([]) == {} and subtracted({}, {}) == {}


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES), WEIGHTS, WEIGHTS)
@LAWS
def test_sums_are_linear_and_have_no_order(seed: int, shape: Any, dtype: torch.dtype, a: float, b: float) -> None:
    x, y, z = (delta(seed + i, shape, dtype) for i in range(3))
    agree(added([scaled(x, a), scaled(x, b)]), scaled(x, a + b), shape, dtype, 300)
    whole = added([scaled(x, a), scaled(y, b)])
    left, right = dense(x, shape), dense(y, shape)
    agree(whole, {name: a * left[name] + b * right[name] for name in shape}, shape, dtype, 300)
    agree(scaled(added([x, y]), a), added([scaled(x, a), scaled(y, a)]), shape, dtype, 300)
    agree(added([x, y, z]), added([z, x, y]), shape, dtype, 300)
    agree(added([added([x, y]), z]), added([x, added([y, z])]), shape, dtype, 300)


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES), WEIGHTS)
@LAWS
def test_subtraction_undoes_addition(seed: int, shape: Any, dtype: torch.dtype, weight: float) -> None:
    x, y = delta(seed, shape, dtype), scaled(delta(seed + 1, shape, dtype), weight)
    agree(subtracted(added([x, y]), y), x, shape, dtype, 300)
    agree(subtracted(x, y), scaled(subtracted(y, x), -1.0), shape, dtype, 300)


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES))
@LAWS
def test_targets_have_weights_of_their_own_and_may_be_of_one_delta_alone(
    seed: int, shape: Any, dtype: torch.dtype
) -> None:
    x, y = delta(seed, shape, dtype), delta(seed + 1, shape, dtype)
    first = next(iter(shape))
    weights = {name: float(i) - 0.5 for i, name in enumerate(shape)}
    wide = dense(x, shape)
    agree(scaled(x, weights), {name: weights[name] * wide[name] for name in shape}, shape, dtype)
    apart = added([x, {first: y[first]}])
    assert apart.keys() == x.keys() and added([{first: y[first]}, x]).keys() == x.keys()
    agree(apart, {name: wide[name] + (y[first].dense() if name == first else 0) for name in shape}, shape, dtype)


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES), st.integers(1, 12))
@LAWS
def test_ranks_add_up_and_what_truncation_drops_are_the_smallest_singular_values(
    seed: int, shape: Any, dtype: torch.dtype, rank: int
) -> None:
    x, y = delta(seed, shape, dtype), delta(seed + 1, shape, dtype)
    whole = added([x, scaled(y, 0.3)])
    for name in shape:
        assert whole[name].rank == x[name].rank + y[name].rank
        assert int(torch.linalg.matrix_rank(whole[name].dense(), rtol=1e-5)) <= whole[name].rank
    cut, errors = truncated(whole, rank)
    for name, pair in cut.items():
        wanted = whole[name].dense()
        left, values, right = torch.linalg.svd(wanted, full_matrices=False)
        dropped = values[rank:]
        assert pair.rank <= min(rank, whole[name].rank)
        if rank >= whole[name].rank:
            assert pair is whole[name] and errors[name] == 0.0
            continue
        size = float(values.norm()) or 1.0
        assert errors[name] == pytest.approx(float(dropped.norm()) / size, abs=1e-7)
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert float((pair.dense() - wanted).norm()) == pytest.approx(float(dropped.norm()), abs=30 * CLOSE[dtype])
        if len(values) <= rank or values[rank - 1] - values[rank] > 1e-2:  # else there are several best ones
            assert torch.allclose(pair.dense(), best, atol=1000 * CLOSE[dtype])


def test_truncation_goes_by_target_and_never_below_one() -> None:
    x = delta(3, {"p": (7, 8), "q": (6, 9)}, torch.float32)
    x = {name: Pair(torch.randn(4, p.a.shape[1]), torch.randn(p.b.shape[0], 4), 2.0) for name, p in x.items()}
    cut, errors = truncated(x, {"p": 2})
    assert cut["p"].rank == 2 and errors["p"] > 0 and cut["q"] is x["q"] and errors["q"] == 0
    nothing, error = truncated({"p": Pair(torch.ones(3, 5), torch.zeros(4, 3), 1.0)}, 1)
    assert error == {"p": 0.0} and not nothing["p"].dense().any()
    with pytest.raises(ValueError, match="rank 0 is asked of p; at least 1 is expected"):
        truncated(x, 0)


@given(st.integers(0, 2**31), shapes(), st.sampled_from(DTYPES))
@LAWS
def test_weights_gain_the_effective_change(seed: int, shape: Any, dtype: torch.dtype) -> None:
    x = delta(seed, shape, dtype)
    draw = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(size, generator=draw).to(dtype) for name, size in shape.items()}
    before = {name: weight.clone() for name, weight in weights.items()}
    for accumulated in (None, torch.float64):
        found = applied(x, weights | {"norm": torch.ones(2)}, accumulated)
        assert torch.equal(found["norm"], torch.ones(2))
        for name, weight in weights.items():
            exact = weight.double() + x[name].dense()
            assert found[name].dtype == dtype and torch.equal(weight, before[name])
            if accumulated is not None:  # one rounding, at the very end
                assert torch.equal(found[name], exact.to(dtype)) or dtype == torch.float64
            room = {torch.bfloat16: 2**-8}.get(dtype, CLOSE[dtype])
            assert torch.allclose(found[name].double(), exact, rtol=room, atol=30 * CLOSE[dtype])


# ------------------------------------------------------------------------------------------------------- factor space
@given(st.integers(0, 2**31), st.floats(-2, 2), st.floats(-2, 2))
@LAWS
def test_sums_of_factors_hold_the_cross_terms_that_their_docstring_names(seed: int, a: float, b: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = {"q.a": (2, 5), "q.b": (4, 2)}
    start, one, two = ({n: torch.randn(s, generator=draw).double() for n, s in size.items()} for _ in range(3))
    found = factor_sum(start, [one, two], [(a, b), b])
    wanted_a = start["q.a"] + a * one["q.a"] + b * two["q.a"]
    wanted_b = start["q.b"] + b * one["q.b"] + b * two["q.b"]
    assert torch.allclose(found["q.a"], wanted_a) and torch.allclose(found["q.b"], wanted_b)
    zero = {n: torch.zeros_like(t) for n, t in start.items()}
    halves = factor_sum(zero, [one, two], [a, b])
    terms = a * a * one["q.b"] @ one["q.a"] + b * b * two["q.b"] @ two["q.a"]
    crossed = a * b * (one["q.b"] @ two["q.a"] + two["q.b"] @ one["q.a"])
    assert torch.allclose(halves["q.b"] @ halves["q.a"], terms + crossed)


def test_what_factors_became_is_added_back() -> None:
    draw = torch.Generator().manual_seed(0)
    size = {"q.a": (2, 5), "q.b": (4, 2)}
    start, end = ({n: torch.randn(s, generator=draw) for n, s in size.items()} for _ in range(2))
    change = factor_difference(end, start)
    again = factor_sum(start, [change], [1.0])
    assert all(torch.allclose(again[name], end[name], atol=1e-6) for name in size)
    assert all(torch.equal(factor_sum(start, [change], [0.0])[name], start[name]) for name in size)
    by_name = factor_sum(start, [change], [{"q.a": 0.0, "q.b": 1.0}])
    assert torch.equal(by_name["q.a"], start["q.a"]) and torch.allclose(by_name["q.b"], end["q.b"], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- bad input
def test_what_cannot_be_added_is_refused() -> None:
    x = delta(1, {"q": (3, 4)}, torch.float32)
    other = delta(1, {"q": (3, 5)}, torch.float32)
    with pytest.raises(ValueError, match=r"two deltas of q must have one shape, given \(3, 4\), \(3, 5\)"):
        added([x, other])
    for weight in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"the weight of q is {weight}; a finite number is expected"):
            scaled(x, weight)
    with pytest.raises(ValueError, match="no weight is given for q; one for each target is expected"):
        scaled(x, {"p": 1.0})
    with pytest.raises(ValueError, match="the delta changes q, of which no weight is given"):
        applied(x, {})
    with pytest.raises(ValueError, match=r"the delta of q is \(3, 4\), and the weight is \(4, 3\)"):
        applied(x, {"q": torch.zeros(4, 3)})
    factors = {"q.a": torch.zeros(1, 4), "q.b": torch.zeros(3, 1)}
    with pytest.raises(ValueError, match="1 deltas and 0 weights are given"):
        factor_sum(factors, [factors], [])
    with pytest.raises(ValueError, match="one set of names and shapes; q.b differs or is missing"):
        factor_sum(factors, [{"q.a": torch.zeros(1, 4)}], [1.0])
    with pytest.raises(ValueError, match="one set of names and shapes; q.a differs or is missing"):
        factor_difference(factors, factors | {"q.a": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="the weight of q.a is nan"):
        factor_sum(factors, [factors], [math.nan])
