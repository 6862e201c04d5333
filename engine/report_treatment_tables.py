"""The tables of criteria, of geometry against loss, and of doses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .report_tables import NONE, Table, contrast_name, interval, p_value, plain
from .stats import difference_unit

CRITERIA = (
    "Each rule is judged on its own; no correction is made for how many there are. A change is the first arm minus the "
    "second at equal seed, turned so that positive is better; in %, it is the mean over seeds of the log ratio, told "
    "as a share of the second arm. Evidence interval: passes when the whole 95 % t interval over seeds keeps to the "
    "bound, fails when the whole of it breaks the bound, else undecided; mean: the mean decides."
)
TRADEOFFS = (
    "Paired changes at equal seed on the weights at the end of training, turned so that positive is better, with 95 % "
    "t intervals. Holm runs over all contrasts (and points) of a metric. A change in % is the mean log ratio, given "
    "only where both arms are above zero and the second arm is at least 3 sd away from it."
)
DOSES = (
    "Mean and 95 % t interval over seeds at each value; paired: minus the arm it is held against, at equal seed, "
    "turned so that positive is better."
)
TRENDS = (
    "A line is fitted to each seed's points, positive where more of the swept value is better; the interval and the t "
    "test are over the seeds' slopes, Holm over all trends of a metric. A decade: the value is taken as its log10, for "
    "values that span more than 20 times. ρ: the mean over seeds of the rank correlation. A straight line misses what "
    "rises and falls again."
)


def treatment_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return these tables in the order of the report."""
    return [_criteria(report), _tradeoffs(report), *_doses(report), _trends(report)]


def percent(relative: Mapping[str, Any]) -> str:
    """Return a change in per cent with its interval, or why there is none."""
    if relative["mean"] is None:
        return f"n/a: {relative['reason']}"
    ends = relative["interval"]
    span = f" [{100 * ends[0]:+.3g}, {100 * ends[1]:+.3g}]" if ends else ""
    return f"{100 * relative['mean']:+.3g} %{span}"


def _criteria(report: Mapping[str, Any]) -> Table:
    rows = []
    for rule in report["criteria"]:
        for i, part in enumerate(rule["conditions"]):
            tail = f" {part['unit']}" if part["unit"] else ""
            rows.append(
                [
                    rule["name"] if not i else "  provided",
                    rule["who"],
                    rule["verdict"] if not i else NONE,
                    part["metric"],
                    part["asked"],
                    str(part["n"]),
                    NONE if part["mean"] is None else plain(part["mean"], "+" * part["change"]) + tail,
                    _ends(part),
                    rule["evidence"],
                    part["verdict"] + (f": {part['reason']}" if part["reason"] else ""),
                ]
            )
    head = ["criterion", "of", "verdict", "number", "asked", "n", "mean", "95 % interval", "evidence", "this bound"]
    return Table("Criteria", CRITERIA, head, rows, 5, 2)


def _ends(part: Mapping[str, Any]) -> str:
    ends = part["interval"]
    return interval(ends) if part["change"] or not ends else f"[{ends[0]:.4g}, {ends[1]:.4g}]"


def _tradeoffs(report: Mapping[str, Any]) -> Table:
    rows = []
    for row in report["tradeoffs"]:
        loss = row["loss"]
        unit = difference_unit(row["unit"])
        rows.append(
            [
                contrast_name(row),
                row["metric"] + (f" [{unit}]" if unit else ""),
                row["verdict"],
                str(row["n"]),
                plain(row["mean"], "+"),
                interval(row["interval"]),
                p_value(row["holm_p"]) + (f" (of {row['family']})" if row["family"] > 1 else ""),
                percent(row["relative"]),
                loss["metric"] if loss else NONE,
                plain(loss["mean"], "+") if loss else NONE,
                interval(loss["interval"]) if loss else NONE,
                percent(loss["relative"]) if loss else NONE,
            ]
        )
    head = [
        "contrast", "metric", "verdict", "n", "change", "95 % interval", "p (Holm)", "in %", "loss", "its change",
        "its 95 % interval", "its change in %",
    ]  # fmt: skip
    return Table("Geometry against loss", TRADEOFFS, head, rows, 3)


def _doses(report: Mapping[str, Any]) -> list[Table]:
    """Return one table for each swept key."""
    tables = []
    for key in dict.fromkeys(row["key"] for row in report["doses"]):
        rows = [_dose(row, p) for row in report["doses"] if row["key"] == key for p in row["points"]]
        head = [
            "arm",
            "metric",
            "fixed",
            key,
            "n",
            "mean",
            "95 % interval",
            "held against",
            "paired",
            "its 95 % interval",
        ]
        tables.append(Table(f"Outcomes against {key}", DOSES, head, rows, 3))
    return tables


def _dose(row: Mapping[str, Any], point: Mapping[str, Any]) -> list[str]:
    against, value, ends = point["against"], point["value"], point["interval"]
    return [
        row["arm"],
        row["metric"] + (f" [{row['unit']}]" if row["unit"] else ""),
        _fixed(row),
        f"{value:g}" if row["numeric"] else str(value),
        str(point["n"]),
        plain(point["mean"]),
        f"[{ends[0]:.5g}, {ends[1]:.5g}]" if ends else NONE,
        row["reference"] or NONE,
        plain(against["mean"], "+") if against else NONE,
        interval(against["interval"]) if against else NONE,
    ]


def _fixed(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in row["others"]) or NONE


def _trends(report: Mapping[str, Any]) -> Table:
    rows = []
    for row in report["doses"]:
        trend = row["trend"]
        per = "decade" if trend["logarithmic"] else "unit"
        rows.append(
            [
                row["arm"],
                row["metric"],
                row["key"],
                _fixed(row),
                str(len(trend["seeds"])),
                NONE if trend["mean"] is None else f"{plain(trend['mean'], '+')} per {per}",
                interval(trend["interval"]),
                p_value(trend["holm_p"]) + (f" (of {trend['family']})" if trend["family"] > 1 else ""),
                plain(trend["ranks"], "+"),
                trend["said"] + (f": {trend['reason']}" if trend["reason"] else ""),
            ]
        )
    head = ["arm", "metric", "against", "fixed", "n", "slope", "95 % interval", "p (Holm)", "ρ", "what can be claimed"]
    return Table("Trends over the sweep", TRENDS, head, rows, 4, 1)
