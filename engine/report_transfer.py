"""What runs over several tasks or phases tell, for the report: matrices, readings, cosines, and how arms differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from . import reading_names, stats
from .errors import CtrError
from .inference import mean_of, sd_of, t_interval
from .matrix import Matrix
from .report_read import Run, Study, number, text

Key = tuple[str, ...]
Values = dict[Key, float | None]
READING, COSINE = ("kind", "task", "after"), ("of", "left", "right", "after")


def transfer(study: Study) -> dict[str, Any]:
    """Return the report's parts about several tasks; every one is empty where no run has more than one row to read."""
    told = [run for run in study.runs if _matrix(run)]
    readings = {run.name: _readings(run) for run in told}
    cosines = {run.name: dict(_cosines(run)) for run in told}
    return {
        "transfer": _spreads(study, readings, READING),
        "transfer_contrasts": _contrasts(study, readings, READING, judged=True),
        "matrices": _matrices(study),
        "cosines": _spreads(study, cosines, COSINE),
        "cosine_contrasts": _contrasts(study, cosines, COSINE, judged=False),
        "reading_names": reading_names.document() if told else [],
    }


def _matrix(run: Run) -> Matrix | None:
    """Return the matrix of a finished run with several tasks, or several phases."""
    matrix = run.matrix if run.finished else None
    return matrix if matrix and (len(matrix.tasks) > 1 or len(matrix.rows) > 2) else None


def _readings(run: Run) -> Values:
    matrix = _matrix(run)
    return {place: matrix.read(*place) for place in matrix.places()} if matrix else {}


def _cosines(run: Run) -> Iterator[tuple[Key, float | None]]:
    """Yield the cosines of deltas by the two phases, and those of gradients by the two tasks and the moment."""
    for event in run.of("cosine"):
        yield (text(event.get("of")), text(event.get("left")), text(event.get("right")), ""), number(event.get("mean"))
    matrix = _matrix(run)
    moments = {e.get("step"): text(e.get("phase")) or "start" for e in run.of("epoch") if e.get("kind") == "start"}
    moments |= {e.get("step"): text(e.get("phase")) for e in run.of("epoch") if e.get("kind") == "phase"}
    for left, right in combinations(matrix.tasks if matrix else (), 2):
        for step, value in _gradient_rows(run, f".gradient_cosine.{left}.{right}"):
            if step in moments:
                yield ("gradient", left, right, moments[step]), value


def _gradient_rows(run: Run, tail: str) -> list[tuple[int, float]]:
    """Return the rows of whichever plugin's series ends like that; one that cannot be read is named."""
    from .series import read_series, series_index

    for key in series_index(run.folder):
        if key.partition(".")[2] == tail[1:]:
            try:
                steps, values = read_series(run.folder, key)
            except CtrError as error:
                run.problems.append(str(error))
                return []
            return list(zip(steps.tolist(), values.tolist(), strict=True))
    return []


def _usable(values: Sequence[float | None]) -> Any:
    return np.array([v for v in values if v is not None and abs(v) <= stats.LARGEST], dtype=np.float64)


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return n, mean, sd and 95 % t interval over seeds; None where they are undefined."""
    d = _usable(values)
    return {"n": len(d), "mean": mean_of(d) if len(d) else None, "sd": sd_of(d), "interval": t_interval(d)}


def _spreads(study: Study, found: Mapping[str, Values], names: Key) -> list[dict[str, Any]]:
    """Return every number of every arm, as a mean over its seeds."""
    rows = []
    for arm in study.arms:
        for point in study.points_of(arm):
            runs = [run for run in study.runs if (run.arm, run.point) == (arm, point) and run.name in found]
            for key in dict.fromkeys(key for run in runs for key in found[run.name]):
                by_seed = {str(run.seed): found[run.name].get(key) for run in runs}
                about = {"arm": arm, "point": point, **dict(zip(names, key, strict=True))}
                rows.append({**about, **spread(list(by_seed.values())), "by_seed": by_seed})
    return rows


def _contrasts(study: Study, found: Mapping[str, Values], names: Key, judged: bool) -> list[dict[str, Any]]:
    """Return first arm minus second at equal seed, for every number that either has.

    Readings are `judged`: larger is better, and Holm runs over the contrasts and points of each. Cosines have no better
    direction, and so no verdict.
    """
    rows: list[dict[str, Any]] = []
    cells = [(a, b, point) for a, b in study.contrasts for point in study.points_of(a, b)]
    paired = {cell: _pairs(study, found, *cell) for cell in cells}
    for key in dict.fromkeys(key for pairs in paired.values() for key in pairs):
        here = [cell for cell in cells if key in paired[cell]]
        results = [stats.paired(paired[cell][key], "higher", cell[:2]) for cell in here]
        for (a, b, point), result in zip(here, stats.judge(results) if judged else results, strict=True):
            about = {"a": a, "b": b, "point": point, **dict(zip(names, key, strict=True))}
            said = result.as_dict()
            rows.append({**about, **(said if judged else {name: said[name] for name in PLAIN})})
    order = {cell: i for i, cell in enumerate(cells)}
    return sorted(rows, key=lambda row: order[row["a"], row["b"], row["point"]])


PLAIN = ("n", "seeds", "differences", "dropped", "mean", "sd", "interval")


def _pairs(
    study: Study, found: Mapping[str, Values], a: str, b: str, point: str
) -> dict[Key, dict[int, tuple[float | None, float | None]]]:
    """Return the two values of each number by seed; a run that was not finished has none."""
    pairs: dict[Key, dict[int, tuple[float | None, float | None]]] = {}
    sides = {seed: [found.get(r.name, {}) if (r := study.at(x, seed, point)) else {} for x in (a, b)]
             for seed in study.seeds}  # fmt: skip
    for key in dict.fromkeys(key for both in sides.values() for one in both for key in one):
        pairs[key] = {seed: (one.get(key), two.get(key)) for seed, (one, two) in sides.items() if one or two}
    return pairs


def _matrices(study: Study) -> list[dict[str, Any]]:
    """Return the evaluation matrix of each arm as a mean over seeds, rows and tasks in the order of its first run."""
    rows = []
    for arm in study.arms:
        for point in study.points_of(arm):
            runs = [run for run in study.runs if (run.arm, run.point) == (arm, point)]
            held = [matrix for run in runs if (matrix := _matrix(run))]
            if not held:
                continue
            labels = list(dict.fromkeys(label for matrix in held for label in matrix.rows))
            tasks = list(dict.fromkeys(task for matrix in held for task in matrix.tasks))
            rows.append({
                "arm": arm, "point": point, "metric": held[0].metric, "better": held[0].better, "n": len(held),
                "tasks": tasks, "labels": labels, "trained": [held[0].trained(label) for label in labels],
                "cells": [[spread([m.at(label, task) for m in held]) for task in tasks] for label in labels],
            })  # fmt: skip
    return rows
