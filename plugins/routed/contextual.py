"""A route for each item, chosen by how well it predicts the item's beginning, and judged on the rest alone.

The public "Surface Tension Transformers" code chooses by a probe of the first words too, but scores the whole row, its
beginning included; here what chose has no part in what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .route import Route
from .scoring import Half, Scorer
from .snapshots import Space

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """What choosing by item came to, as losses by task on the rest of items of the report half.

    `best` is the route that does best on the rest of each item itself, `uniform` the mean over routes, `fixed` the one
    route that did best on the other half. `accuracy` is the share of items for which the route chosen is the best one,
    `chance` what a choice by lot would have.
    """

    routes: Sequence[str]
    losses: Mapping[str, float]
    best: Mapping[str, float]
    uniform: Mapping[str, float]
    fixed: Mapping[str, float]
    sequential: Mapping[str, float]
    fixed_route: str
    accuracy: Mapping[str, float]
    chosen: Mapping[str, Sequence[int]]  # how often each route was, by task
    notes: list[str]

    def told(self) -> dict[str, Any]:
        """Return what the record holds beside losses and gains."""

        def mean(losses: Mapping[str, float]) -> float:
            return sum(losses.values()) / len(losses)

        return {
            "candidate_routes": list(self.routes),
            "accuracy": dict(self.accuracy),
            "chance": 1 / len(self.routes),
            "oracle_gap": mean(self.losses) - mean(self.best),
            "uniform_gap": mean(self.uniform) - mean(self.losses),
            "fixed_gap": mean(self.fixed) - mean(self.losses),
            "fixed_route": self.fixed_route,
            "best": dict(self.best),
            "uniform": dict(self.uniform),
            "fixed": dict(self.fixed),
            "sequential": dict(self.sequential),
            "chosen": {task: list(counts) for task, counts in self.chosen.items()},
        }


def choose(scorer: Scorer, routes: Sequence[Route], own: Route, space: Space, prefix: int) -> Choice:
    """Choose for each item of the report half; raises `DataError` where no item is longer than the prefix."""
    found: dict[str, dict[str, Any]] = {name: {} for name in ("losses", "best", "uniform", "fixed", "sequential")}
    accuracy, chosen, notes = {}, {}, []
    fixed = best_of_selection(scorer, routes, space, prefix)
    for task in scorer.tasks:
        early, late, counts = parts(scorer, [*routes, own], space, task, "report", prefix)
        long = counts > 0
        if dropped := int((~long).sum()):
            notes.append(f"{dropped} of {len(long)} items of {task} are no longer than the prefix and are left out")
        early, late, counts = early[:, long], late[:, long], counts[long]
        mine, its = late[:-1], late[-1]
        picked, best = early[:-1].argmin(0), mine.argmin(0)
        total, at = counts.sum(), np.arange(len(counts))
        found["losses"][task] = float(mine[picked, at].sum() / total)
        found["best"][task] = float(mine[best, at].sum() / total)
        found["uniform"][task] = float(mine.mean(0).sum() / total)
        found["fixed"][task] = float(mine[fixed].sum() / total)
        found["sequential"][task] = float(its.sum() / total)
        accuracy[task] = float((mine[picked, at] <= mine[best, at]).mean())  # of equally good routes any is right
        chosen[task] = np.bincount(picked, minlength=len(routes)).tolist()
    return Choice(
        [str(route) for route in routes], **found, fixed_route=str(routes[fixed]), accuracy=accuracy, chosen=chosen,
        notes=notes,
    )  # fmt: skip


def best_of_selection(scorer: Scorer, routes: Sequence[Route], space: Space, prefix: int) -> int:
    """Return the route with the lowest loss on the rest of items of the other half, a mean over tasks."""
    means = np.zeros(len(routes))
    for task in scorer.tasks:
        _, late, counts = parts(scorer, routes, space, task, "selection", prefix)
        means += late.sum(1) / counts.sum()
    return int(means.argmin())


def parts(
    scorer: Scorer, routes: Sequence[Route], space: Space, task: str, half: Half, prefix: int
) -> tuple[Floats, Floats, Floats]:
    """Return summed losses (routes, items) of beginnings and of rests, and how many units each rest has."""
    from ctr.engine.errors import DataError

    rows = [scorer.parts(route, space, task, half, prefix) for route in routes]
    counts = rows[0][1].count
    if not counts.sum():
        text = f"no item of task {task} is longer than the {prefix} tokens that the choice sees"
        raise DataError(f"{text}; lower prefix")
    early, late = (np.stack([pair[part].loss_sum for pair in rows]) for part in (0, 1))
    return _worst(early), _worst(late), counts


def _worst(losses: Floats) -> Floats:
    """Return losses with those that are no number larger than any, for `argmin` would choose them."""
    return np.where(np.isnan(losses), np.inf, losses)
