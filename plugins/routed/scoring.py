"""The losses of routes on a run's own tasks: on one half of the items to choose by, on the other to report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from ctr.engine.errors import DataError
from ctr.engine.matrix import START, Matrix

from .objective import Objective
from .route import Route
from .search import Coordinate
from .snapshots import Slopes, Snapshots, Space

Half = Literal["selection", "report"]
LEAST = 4  # items of a split; a half of one has no spread


@dataclass(frozen=True)
class Grown:
    """What the lowest blocks gave under a route, by task."""

    space: Space
    route: str
    height: int
    trunks: Mapping[str, Any]


class Scorer:
    """Scores routes, each once: a composition beside the base on the items of a half, task by task.

    `evaluate` holds the evaluators of all tasks by name, `trained` the task of each phase that trained the adapter, in
    order. `passes` counts what was computed, in forward passes over one task's half; begun above a trunk, a pass
    counts by the blocks that it runs.
    """

    def __init__(
        self, evaluate: Mapping[str, Any], snapshots: Snapshots, trained: Mapping[str, str], split: str = "val"
    ) -> None:
        self.snapshots, self.split = snapshots, split
        self._evaluate, self._trained = evaluate, dict(trained)
        backwards = reversed([trained[phase] for phase in snapshots.phases])
        self.tasks = list(reversed(dict.fromkeys(backwards)))  # in the order of their last phases
        self.halves = {task: halves(task, split, len(evaluate[task].items(split))) for task in self.tasks}
        self.passes = 0.0
        self._known: dict[tuple[Space, str, Half], dict[str, float]] = {}
        self._climb: tuple[Space, int, Mapping[str, Any]] | None = None  # trunks by task, of the search's present route
        self._last: Grown | None = None
        self._best: Grown | None = None

    def losses(self, route: Route, space: Space, half: Half) -> dict[str, float]:
        """Return the mean loss of every task under a route; raises `RouteError` where it has no meaning here."""
        route = route.fit(self.snapshots.phases, self.snapshots.layout)
        key = space, str(route), half
        if key not in self._known:
            composition = self.snapshots.compose(route, space)
            if half == "selection" and self._climb is not None and self._climb[0] == space:
                self._known[key] = self._above(route, composition, *self._climb)
            else:
                self._known[key] = {task: self._loss(task, composition, half) for task in self.tasks}
        return dict(self._known[key])

    def _loss(self, task: str, composition: Any, half: Half) -> float:
        self.passes += 1
        return float(self._evaluate[task]([composition], self.split, self.halves[task][half])[0].mean())

    def _above(
        self, route: Route, composition: Any, space: Space, height: int, trunks: Mapping[str, Any]
    ) -> dict[str, float]:
        """Score from the search's trunk on, and keep what the next block gives, where the search may rise to."""
        depth, losses, grown = max(self.snapshots.layout.depth, 1), {}, {}
        following = height + 1 if height + 1 < depth else None
        for task in self.tasks:
            items = self.halves[task]["selection"]
            self.passes += 1 - height / depth
            found, more = self._evaluate[task].above(composition, self.split, items, trunks.get(task), following)
            losses[task] = float(found.mean())
            if more is not None:
                grown[task] = more
        self._last = Grown(space, str(route), height + 1, grown) if grown else None
        return losses

    def still(self) -> AbstractContextManager[None]:
        """Let the model rest in eval mode while many routes are scored."""
        found: AbstractContextManager[None] = self._evaluate[self.tasks[0]].still()  # tasks share one module
        return found

    @property
    def scored(self) -> int:
        """How many routes have been scored on the half that chooses."""
        return sum(half == "selection" for _, _, half in self._known)

    def parts(self, route: Route, space: Space, task: str, half: Half, first: int) -> tuple[Any, Any]:
        """Return the evaluations of the beginnings of items, and of what follows."""
        self.passes += 1
        composition = self.snapshots.compose(route, space)
        found: tuple[Any, Any] = self._evaluate[task].parts(composition, self.split, self.halves[task][half], first)
        return found

    def matrix(self, half: Half) -> Matrix:
        """Return the evaluation matrix of the adapter's phases on a half; its first row is the base alone."""
        matrix = Matrix(self.tasks, phases=self._trained)
        states = [START, *self.snapshots.phases]
        spoken = Route(())
        for label in states:
            if label != START:
                spoken = self.snapshots.sequential_at(label)
            for task, loss in self.losses(spoken, "effective", half).items():
                matrix.put(label, task, loss)
        return matrix

    # ------------------------------------------------------------------------------------------------- searches
    def rise(self, route: Route, space: Space, height: int) -> None:
        """Keep what the lowest `height` blocks give under a route, so that what is scored next begins above them.

        The caller scores only routes that agree with this one in these blocks, until it calls again, or `rest`.
        """
        if height == 0:
            self._climb = space, 0, {}
            return
        below = self._climb if self._climb is not None and self._climb[0] == space else None
        if below is not None and below[1] == height:
            return
        name = str(route.fit(self.snapshots.phases, self.snapshots.layout))
        if self._best is not None and (self._best.space, self._best.route, self._best.height) == (space, name, height):
            self._climb = space, height, self._best.trunks
            return
        composition = self.snapshots.compose(route, space)
        trunks = {}
        for task in self.tasks:
            start = below[2].get(task) if below is not None else None
            grown = self._evaluate[task].trunk(composition, self.split, self.halves[task]["selection"], start, height)
            if grown is None:  # this model's passes cannot begin above a block
                self._climb = None
                return
            self.passes += (height - (below[1] if below is not None else 0)) / max(self.snapshots.layout.depth, 1)
            trunks[task] = grown
        self._climb = (space, height, trunks)

    def better(self, route: Route) -> None:
        """Keep what the last pass left of this route, to which the search means to go on."""
        if self._last is not None and self._last.route == str(route.fit(self.snapshots.phases, self.snapshots.layout)):
            self._best = self._last

    def rest(self) -> None:
        """Let go of all that a search kept."""
        self._climb = self._last = self._best = None

    def slopes(
        self, route: Route, space: Space, objective: Objective, moves: Sequence[Coordinate], by: Any
    ) -> tuple[float, list[float]]:
        """Return the objective of a route on the selection half, and its slope by each of some weights.

        One forward and one backward pass a task, however many weights there are; counted as three passes.
        """
        route = route.fit(self.snapshots.phases, self.snapshots.layout)
        composition = self.snapshots.compose(route, space, whole=True)
        losses, found = {}, {}
        for task in self.tasks:
            items = self.halves[task]["selection"]
            losses[task], pulls = self._evaluate[task].gradient(composition, self.split, items)
            found[task] = self.snapshots.slopes(space, pulls)
            self.passes += 3
        by_loss = objective.by_loss(losses)
        totals = [sum(by_loss[task] * self._slope(found[task], at, by) for task in self.tasks) for at in moves]
        return objective.value(losses), totals

    def _slope(self, slopes: Slopes, at: Coordinate, by: Any) -> float:
        places = self.snapshots.layout.places
        sides = [
            slope
            for target, pair in slopes[at.phase].items()
            for place, slope in zip(places[target], pair, strict=True)
            if place.group(by) == at.group
        ]
        return math.fsum(sides)


def halves(task: str, split: str, items: int) -> dict[Half, list[int]]:
    """Return the positions of a split's first half, to choose by, and of its second, to report.

    Rows that tell of one thing stand together in most files, so that a cut parts fewer of them than a draw would.
    """
    if items < LEAST:
        text = f"split {split} of task {task} has {items} items, too few to halve: one half chooses, the other reports"
        raise DataError(f"{text}; at least {LEAST} are needed. Raise data.{split}_fraction, or give more rows")
    return {"selection": list(range(items // 2)), "report": list(range(items // 2, items))}
