"""The settings of routed composition: named methods, each of which ends in one route, or in one for each item."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from ctr.engine.text import slug_problem

from .route import Route, RouteError, parse

MOST_CANDIDATES = 20_000

Space = Literal["factor", "effective"]
Weight = Annotated[float, Field(ge=-100, le=100)]
Weights = Annotated[tuple[Weight, ...], Field(min_length=1)]
GroupKind = Literal["phase", "factor", "band", "block", "module", "tensor"]


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What all settings share."""


def _route(text: str) -> str:
    try:
        parse(text)
    except RouteError as error:
        raise ValueError(str(error)) from error
    return text


RouteText = Annotated[str, AfterValidator(_route)]


class Method(Settings, frozen=True):
    """What every method has."""

    space: Space | None = Field(
        default=None, description="add factors apart, or effective weights; null: the plugin's `space`"
    )

    def routes(self) -> Iterator[Route]:
        """Yield every route that the settings name."""
        yield from ()

    def phases(self) -> Iterator[str]:
        """Yield every phase that the settings name outside of routes."""
        yield from ()


class Fixed(Method, frozen=True):
    """One given route."""

    kind: Literal["route"] = Field(description="a given route")
    route: RouteText = Field(description="the route, such as A+0.9B+0.25C")

    def routes(self) -> Iterator[Route]:
        yield parse(self.route)


class Grid(Method, frozen=True):
    """Every combination of some weights; with a constraint, the best of those that keep what was learned."""

    kind: Literal["grid"] = Field(description="every combination of some weights of phases")
    start: RouteText | None = Field(default=None, description="the route that is varied; null: every phase at 1")
    weights: Annotated[dict[str, Weights], Field(min_length=1)] = Field(
        description="the weights to try, by phase, such as {B: [0.85, 0.9], C: [0.25, 0.3]}"
    )
    keep_learning: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="share of the last phase's learning that a candidate must keep; null: any"
    )
    tolerance: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="loss by which earlier phases but the first may have learned less; null: any"
    )

    def routes(self) -> Iterator[Route]:
        if self.start is not None:
            yield parse(self.start)

    def phases(self) -> Iterator[str]:
        yield from self.weights

    @model_validator(mode="after")
    def _not_endless(self) -> Grid:
        count = math.prod(len(one) for one in self.weights.values())
        if count > MOST_CANDIDATES:
            raise ValueError(f"weights make {count:,} combinations; at most {MOST_CANDIDATES:,} are tried")
        return self


class Search(Method, frozen=True):
    """What every search has."""

    by: GroupKind = Field(
        default="block", description="what has a weight of its own: phase, factor, band, block, module or tensor"
    )
    vary: tuple[str, ...] = Field(default=(), description="phases whose weights are searched; empty: the last one")
    start: RouteText | None = Field(default=None, description="where the search begins; null: every phase at 1")

    def routes(self) -> Iterator[Route]:
        if self.start is not None:
            yield parse(self.start)

    def phases(self) -> Iterator[str]:
        yield from self.vary


class Greedy(Search, frozen=True):
    """One pass over the groups, lower blocks first; what is varied begins at 0."""

    kind: Literal["greedy"] = Field(description="one pass over the groups, each keeping its best weight")
    scales: Weights = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), description="weights that each group tries")


class Coordinate(Search, frozen=True):
    """Passes over the groups until none changes."""

    kind: Literal["coordinate"] = Field(description="passes over the groups until no weight changes")
    scales: Weights = Field(default=(0.0, 0.25, 0.5, 0.75, 1.0), description="weights that each group tries")
    passes: int = Field(default=4, ge=1, le=100, description="passes at most")


class Gradient(Search, frozen=True):
    """Ascent along the objective's gradient by all weights at once."""

    kind: Literal["gradient"] = Field(description="steps along the objective's gradient by all weights at once")
    steps: int = Field(default=24, ge=1, le=10_000, description="steps; each costs a forward and a backward pass")
    rate: float = Field(default=0.1, gt=0, le=10, description="size of a step, in weights")
    least: Weight = Field(default=0.0, description="smallest weight")
    most: Weight = Field(default=1.5, description="largest weight")

    @model_validator(mode="after")
    def _a_range(self) -> Gradient:
        if self.least >= self.most:
            raise ValueError(f"no weight lies between least ({self.least:g}) and most ({self.most:g})")
        return self


class Contextual(Method, frozen=True):
    """For each item the route that does best on its beginning, judged on the rest of it."""

    kind: Literal["contextual"] = Field(description="a route for each item, chosen by the loss of its first tokens")
    candidates: Annotated[tuple[RouteText, ...], Field(min_length=2)] = Field(description="the routes to choose from")
    prefix: int = Field(default=16, ge=1, le=100_000, description="predicted tokens of an item that the choice sees")

    def routes(self) -> Iterator[Route]:
        yield from map(parse, self.candidates)


AnyMethod = Annotated[Fixed | Grid | Greedy | Coordinate | Gradient | Contextual, Field(discriminator="kind")]


def _named(methods: dict[str, AnyMethod]) -> dict[str, AnyMethod]:
    for name in methods:
        problem = slug_problem(name) or ("must hold no '.'" if "." in name else None)
        problem = problem or ("is the run's own last state" if name == "sequential" else None)
        if problem:
            raise ValueError(f"as the name of a method {name!r} {problem}")
    return methods


class RoutedConfig(Settings, frozen=True):
    """Which compositions are tried once the last phase is over, and what they are chosen and judged by."""

    methods: Annotated[dict[str, AnyMethod], AfterValidator(_named)] = Field(
        default_factory=dict, description="methods by name; none: the plugin does nothing"
    )
    space: Space = Field(
        default="effective", description="effective: weights add exactly; factor: A and B are added apart"
    )
    objective: str = Field(
        default="frontier",
        description="what is chosen by: frontier, mean, or a reading such as learning.C.after.C",
    )
    split: Literal["val", "calibration"] = Field(
        default="val", description="the split whose first half chooses and whose second half is reported"
    )
    alone: bool = Field(default=True, description="score each phase's adapter alone on every task, too")
