"""Searches over the weights of a route. They know no model: `score` gives a number of a route, larger is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from .route import GroupKind, Layout, Route

Score = Callable[[Route], float]


class Coordinate(NamedTuple):
    """One weight: of a phase, or of one group of it, and the lowest block that it touches."""

    phase: str
    group: str
    lowest: int


@dataclass(frozen=True)
class Found:
    """Where a search ended: the route, its score, and the passes over all coordinates, or steps, that it took."""

    route: Route
    value: float
    passes: int


def coordinates(layout: Layout, phases: Sequence[str], by: GroupKind) -> list[Coordinate]:
    """Return the weights that a search moves, those of lower blocks first.

    Groups that lie in no block come last: their place in the forward pass is not known.
    """
    lowest: dict[str, int] = {}
    for pair in layout.places.values():
        for place in pair:
            group = place.group(by)
            if group is not None:
                block = 0 if place.block is None else place.block
                lowest[group] = min(block, lowest.get(group, block))
    apart = {g for pair in layout.places.values() for p in pair if p.block is None and (g := p.group(by)) is not None}
    order = sorted(lowest, key=lambda group: (group in apart, lowest[group]))
    return [Coordinate(phase, group, lowest[group]) for group in order for phase in phases]


def weight_at(route: Route, at: Coordinate) -> float:
    """Return the weight that a route gives a coordinate."""
    term = next((term for term in route.terms if term.phase == at.phase), None)
    return 0.0 if term is None else dict(term.groups).get(at.group, term.weight)


def grid(start: Route, weights: Mapping[str, Sequence[float]]) -> Iterator[Route]:
    """Yield every combination of the weights of phases, those of the last phase named changing fastest."""
    for chosen in product(*weights.values()):
        route = start
        for phase, weight in zip(weights, chosen, strict=True):
            route = route.with_weight(phase, "", weight)
        yield route


def descend(
    start: Route,
    moves: Sequence[Coordinate],
    scales: Sequence[float],
    score: Score,
    passes: int,
    rise: Callable[[Route, int], None] = lambda route, height: None,
    better: Callable[[Route], None] = lambda route: None,
) -> Found:
    """Give each coordinate in turn the scale that scores best with all others as they are; until none changes.

    A scale wins that is strictly better, the first of equals. `rise` is told before each coordinate from which block
    on the candidates differ from the current route, and that a new pass begins by height 0; `better` of each route
    that is the best so far, once it is scored.
    """
    current, best = start, -math.inf
    for number in range(passes):
        moved = False
        rise(current, 0)
        if number == 0:
            best = _number(score(start))
            better(start)
        for at in moves:
            rise(current, at.lowest)
            chosen = None
            for scale in scales:
                if scale != weight_at(current, at):
                    tried = current.with_weight(at.phase, at.group, scale)
                    value = _number(score(tried))
                    if value > best:
                        best, chosen = value, tried
                        better(tried)
            if chosen is not None:
                current, moved = chosen, True
        if not moved:
            return Found(current, best, number + 1)
    return Found(current, best, passes)


def _number(value: float) -> float:
    """Return a score by which others can be better: one that is undefined is worse than any."""
    return -math.inf if math.isnan(value) else value


def ascend(
    start: Route,
    moves: Sequence[Coordinate],
    pull: Callable[[Route], tuple[float, Sequence[float]]],
    steps: int,
    rate: float,
    least: float,
    most: float,
) -> Found:
    """Follow the gradient by all coordinates at once, by Adam's rule within bounds; return the best route on the way.

    `pull` gives a route's score and its slope by each coordinate. Steps shrink to zero along a cosine. Breaks where
    the score is far from smooth in the weights; then the best that was met is still no worse than the start.
    """
    weights = [min(max(weight_at(start, at), least), most) for at in moves]
    first, second = [0.0] * len(moves), [0.0] * len(moves)
    best: Found | None = None
    for step in range(steps):
        route = start
        for at, weight in zip(moves, weights, strict=True):
            route = route.with_weight(at.phase, at.group, round(weight, 4))
        value, slopes = pull(route)
        value = _number(value)
        if best is None or value > best.value:
            best = Found(route, value, step + 1)
        size = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        for i, slope in enumerate(slopes):
            if not math.isfinite(slope):
                continue
            first[i] = 0.8 * first[i] + 0.2 * slope
            second[i] = 0.95 * second[i] + 0.05 * slope * slope
            mean, square = first[i] / (1 - 0.8 ** (step + 1)), second[i] / (1 - 0.95 ** (step + 1))
            if square > 0:
                weights[i] = min(max(weights[i] + size * mean / math.sqrt(square), least), most)
    assert best is not None
    return Found(best.route, best.value, steps)
