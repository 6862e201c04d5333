"""How outcomes go with the values of a sweep: each arm at each point, and what can be claimed of the trend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import stats
from .nodes import scalar_text, shown
from .outcomes import Outcomes
from .report_read import Study, mapping, sequence, strings, text
from .trend import Trend, judge_trends, trend

Others = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Slice:
    """The points of an arm along one swept key, the other keys fixed; values in the order of the sweep."""

    arm: str
    key: str
    others: Others
    points: Mapping[str, Any]

    @property
    def numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.points.values())


def doses(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return a row for every arm that has points, every swept key, the other keys fixed, and every metric."""
    metrics = [(name, "selected") for name in strings(outcomes.study.index.get("on"))]
    metrics += [(name, "last") for name in outcomes.plugin_metrics()]
    rows: list[dict[str, Any]] = []
    for metric, weights in metrics:
        slices = list(_slices(outcomes.study))
        trends = judge_trends([_trend(outcomes, one, metric, weights) for one in slices])
        rows += [_row(outcomes, one, metric, weights, t) for one, t in zip(slices, trends, strict=True)]
    return sorted(rows, key=lambda row: (row["key"], row["arm"]))


def _slices(study: Study) -> Iterator[Slice]:
    named = [mapping(point) for point in sequence(study.index.get("points"))]
    values = {text(point.get("name")): mapping(point.get("values")) for point in named}
    for arm in study.arms:
        here = [point for point in study.points if any(r.arm == arm and r.point == point for r in study.runs)]
        keys = dict.fromkeys(key for point in here for key in values.get(point, {}))
        for key in keys:
            found: dict[Others, dict[str, Any]] = {}
            for point in here:
                if key in values.get(point, {}):
                    others = tuple((k, value_text(v)) for k, v in values[point].items() if k != key)
                    found.setdefault(others, {})[point] = values[point][key]
            yield from (Slice(arm, key, others, points) for others, points in found.items() if len(points) > 1)


def value_text(value: Any) -> str:
    """Return a swept value as a person writes it."""
    if isinstance(value, str):
        return value
    return shown(value) if isinstance(value, Mapping | list) else scalar_text(value)


def _by_seed(outcomes: Outcomes, one: Slice, metric: str, weights: str) -> dict[int, list[float | None]]:
    study = outcomes.study
    return {
        seed: [outcomes.value(study.at(one.arm, seed, point), metric, weights) for point in one.points]
        for seed in study.seeds
    }


def _trend(outcomes: Outcomes, one: Slice, metric: str, weights: str) -> Trend:
    if not one.numeric:
        return Trend(reason="the swept values are no numbers")
    whole = {
        seed: [v for v in values if v is not None and abs(v) <= stats.LARGEST]
        for seed, values in _by_seed(outcomes, one, metric, weights).items()
    }
    whole = {seed: values for seed, values in whole.items() if len(values) == len(one.points)}
    return trend([float(v) for v in one.points.values()], whole, -1 if outcomes.about(metric).better == "lower" else 1)


def _row(outcomes: Outcomes, one: Slice, metric: str, weights: str, found: Trend) -> dict[str, Any]:
    unit, better = outcomes.about(metric)
    reference = outcomes.reference(one.arm)
    return {
        "arm": one.arm,
        "key": one.key,
        "others": [list(pair) for pair in one.others],
        "metric": metric,
        "weights": weights,
        "unit": unit,
        "better": better or "higher",
        "numeric": one.numeric,
        "reference": reference,
        "points": [_point(outcomes, one, point, metric, weights, reference) for point in one.points],
        "trend": asdict(found),
        "sentence": _sentence(one, metric, unit, found),
    }


def _point(
    outcomes: Outcomes, one: Slice, point: str, metric: str, weights: str, reference: str | None
) -> dict[str, Any]:
    value = one.points[point]
    own = outcomes.spread(one.arm, point, metric, weights)
    row: dict[str, Any] = {
        "point": point,
        "value": value if one.numeric else value_text(value),
        "n": own.n,
        "mean": own.mean,
        "interval": own.interval,
        "by_seed": {
            str(seed): outcomes.value(outcomes.study.at(one.arm, seed, point), metric, weights)
            for seed in outcomes.study.seeds
        },
        "against": None,
        "beside": None,
    }
    if reference is not None:
        better = outcomes.about(metric).better or "higher"
        result = stats.paired(outcomes.pairs(one.arm, reference, point, metric, weights), better, (one.arm, reference))
        row["against"] = {"n": result.n, "mean": result.mean, "interval": result.interval, "reason": result.reason}
        beside = outcomes.spread(reference, point, metric, weights)
        row["beside"] = {"n": beside.n, "mean": beside.mean, "interval": beside.interval}
    return row


def _sentence(one: Slice, metric: str, unit: str, found: Trend) -> str:
    about = f"{metric} of {one.arm} against {one.key}"
    fixed = ", ".join(f"{key} {value}" for key, value in one.others)
    about += f" ({fixed})" if fixed else ""
    if found.mean is None:
        return f"{about}: no trend can be told: {found.reason}."
    per = f"per {'decade' if found.logarithmic else 'unit'}"
    tail = f" {stats.difference_unit(unit)}" if unit else ""
    said = f"{about}: {found.said}: slope {found.mean:+.3g}{tail} {per}"
    if found.interval and all(map(math.isfinite, found.interval)):
        said += f", 95 % interval [{found.interval[0]:+.3g}, {found.interval[1]:+.3g}]"
    said += f", n = {len(found.seeds)}"
    if found.holm_p is not None:
        said += f", p = {found.holm_p:.2g}{f' after Holm over {found.family}' if found.family > 1 else ''}"
    said += "" if found.ranks is None else f", mean rank correlation {found.ranks:+.2f}"
    return f"{said}{'; ' + found.reason if found.reason else ''}; positive is better."
