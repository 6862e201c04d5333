"""Two arms paired item by item: the difference over documents, with its interval, and by their length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import scores
from .errors import DataError
from .inference import t_interval
from .report_read import Study
from .report_tables import NONE, Table, contrast_name, interval, plain
from .stats import difference_unit

THIRDS = ("shortest third", "middle third", "longest third")
NOTE = (
    "First arm minus second on the very same items, turned so that positive is better; over several seeds an item is "
    "their mean. The interval is the 95 % t interval over items, of a ratio by its residuals: it says how the "
    "difference would move with other items of this kind, and nothing of other models."
)
Numbers = NDArray[np.float64]


def paired_items(study: Study) -> list[dict[str, Any]]:
    """Return a row for each contrast, point and metric whose arms kept scores by item, and one for each third."""
    rows: list[dict[str, Any]] = []
    for a, b in study.contrasts:
        for point in study.points_of(a, b):
            for metric in study.index.get("on") or ():
                rows += _rows(study, a, b, point, str(metric))
    return rows


def _rows(study: Study, a: str, b: str, point: str, metric: str) -> Iterator[dict[str, Any]]:
    split, _, name = metric.partition(".")
    found = [_pair(study, a, b, point, seed, split, name) for seed in study.seeds]
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        return
    what = pairs[0][0]
    shared = sorted(set.intersection(*(set(ids) for _, ids, _, _ in pairs)))
    if len(shared) < 2:
        return
    rows = [[dict(zip(ids, range(len(ids)), strict=True))[one] for one in shared] for _, ids, _, _ in pairs]
    differences = np.mean([pair[2][at] for pair, at in zip(pairs, rows, strict=True)], axis=0)
    units = np.mean([pair[3][at] for pair, at in zip(pairs, rows, strict=True)], axis=0)
    unit, better = study.metric(metric)
    sign = -1.0 if better == "lower" else 1.0
    about = {"a": a, "b": b, "point": point, "metric": metric, "unit": unit, "items": what, "seeds": len(pairs)}
    yield {**about, "which": "all", **_judged(sign * differences, units)}
    if len(shared) >= 30:
        order = np.argsort(units, kind="stable")
        for which, part in zip(THIRDS, np.array_split(order, 3), strict=True):
            if units[order[0]] != units[order[-1]]:
                yield {**about, "which": which, **_judged(sign * differences[part], units[part])}


def _pair(
    study: Study, a: str, b: str, point: str, seed: int, split: str, name: str
) -> tuple[str, list[str], Numbers, Numbers] | None:
    runs = [study.at(arm, seed, point) for arm in (a, b)]
    kept = []
    for run in runs:
        if run is None or not run.finished:
            return None
        try:
            kept.append(scores.load(run.folder, "selected", split))
        except DataError as error:
            run.problems.append(str(error))
            return None
    one, other = kept
    if one is None or other is None or name not in one.sums or name not in other.sums:
        return None
    place = {item: at for at, item in enumerate(other.ids)}
    both = [(at, place[item]) for at, item in enumerate(one.ids) if item in place]
    left, right = (
        (np.array(side, np.int64) for side in zip(*both, strict=True)) if both else (np.zeros(0, np.int64),) * 2
    )
    same = one.units[name][left] == other.units[name][right]
    left, right = left[same], right[same]  # an item of another length is another item
    return one.what, [one.ids[i] for i in left], one.sums[name][left] - other.sums[name][right], one.units[name][left]


def _judged(differences: Numbers, units: Numbers) -> dict[str, Any]:
    """Return the ratio of sums with its interval over items, and how many items are better."""
    mean = scores.ratio(differences, units)
    residuals = mean + (differences - mean * units) / units.mean()
    return {
        "n": len(units),
        "mean": mean,
        "interval": t_interval(residuals),
        "better": int((differences > 0).sum()),
        "worse": int((differences < 0).sum()),
    }


def item_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return one table of all rows."""
    rows = [
        [
            contrast_name(row), row["metric"] + (f" [{difference_unit(row['unit'])}]" if row["unit"] else ""),
            row["which"], f"{row['n']} {row['items']}", str(row["seeds"]), plain(row["mean"], "+"),
            interval(row["interval"]) if row["interval"] else NONE, f"{row['better']}/{row['worse']}",
        ]
        for row in report["items"]
    ]  # fmt: skip
    head = ["contrast", "metric", "which", "items", "seeds", "mean", "95 % interval over items", "better/worse"]
    return [Table("Paired by item", NOTE, head, rows, 4)]
