"""Each method from its settings to the route that it chose, and what that scored on items that it was not chosen by."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctr.engine.errors import PluginError

from . import search
from .contextual import choose
from .objective import Losses, Objective, pareto
from .route import Layout, Route, RouteError, Term, parse
from .scoring import Scorer
from .settings import Contextual, Coordinate, Fixed, Gradient, Greedy, Grid, RoutedConfig
from .snapshots import Space, check

MOST_TOLD = 400  # candidates in a record, those of the front first


@dataclass
class Result:
    """What a method came to. Losses and gains are by task, on the half that nothing was chosen by."""

    method: str
    kind: str
    space: Space
    route: Route | None
    losses: dict[str, float]
    gains: dict[str, float]
    objective: float
    kept: float | None
    chosen_by: float | None = None  # the objective on the half that chose
    candidates: int = 0
    passes: float = 0.0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    tried: list[tuple[str, float, float]] = field(default_factory=list)  # route, learning kept, gain of the others
    more: dict[str, Any] = field(default_factory=dict)


class Comparison:
    """All methods of one run, beside its own last state; what one has scored the next one knows."""

    def __init__(self, config: RoutedConfig, scorer: Scorer) -> None:
        self.config, self.scorer = config, scorer
        self.snapshots, self.layout = scorer.snapshots, scorer.snapshots.layout
        self.selection = Objective(config.objective, scorer.matrix("selection"), scorer.tasks)
        self.report = Objective(config.objective, scorer.matrix("report"), scorer.tasks)

    def sequential(self) -> Result:
        """Return what the run's own last state scores."""
        route = self.snapshots.sequential()
        return self._result("sequential", "sequential", self.config.space, route, self.report.sequential)

    def run(self, name: str, method: Any) -> Result:
        """Do what a method says; raises `PluginError` where its routes have no meaning in this run."""
        begun, passes, known = time.perf_counter(), self.scorer.passes, self.scorer.scored
        space = method.space or self.config.space
        try:
            with self.scorer.still():
                result = self._run(name, method, space)
        except RouteError as error:
            raise PluginError(f"method {name}: {error}") from error
        finally:
            self.scorer.rest()
        result.passes = self.scorer.passes - passes
        result.candidates = result.candidates or self.scorer.scored - known
        result.seconds = time.perf_counter() - begun
        return result

    def alone(self) -> dict[str, dict[str, float]]:
        """Return the losses of every task with one phase's adapter alone beside the base."""
        return {
            phase: self.scorer.losses(Route((Term(phase),)), "effective", "report") for phase in self.snapshots.phases
        }

    def _run(self, name: str, method: Any, space: Space) -> Result:
        if isinstance(method, Fixed):
            return self._judged(name, "route", space, parse(method.route))
        if isinstance(method, Grid):
            return self._grid(name, method, space)
        if isinstance(method, Contextual):
            return self._contextual(name, method, space)
        return self._search(name, method, space)

    # ---------------------------------------------------------------------------------------------------- methods
    def _grid(self, name: str, method: Grid, space: Space) -> Result:
        """Try every combination; with constraints as the source's calibration does, else by the objective alone."""
        routes = list(search.grid(self._start(method.start), method.weights))
        losses = [self.scorer.losses(route, space, "selection") for route in routes]
        values = [float("-inf") if (value := self.selection.value(one)) != value else value for one in losses]
        constrained = method.keep_learning is not None or method.tolerance is not None
        passing = [
            i for i, one in enumerate(losses) if self.selection.passes(one, method.keep_learning, method.tolerance)
        ]
        ranks: list[tuple[float, ...]] = [(value,) for value in values]
        notes = []
        if constrained:
            kept = [self.selection.kept(one) or 0.0 for one in losses]
            gains = [self.selection.retained(one) for one in losses]
            order = (gains, kept, values) if passing else (values, gains, kept)
            ranks = list(zip(*order, strict=True))
            notes = [f"{len(passing)} of {len(routes)} candidates keep what was learned"]
        best = max(passing if constrained and passing else range(len(routes)), key=lambda i: ranks[i])
        result = self._judged(name, "grid", space, routes[best], values[best])
        result.candidates, result.notes, result.tried = len(routes), notes, self._front(routes, losses)
        return result

    def _search(self, name: str, method: Greedy | Coordinate | Gradient, space: Space) -> Result:
        vary = method.vary or self.snapshots.phases[-1:]
        moves = search.coordinates(self.layout, vary, method.by)
        start = self._start(method.start)
        if isinstance(method, Gradient):
            found = search.ascend(
                start, moves, lambda route: self.scorer.slopes(route, space, self.selection, moves, method.by),
                method.steps, method.rate, method.least, method.most,
            )  # fmt: skip
        else:
            if isinstance(method, Greedy):
                for phase in vary:
                    start = Route(tuple(term for term in start.terms if term.phase != phase))
            found = search.descend(
                start, moves, method.scales,
                lambda route: self.selection.value(self.scorer.losses(route, space, "selection")),
                method.passes if isinstance(method, Coordinate) else 1,
                lambda route, height: self.scorer.rise(route, space, height),
                self.scorer.better,
            )  # fmt: skip
        result = self._judged(name, method.kind, space, found.route, found.value)
        result.candidates = found.passes if isinstance(method, Gradient) else 0
        result.more = {"by": method.by, "rounds": found.passes}
        return result

    def _contextual(self, name: str, method: Contextual, space: Space) -> Result:
        routes = [parse(text).fit(self.snapshots.phases, self.layout) for text in method.candidates]
        found = choose(self.scorer, routes, self.snapshots.sequential(), space, method.prefix)
        result = self._result(name, "contextual", space, None, found.losses)
        # judged on the rest of each item, and so held against what the other routes do to that rest
        result.gains = {task: found.sequential[task] - loss for task, loss in found.losses.items()}
        result.objective = result.kept = float("nan")
        result.kept, result.candidates, result.more, result.notes = None, len(routes), found.told(), found.notes
        return result

    # ---------------------------------------------------------------------------------------------------- judging
    def _start(self, text: str | None) -> Route:
        if text is None:
            return Route(tuple(map(Term, self.snapshots.phases)))
        return parse(text).fit(self.snapshots.phases, self.layout)

    def _judged(self, name: str, kind: str, space: Space, route: Route, by: float | None = None) -> Result:
        route = route.fit(self.snapshots.phases, self.layout)
        self.scorer.rest()
        result = self._result(name, kind, space, route, self.scorer.losses(route, space, "report"))
        result.chosen_by = by
        return result

    def _result(self, name: str, kind: str, space: Space, route: Route | None, losses: Losses) -> Result:
        gains = self.report.gains(losses)
        value, kept = self.report.value(losses), self.report.kept(losses)
        return Result(name, kind, space, route, dict(losses), gains, value, kept)

    def _front(self, routes: Sequence[Route], losses: Sequence[Losses]) -> list[tuple[str, float, float]]:
        """Return each candidate with its learning kept and what the other tasks gain, those of the front first."""
        points = []
        for one in losses:
            gains = self.selection.gains(one)
            points.append((self.selection.kept(one) or 0.0, sum(gains[task] for task in self.scorer.tasks[:-1])))
        front = pareto(points)
        order = sorted(range(len(routes)), key=lambda i: not front[i])[:MOST_TOLD]
        return [(str(routes[i]), *points[i]) for i in order]


def record(result: Result, layout: Layout) -> dict[str, Any]:
    """Return a result as the event log holds it."""
    groups: dict[str, dict[str, float]] = {}
    for term in result.route.terms if result.route is not None else ():
        groups[term.phase] = {"": term.weight, **dict(term.groups)}
    told: dict[str, Any] = plain({
        "method": result.method,
        "kind": result.kind,
        "space": result.space,
        "route": None if result.route is None else str(result.route),
        "weights": groups,
        "losses": result.losses,
        "gains": result.gains,
        "objective": result.objective,
        "kept": result.kept,
        "chosen_by": result.chosen_by,
        "candidates": result.candidates,
        "passes": round(result.passes, 3),
        "seconds": round(result.seconds, 4),
        "notes": result.notes,
        "tried": [list(one) for one in result.tried],
        **result.more,
    })  # fmt: skip
    return told


def plain(value: Any) -> Any:
    """Return data with None for every number that JSON does not have: one that is not finite."""
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def misfits(config: RoutedConfig, phases: Sequence[str], layout: Layout, chained: bool) -> str | None:
    """Say why some method's settings cannot act in a run with these phases and targets; None when all can."""
    for name, method in config.methods.items():
        for phase in method.phases():
            if phase not in phases:
                return f"methods.{name}: no phase {phase} trains the adapter; those that do are {', '.join(phases)}"
        space = method.space or config.space
        by = getattr(method, "by", "phase")
        if space == "effective" and by in ("factor", "tensor"):
            return f"methods.{name}: by: {by} parts A from B, which effective space cannot; set space: factor"
        try:
            check(Route(()), layout, space, chained)
            for route in method.routes():
                check(route.fit(phases, layout), layout, space, chained)
        except RouteError as error:
            return f"methods.{name}: {error}"
    return None
