"""The adapter as it stood at both ends of each phase, and the compositions of it that routes mean.

A state S is a pair of factors for every target. In *factor space* a route is S₀ + Σ wₚ(Sₚ − Sₚ₋₁), of A and of B apart:
the form of the public "Surface Tension Transformers" code, whose effective weight B·A then has cross terms between
phases. In *effective space* it is Σ wₚ·scaling·(BₚAₚ − Bₚ₋₁Aₚ₋₁), exact and linear in the weights; its rank is at most
the sum of the ranks of the states that take part. Both are sums over states, Σ cᵢSᵢ with cᵢ = wᵢ − wᵢ₊₁, which is how
they are computed: where one state alone has a coefficient, and that is 1, its own factors are given back to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ctr.engine.compositions import Composition
from ctr.engine.deltas import Pair

from .route import Layout, Route, RouteError, Term

Space = Literal["factor", "effective"]
State = Mapping[str, tuple[Tensor, Tensor]]
Slopes = dict[str, dict[str, tuple[float, float]]]


@dataclass
class Snapshots:
    """The states of a run's adapter; `ends[p]` are the indices of the states at start and end of phase p.

    `scalings` hold what B·A is multiplied by at each target. States at which every B is zero say nothing in effective
    space.
    """

    states: list[State]
    ends: Mapping[str, tuple[int, int]]
    scalings: Mapping[str, float]
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout.of(self.scalings)
        self._silent = {i for i, state in enumerate(self.states) if not any(bool(b.any()) for _, b in state.values())}

    @classmethod
    def of(cls, snapshots: Mapping[str, Mapping[str, Mapping[str, Tensor]]], factors: Iterable[Any]) -> Snapshots:
        """Take an event's `snapshots` and `factors`; a phase that goes on with an adapter shares a state."""
        scalings = {factor.name: factor.scaling for factor in factors}
        states: list[State] = []
        ends = {}
        for phase, moments in snapshots.items():
            start, end = (_state(moments[moment], scalings) for moment in ("start", "end"))
            if not states or not _equal(states[-1], start):
                states.append(start)
            states.append(end)
            ends[phase] = (len(states) - 2, len(states) - 1)
        return cls(states, ends, scalings)

    @property
    def phases(self) -> tuple[str, ...]:
        return tuple(self.ends)

    @property
    def chained(self) -> bool:
        """Whether each phase went on with the adapter of the one before it."""
        ends = list(self.ends.values())
        return all(before[1] == after[0] for before, after in zip(ends, ends[1:], strict=False))

    def sequential(self) -> Route:
        """Return the route that means the adapter as the run left it."""
        return self.sequential_at(self.phases[-1])

    def sequential_at(self, last: str) -> Route:
        """Return the route that means the adapter as it stood at the end of a phase."""
        spoken, at = [], self.ends[last][1]
        for phase in reversed(self.phases[: self.phases.index(last) + 1]):  # back to where the adapter was fresh
            start, end = self.ends[phase]
            if end == at:
                spoken.append(Term(phase))
                at = start
        return Route(tuple(reversed(spoken)))

    def compose(self, route: Route, space: Space, whole: bool = False) -> Composition:
        """Return what a route means; `whole` keeps states whose coefficient is 0, for slopes.

        Raises `RouteError` for a phase or a group that the run does not have, for weights of A and B that differ in
        effective space, and in factor space where a phase began with a fresh adapter.
        """
        route = route.fit(self.phases, self.layout)
        weights = route.weights(self.layout)
        check(route, self.layout, space, self.chained)
        pairs = {}
        for target, scaling in self.scalings.items():
            if space == "factor":
                a, b = (self._sum(weights, target, side) for side in (0, 1))
                pairs[target] = Pair(a, b, scaling)
            elif (pair := self._beside(weights, target, whole)) is not None:
                pairs[target] = Pair(*pair, scaling)
        return Composition(pairs)

    def coefficients(
        self, weights: Mapping[str, Mapping[str, tuple[float, float]]], target: str, side: int
    ) -> list[float]:
        """Return what each state is multiplied by at a target, in A (side 0) or B (side 1); the start's own 1 apart."""
        found = [0.0] * len(self.states)
        for phase, (start, end) in self.ends.items():
            weight = weights[phase][target][side] if phase in weights else 0.0
            found[end] += weight
            found[start] -= weight
        return found

    def _sum(self, weights: Any, target: str, side: int) -> Tensor:
        found = self.coefficients(weights, target, side)
        found[0] += 1.0
        spoken = [(c, state[target][side]) for c, state in zip(found, self.states, strict=True) if c]
        if [c for c, _ in spoken] == [1.0]:
            return spoken[0][1]
        total = torch.zeros_like(self.states[0][target][side])
        for c, tensor in spoken:
            total = total + c * tensor
        return total

    def _beside(self, weights: Any, target: str, whole: bool) -> tuple[Tensor, Tensor] | None:
        found = self.coefficients(weights, target, 0)
        spoken = [(c, self.states[i][target]) for i, c in enumerate(found) if self._speaks(i, c, whole)]
        if not spoken:
            return None
        if [c for c, _ in spoken] == [1.0]:
            return spoken[0][1]
        return torch.cat([a for _, (a, _) in spoken]), torch.cat([c * b for c, (_, b) in spoken], dim=1)

    def _speaks(self, state: int, coefficient: float, whole: bool) -> bool:
        return state not in self._silent and (bool(coefficient) or whole)

    # ------------------------------------------------------------------------------------------------------ slopes
    def slopes(self, space: Space, pulls: Mapping[str, tuple[Tensor, Tensor]]) -> Slopes:
        """Return the derivative of a loss by the weights of A and B, by phase and target.

        `pulls` are the loss's gradients by the factors of `compose(route, space, whole=True)`. One backward pass thus
        covers every group of every phase. In effective space a target has one weight: its whole slope stands under A.
        """
        by_state = {target: self._by_state(space, target, *pulls[target]) for target in pulls}
        return {
            phase: {
                target: (parts[end][0] - parts[start][0], parts[end][1] - parts[start][1])
                for target, parts in by_state.items()
            }
            for phase, (start, end) in self.ends.items()
        }

    def _by_state(self, space: Space, target: str, by_a: Tensor, by_b: Tensor) -> Sequence[tuple[float, float]]:
        """Return the derivative by each state's coefficients at a target."""
        if space == "factor":
            return [(_inner(by_a, a), _inner(by_b, b)) for a, b in (state[target] for state in self.states)]
        found, column = [(0.0, 0.0)] * len(self.states), 0
        for i, state in enumerate(self.states):
            if self._speaks(i, 0.0, True):
                b = state[target][1]
                found[i] = _inner(by_b[:, column : column + b.shape[1]], b), 0.0
                column += b.shape[1]
        return found


def check(route: Route, layout: Layout, space: Space, chained: bool) -> None:
    """Raise `RouteError` where a route has no meaning in a space."""
    kinds = {layout.kind_of(group) for term in route.terms for group, _ in term.groups}
    if space == "effective" and kinds & {"factor", "tensor"}:
        text = f"{route}: in effective space a target has one weight, so A and B cannot differ"
        raise RouteError(f"{text}; use space: factor")
    if space == "factor" and not chained:
        text = "factor space adds what phases changed of one adapter, and a phase begins with a fresh one"
        raise RouteError(f"{text}; use space: effective, or adapter: continued in each phase")


def _inner(left: Tensor, right: Tensor) -> float:
    return float((left.double() * right.double()).sum())


def _state(tensors: Mapping[str, Tensor], targets: Iterable[str]) -> State:
    return {target: (tensors[f"{target}.a"], tensors[f"{target}.b"]) for target in targets}


def _equal(left: State, right: State) -> bool:
    return all(torch.equal(left[t][0], right[t][0]) and torch.equal(left[t][1], right[t][1]) for t in right)
