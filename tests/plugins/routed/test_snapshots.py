"""What routes mean, held against dense weights; and slopes against difference quotients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctr.plugins.routed.route import Route, RouteError, Term, parse
from ctr.plugins.routed.snapshots import Snapshots

TARGETS = {"h.0.attn": (5, 7), "h.1.attn": (5, 7), "h.2.mlp": (9, 5)}
WEIGHT = st.floats(-2, 2).map(lambda x: round(x, 3))


class Factor:
    def __init__(self, name: str, scaling: float) -> None:
        self.name, self.scaling = name, scaling


def made(phases: str = "ABC", seed: int = 0, rank: int = 2, scaling: float = 2.0, fresh: str = "") -> Snapshots:
    """Return states as three phases leave them: each goes on from the one before, but those that begin fresh."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(zero: bool = False) -> dict[str, Tensor]:
        found = {}
        for name, (out, inside) in TARGETS.items():
            found[f"{name}.a"] = torch.randn(rank, inside, generator=generator, dtype=torch.float64)
            b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
            found[f"{name}.b"] = torch.zeros_like(b) if zero else b
        return found

    snapshots, before = {}, drawn(zero=True)
    for phase in phases:
        start = drawn(zero=True) if phase in fresh else before
        before = drawn()
        snapshots[phase] = {"start": start, "end": before}
    return Snapshots.of(snapshots, [Factor(name, scaling) for name in TARGETS])


def dense(states: Snapshots, index: int, target: str) -> Tensor:
    a, b = states.states[index][target]
    return states.scalings[target] * b @ a


def spoken(states: Snapshots, route: Route, space: Any) -> dict[str, Tensor]:
    pairs = states.compose(route, space).pairs
    nothing = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in TARGETS.items()}
    return {name: pairs[name].dense() if name in pairs else nothing[name] for name in TARGETS}


@settings(max_examples=60, deadline=None)
@given(st.tuples(WEIGHT, WEIGHT, WEIGHT), st.integers(0, 9), st.integers(1, 4))
def test_effective_space_is_the_weighted_sum_of_what_phases_changed(
    weights: tuple[float, ...], seed: int, rank: int
) -> None:
    states = made(seed=seed, rank=rank)
    route = Route(tuple(Term(phase, weight) for phase, weight in zip("ABC", weights, strict=True)))
    for target, found in spoken(states, route, "effective").items():
        ends = [dense(states, i, target) for i in range(4)]
        wanted = sum(w * (after - before) for w, before, after in zip(weights, ends, ends[1:], strict=False))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
        pair = states.compose(route, "effective").pairs.get(target)
        assert pair is None or pair.a.shape[0] <= 3 * rank


@settings(max_examples=60, deadline=None)
@given(st.tuples(WEIGHT, WEIGHT, WEIGHT), st.integers(0, 9))
def test_factor_space_is_the_source_s_sum_of_a_and_of_b(weights: tuple[float, ...], seed: int) -> None:
    states = made(seed=seed)
    route = Route(tuple(Term(phase, weight) for phase, weight in zip("ABC", weights, strict=True)))
    for target, pair in states.compose(route, "factor").pairs.items():
        for side, found in enumerate((pair.a, pair.b)):
            s = [states.states[i][target][side] for i in range(4)]
            wanted = s[0] + sum(w * (after - before) for w, before, after in zip(weights, s, s[1:], strict=False))
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("space", ["factor", "effective"])
def test_the_run_s_own_states_come_back_to_the_bit(space: Any) -> None:
    states = made()
    for count, phase in enumerate("ABC", 1):
        route = states.sequential_at(phase)
        assert str(route) == "+".join("ABC"[:count])
        for target, pair in states.compose(route, space).pairs.items():
            a, b = states.states[count][target]
            assert pair.a is a and pair.b is b, "the state's own factors, not a sum that rounds"


def test_laws_of_effective_space() -> None:
    states = made(seed=3)
    zero = spoken(states, Route(()), "effective")
    assert all(not weight.any() for weight in zero.values())
    one, two = (spoken(states, parse(text), "effective") for text in ("0.3A+1.7C", "0.5B+-0.2C"))
    both, permuted = (spoken(states, parse(text), "effective") for text in ("0.3A+0.5B+1.5C", "1.5C+0.3A+0.5B"))
    for name in TARGETS:
        torch.testing.assert_close(one[name] + two[name], both[name])
        assert torch.equal(both[name], permuted[name])
    double = spoken(states, parse("0.6A+1B+3C"), "effective")
    assert all(torch.allclose(2 * both[name], double[name]) for name in TARGETS)


def test_factor_space_has_cross_terms_and_effective_space_has_none() -> None:
    states = made(seed=5)
    halves = [spoken(states, parse(text), "factor")["h.0.attn"] for text in ("A", "A+B", "A+0.5B")]
    assert not torch.allclose((halves[0] + halves[1]) / 2, halves[2], rtol=0.01)
    halves = [spoken(states, parse(text), "effective")["h.0.attn"] for text in ("A", "A+B", "A+0.5B")]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, halves[2])


def test_groups_weigh_their_places_alone() -> None:
    states = made()
    whole, part = (spoken(states, parse(text), "effective") for text in ("A+B", "A+0B[block.1=1]"))
    a = spoken(states, parse("A"), "effective")
    assert torch.equal(part["h.1.attn"], whole["h.1.attn"])
    assert torch.equal(part["h.0.attn"], a["h.0.attn"]) and not torch.equal(whole["h.0.attn"], a["h.0.attn"])
    one_side = states.compose(parse("A+B[a=1,b=0]"), "factor").pairs["h.0.attn"]
    assert torch.equal(one_side.a, states.states[2]["h.0.attn"][0])
    assert torch.equal(one_side.b, states.states[1]["h.0.attn"][1])


def test_fresh_adapters_add_up_in_effective_space_alone() -> None:
    states = made(fresh="BC")
    assert not states.chained and str(states.sequential()) == "C"
    for name, found in spoken(states, parse("A+0.5B+2C"), "effective").items():
        ends = [dense(states, states.ends[phase][1], name) for phase in "ABC"]
        torch.testing.assert_close(found, ends[0] + 0.5 * ends[1] + 2 * ends[2])
    with pytest.raises(RouteError, match="a phase begins with a fresh one; use space: effective"):
        states.compose(parse("A+B"), "factor")
    with pytest.raises(RouteError, match="A and B cannot differ; use space: factor"):
        states.compose(parse("A+B[a=1,b=0.5]"), "effective")


@pytest.mark.parametrize("space", ["factor", "effective"])
@pytest.mark.parametrize("text", ["A+0.9B+0.25C", "0.7A+0.2B+1.3C", "A+B+C"])
def test_slopes_are_those_of_a_loss(space: Any, text: str) -> None:
    """A loss that is far from linear in the weights, whose gradients by the composed factors autograd gives."""
    states = made(seed=2)
    readers = {name: torch.randn(shape[1], 4, dtype=torch.float64) for name, shape in TARGETS.items()}

    def loss(pairs: Any) -> Tensor:
        zero = torch.zeros((), dtype=torch.float64)
        return sum(((p.scaling * p.b @ (p.a @ readers[n])).tanh().sum() for n, p in pairs.items()), zero)

    route = parse(text)
    pairs = states.compose(route, space, whole=True).pairs
    leaves = {name: (p.a.clone().requires_grad_(), p.b.clone().requires_grad_()) for name, p in pairs.items()}
    value = loss({n: type(pairs[n])(a, b, pairs[n].scaling) for n, (a, b) in leaves.items()})
    grads = torch.autograd.grad(value, [t for pair in leaves.values() for t in pair])
    pulls = {name: (grads[2 * i], grads[2 * i + 1]) for i, name in enumerate(leaves)}
    slopes = states.slopes(space, pulls)
    eps = 1e-6
    for phase in "ABC":
        for target in TARGETS:
            weight = next((t.weight for t in route.terms if t.phase == phase), 0.0)
            up, down = (
                loss(states.compose(route.with_weight(phase, target, weight + d), space).pairs) for d in (eps, -eps)
            )
            assert sum(slopes[phase][target]) == pytest.approx(float(up - down) / (2 * eps), rel=1e-5, abs=1e-7)
