"""Numbers that runs are held against each other by: a split's metric, a plugin's series, a reading of the matrix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from . import stats
from .criteria import Estimate
from .inference import mean_of, t_interval
from .matrix import Matrix
from .outcome_names import SPLITS, VALUE, Place, kind_name, owner_of, reading_place
from .relative import Relative, relative
from .report_content import selected_epoch, value_of
from .report_read import Run, Study, mapping, number, text
from .series import Rows, read_series, series_index

OWN = (*SPLITS, "clock", "engine")


class About(NamedTuple):
    """How a number is to be read; `better` is None where nothing says it."""

    unit: str = ""
    better: Literal["higher", "lower"] | None = None


class Outcomes:
    """Reads numbers of a study's runs, each file once."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._rows: dict[tuple[str, str], Rows] = {}
        self._indices: dict[str, dict[str, dict[str, Any]]] = {}

    def value(self, run: Run | None, name: str, weights: str = "selected") -> float | None:
        """Return a finished run's number; a series as it stood at the epoch whose weights are meant."""
        if run is None or not run.finished:
            return None
        if owner_of(name) in SPLITS:
            return value_of(self.study, run, name, weights)
        if place := reading_place(name):
            return _reading(run.matrix, place) if run.matrix else None
        return self._series(run, name, weights)

    def _series(self, run: Run, key: str, weights: str) -> float | None:
        if key not in self._index(run):
            return None
        if (run.name, key) not in self._rows:
            self._rows[run.name, key] = read_series(run.folder, key)
        steps, values = self._rows[run.name, key]
        row = len(steps)
        if weights == "selected":
            at = number((selected_epoch(self.study, run) or {}).get("step"))
            row = 0 if at is None else int(np.searchsorted(steps, at, side="right"))
        return float(values[row - 1]) if row else None

    def _index(self, run: Run) -> dict[str, dict[str, Any]]:
        if run.name not in self._indices:
            self._indices[run.name] = series_index(run.folder)
        return self._indices[run.name]

    def about(self, name: str) -> About:
        """Return unit and direction: as the runs declare them, else as the study's index does."""
        if owner_of(name) in SPLITS:
            unit, better = self.study.metric(name)
            return About(unit, "lower" if better == "lower" else "higher")
        if place := reading_place(name):
            matrix = next((run.matrix for run in self.study.runs if run.matrix), None)
            lower = place.kind == VALUE and matrix is not None and matrix.better == "lower"
            return About("", "lower" if lower else "higher")
        entries = [entry for run in self.study.runs if (entry := self._index(run).get(name)) and entry["better"]]
        known = entries[0] if entries else mapping(mapping(self.study.index.get("metrics")).get(name))
        said = known.get("better")
        return About(text(known.get("unit")), said if said in ("higher", "lower") else None)

    def plugin_metrics(self) -> list[str]:
        """Return the series of plugins that say which direction is better, in the order in which runs have them."""
        found: dict[str, None] = {}
        for run in self.study.runs:
            entries = self._index(run).items() if run.finished else ()
            found.update((k, None) for k, about in entries if about["better"] and owner_of(k) not in OWN)
        return list(found)

    def reference(self, arm: str) -> str | None:
        """Return the arm that `arm` is held against first."""
        return next((b for a, b in self.study.contrasts if a == arm), None)

    def pairs(self, a: str, b: str, point: str, name: str, weights: str) -> stats.Pairs:
        """Return both arms' numbers by seed, wherever either has a run."""
        found = {}
        for seed in self.study.seeds:
            runs = self.study.at(a, seed, point), self.study.at(b, seed, point)
            if any(runs):
                found[seed] = self.value(runs[0], name, weights), self.value(runs[1], name, weights)
        return found

    def change(self, pairs: stats.Pairs, result: stats.Paired, better: Literal["higher", "lower"]) -> Relative:
        """Return the change in per cent over the pairs that `result` rests on."""
        kept = {seed: (float(a), float(b)) for seed, (a, b) in pairs.items() if a is not None and b is not None}
        return relative({seed: kept[seed] for seed in result.seeds}, better)

    def spread(self, arm: str, point: str, name: str, weights: str) -> Estimate:
        """Return an arm's own mean with its t interval over seeds."""
        found = (self.value(self.study.at(arm, seed, point), name, weights) for seed in self.study.seeds)
        return over_seeds([v for v in found if v is not None and abs(v) <= stats.LARGEST], self.about(name).unit)


def over_seeds(values: Sequence[float], unit: str = "") -> Estimate:
    """Return the mean of values with its 95 % t interval; values that are all equal have none."""
    if not values:
        return Estimate(unit=unit, reason="no finished run has a finite value")
    column = np.array(values, dtype=np.float64)
    bounds = t_interval(column)
    lacking = "one seed has no spread" if len(values) == 1 else f"all {len(values)} values are equal"
    return Estimate(len(values), mean_of(column), bounds, unit, "" if bounds else lacking)


def _reading(matrix: Matrix, place: Place) -> float | None:
    if place.kind == VALUE:
        return matrix.at(place.after, place.task)
    return next((value for named, value in _readings(matrix) if named == place), None)


def _readings(matrix: Matrix) -> Iterator[tuple[Place, float]]:
    for r in matrix.readings():
        yield Place(kind_name(r.kind), r.task, r.after), r.value


def figures(result: stats.Paired, change: Relative) -> Mapping[str, Any]:
    """Return what a paired change says as the report's JSON holds it."""
    kept = ("n", "seeds", "dropped", "mean", "sd", "interval", "t_p", "holm_p", "family", "verdict", "reason")
    said = {key: value for key, value in result.as_dict().items() if key in kept}
    return {**said, "relative": {"mean": change.mean, "interval": change.interval, "reason": change.reason}}
