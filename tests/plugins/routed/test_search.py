"""Objectives by hand numbers and the source's algebra; searches on functions whose best point is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctr.engine.matrix import Matrix
from ctr.plugins.routed.objective import Objective, pareto
from ctr.plugins.routed.route import Layout, Route, parse
from ctr.plugins.routed.search import ascend, coordinates, descend, grid, weight_at

LAYOUT = Layout.of([f"h.{i}.{name}" for i in range(4) for name in ("attn", "mlp")])
LOSS = st.floats(0.1, 9)


def matrix(
    rows: Sequence[Sequence[float]] = ((6, 6.1, 6.2), (1.9, 3.8, 3.5), (2.6, 1.8, 3.4), (2.7, 2.9, 1.2)),
) -> Matrix:
    made = Matrix(["A", "B", "C"], phases={name: name for name in "ABC"})
    for label, row in zip(["start", "A", "B", "C"], rows, strict=True):
        for task, value in zip("ABC", row, strict=True):
            made.put(label, task, value)
    return made


@given(st.lists(st.tuples(LOSS, LOSS, LOSS), min_size=4, max_size=4), st.tuples(LOSS, LOSS, LOSS))
def test_the_frontier_ranks_as_the_source_s_does(rows: list[tuple[float, ...]], route: tuple[float, ...]) -> None:
    """Its score, term by term as it is defined there, differs from ours by the same constant for every route."""

    def source(a: float, b: float, c: float) -> float:
        (_, _, _), (aa, ba, _), (ab, bb, cb), (asq, bs, cs) = rows
        accretion = (aa - a) - (aa - ab)
        interference_a, interference_b = (asq - ab) - (a - ab), (bs - bb) - (b - bb)
        learning_b, learning_c = (ba - b) - (ba - bb), (cb - c) - (cb - cs)
        return accretion + interference_a + interference_b + learning_c + 0.25 * learning_b

    objective = Objective("frontier", matrix(rows), list("ABC"))
    own = rows[3]
    ours = objective.value(dict(zip("ABC", route, strict=True)))
    assert ours == pytest.approx(source(*route) - source(*own), abs=1e-9)
    assert objective.value(objective.sequential) == 0


def test_readings_constraints_and_what_is_kept() -> None:
    objective = Objective("backward_transfer.A.after.C", matrix(), list("ABC"))
    losses = {"A": 1.9, "B": 1.9, "C": 2.3}
    assert objective.value(losses) == pytest.approx(0.0)
    assert objective.gains(losses) == {"A": pytest.approx(0.8), "B": pytest.approx(1.0), "C": pytest.approx(-1.1)}
    assert objective.kept(losses) == pytest.approx(1.1 / 2.2)
    assert objective.retained(losses) == pytest.approx(2 * 0.8 + 1.0)
    assert objective.passes(losses, 0.5 - 1e-9, None) and not objective.passes(losses, 0.51, None)
    worse = {**losses, "B": 2.9 + 0.06}
    assert objective.passes(worse, None, 0.07) and not objective.passes(worse, None, 0.05)
    by_loss = Objective("frontier", matrix(), list("ABC")).by_loss(losses)
    assert by_loss == {"A": pytest.approx(-2), "B": pytest.approx(-1.25), "C": pytest.approx(-1)}
    assert Objective("retention.A.after.C", matrix(), list("ABC")).value(losses) == pytest.approx(1.9 / 1.9)
    assert Objective("mean", matrix(), list("ABC")).value(losses) == pytest.approx((0.8 + 1.0 - 1.1) / 3)


@pytest.mark.parametrize("name", ["front", "learning.D.after.C", "learning.C.after.B", "value.A.after.C", "learning.C"])
def test_what_is_no_objective_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is neither frontier nor mean, nor a reading after the last phase"):
        Objective(name, matrix(), list("ABC"))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    naive = [
        not any(p[0] >= q[0] and p[1] >= q[1] and p != q for p in points) for q in points
    ]  # fmt: skip
    assert pareto(points) == naive


def test_a_grid_is_every_combination() -> None:
    found = [str(route) for route in grid(parse("A+B+C"), {"B": [0.5, 1], "C": [0, 0.25]})]
    assert found == ["A+0.5B+0C", "A+0.5B+0.25C", "A+B+0C", "A+B+0.25C"]


def bowl(route: Route) -> float:
    """Best at C = (.5, .25, 1, 0) by block, with neighbours that pull on each other."""
    best, found = (
        [0.5, 0.25, 1.0, 0.0],
        [route.weights(LAYOUT).get("C", {}).get(f"h.{i}.attn", (0, 0))[0] for i in range(4)],
    )
    own = sum((x - y) ** 2 for x, y in zip(found, best, strict=True))
    return -own - 0.3 * sum((found[i] - best[i]) * (found[i + 1] - best[i + 1]) for i in range(3))


def test_coordinate_search_finds_the_best_of_a_bowl_and_stops() -> None:
    moves = coordinates(LAYOUT, ["C"], "block")
    assert [move.lowest for move in moves] == [0, 1, 2, 3]
    told: list[int] = []
    found = descend(parse("A+C"), moves, [0, 0.25, 0.5, 0.75, 1.0], bowl, 9, lambda _, height: told.append(height))
    assert found.value == 0 and found.passes < 9
    assert [weight_at(found.route, move) for move in moves] == [0.5, 0.25, 1.0, 0.0]
    assert told[:5] == [0, 0, 1, 2, 3] and told.count(3) == found.passes
    one = descend(parse("A+C"), moves, [0, 0.25, 0.5, 0.75, 1.0], bowl, 1)
    assert one.passes == 1 and one.value <= found.value


def test_greedy_takes_the_first_of_equals_and_never_worse() -> None:
    moves = coordinates(LAYOUT, ["C"], "band")
    assert str(descend(parse("A"), moves, [0, 0.5, 1], lambda _: 1.0, 3).route) == "A"
    assert descend(parse("A"), moves, [0, 0.5], lambda _: float("nan"), 1).value == -math.inf
    beaten = descend(parse("A"), moves, [0, 0.5], lambda route: 1.0 if len(route.terms) > 1 else math.nan, 1)
    assert beaten.value == 1 and str(beaten.route) == "A+0C[early=0.5]"


def test_ascent_follows_the_gradient_within_bounds() -> None:
    moves = coordinates(LAYOUT, ["C"], "block")

    def pull(route: Route) -> tuple[float, list[float]]:
        eps = 1e-5
        shifted = [[bowl(route.with_weight("C", m.group, weight_at(route, m) + d)) for d in (eps, -eps)] for m in moves]
        return bowl(route), [(up - down) / (2 * eps) for up, down in shifted]

    found = ascend(parse("A+C"), moves, pull, 60, 0.1, 0.0, 1.5)
    assert found.value > -0.01 and found.value >= bowl(parse("A+C"))
    assert all(0 <= weight_at(found.route, move) <= 1.5 for move in moves)
    tight = ascend(parse("A+C"), moves, pull, 60, 0.1, 0.4, 0.6)
    assert all(0.4 <= weight_at(tight.route, move) <= 0.6 for move in moves)


def test_groups_outside_of_blocks_come_last() -> None:
    layout = Layout.of(["lm_head", "h.1.attn", "h.0.attn"])
    assert [m.group for m in coordinates(layout, ["C"], "module")] == ["h.0.attn", "h.1.attn", "lm_head"]
    assert [m.lowest for m in coordinates(layout, ["B", "C"], "factor")] == [0] * 4
