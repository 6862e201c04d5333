"""What a treatment did to what its plugins measure, beside what it did to the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import stats
from .outcomes import Outcomes, figures
from .relative import Relative

WEIGHTS = "last"  # a plugin's metric is read where the run ended, and so is the loss beside it


def tradeoffs(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return both paired changes for every contrast at every point and every plugin's metric; Holm over a metric's."""
    study = outcomes.study
    cells = [(a, b, point) for a, b in study.contrasts for point in study.points_of(a, b)]
    loss = _loss(outcomes)
    rows: list[dict[str, Any]] = []
    costs = _changes(outcomes, cells, loss) if loss else []
    for metric in outcomes.plugin_metrics() if cells else []:
        found = _changes(outcomes, cells, metric)
        for i, (cell, (result, change)) in enumerate(zip(cells, found, strict=True)):
            if result.n:
                rows.append(_row(outcomes, cell, metric, result, change, (loss, *costs[i]) if loss else None))
    return sorted(rows, key=lambda row: [(a, b, p) for a, b, p in cells].index((row["a"], row["b"], row["point"])))


def _loss(outcomes: Outcomes) -> str | None:
    """Choose the loss that the changes stand beside: on validation, else on test; None where no run has one."""
    runs = [run for run in outcomes.study.runs if run.finished]
    names = ("val.loss", "test.loss")
    return next((n for n in names if any(outcomes.value(run, n, WEIGHTS) is not None for run in runs)), None)


def _changes(outcomes: Outcomes, cells: list[tuple[str, str, str]], metric: str) -> list[tuple[stats.Paired, Relative]]:
    better = outcomes.about(metric).better or "higher"
    pairs = [outcomes.pairs(*cell, metric, WEIGHTS) for cell in cells]
    judged = stats.judge([stats.paired(p, better, cell[:2]) for p, cell in zip(pairs, cells, strict=True)])
    return [(r, outcomes.change(p, r, better)) for p, r in zip(pairs, judged, strict=True)]


def _row(
    outcomes: Outcomes, cell: tuple[str, str, str], metric: str, result: stats.Paired, change: Relative,
    loss: tuple[str, stats.Paired, Relative] | None,
) -> dict[str, Any]:  # fmt: skip
    a, b, point = cell
    unit, better = outcomes.about(metric)
    beside = {"metric": loss[0], **figures(*loss[1:])} if loss else None
    row = {"a": a, "b": b, "point": point, "metric": metric, "unit": unit, "better": better}
    return {**row, **figures(result, change), "loss": beside, "sentence": _sentence(row, result, change, beside)}


def _sentence(row: Mapping[str, Any], result: stats.Paired, change: Relative, loss: Mapping[str, Any] | None) -> str:
    """Say whether a metric moved, and at what cost: `a moves m for the better, …; val.loss changes by -0.05`."""
    at = f" at {row['point']}" if row["point"] else ""
    moved = {"improves": "moves for the better", "worse": "moves for the worse", "identical": "does not move"}
    said = moved.get(result.verdict, "cannot be said to move")
    by = "" if result.verdict == "identical" else f" ({_amount(result.mean, change.mean)})"
    cost = ""
    if loss and loss["mean"] is not None:
        bounds = loss["interval"]
        span = f", 95 % interval [{bounds[0]:+.3g}, {bounds[1]:+.3g}]" if bounds else ""
        cost = f", while {loss['metric']} changes by {_amount(loss['mean'], loss['relative']['mean'])}{span}"
    return f"{row['a']} against {row['b']}{at}: {row['metric']} {said}{by}{cost}; positive is better."


def _amount(mean: float | None, share: float | None) -> str:
    said = "n/a" if mean is None else f"{mean:+.3g}"
    return said if share is None else f"{said}, {100 * share:+.3g} %"
