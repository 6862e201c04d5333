"""The tables of a report about several tasks, as plain text cells; undefined is n/a, and nothing is a percentage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .reading_names import NOTE
from .report_tables import NONE, Table, contrast_name, interval, p_value, plain

UNDEFINED = "n/a"
READINGS = (
    "Read from the evaluation matrix, larger is better in every row; mean over seeds, 95 % t interval. Learning: "
    "what a phase made of its own task, from the row before it or from row start. Backward transfer of t after p: what "
    "all phases since its own did to t. Interference: what phase p alone did to it. Retention: a ratio, 1 is kept; one "
    "of losses is unbounded and depends on the loss floor, so read it beside backward transfer."
)
DIFFERENCES = (
    "First arm minus second at equal seed; positive is better. Holm runs over the contrasts (and points) of a reading, "
    "not over readings: with many of them, one below 0.05 by chance is to be expected."
)
COSINES = (
    "Deltas: the mean over targets of the cosine of two phases' effective deltas. Gradients: the cosine of two tasks' "
    "gradients on their probes, at the start or after a phase. No direction is better. Mean over seeds with its 95 % t "
    "interval; differences are first arm minus second at equal seed."
)


def transfer_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables in the order of the report; `report_tables.tables` leaves out those without rows."""
    return [
        _contrasts(report), _matrices(report), _readings(report), _cosines(report), _cosine_contrasts(report),
        _names(report),
    ]  # fmt: skip


def _shown(value: float | None, sign: str = "") -> str:
    return UNDEFINED if value is None else plain(value, sign)


def _arm(row: Mapping[str, Any]) -> str:
    return f"{row['arm']} at {row['point']}" if row["point"] else str(row["arm"])


def _spread(row: Mapping[str, Any], sign: str = "+") -> list[str]:
    """Mean, sd, interval and n; an interval needs two seeds that differ."""
    return [_shown(row["mean"], sign), plain(row["sd"], "-"), interval(row["interval"]), str(row["n"])]


SPREAD = ["mean", "sd", "95 % t interval", "n"]


def _readings(report: Mapping[str, Any]) -> Table:
    rows = [[_arm(r), r["kind"], r["task"], r["after"], *_spread(r)] for r in report["transfer"]]
    return Table("Readings of the evaluation matrix", READINGS, ["arm", "reading", "task", "after", *SPREAD], rows, 4)


def _contrasts(report: Mapping[str, Any]) -> Table:
    rows = [
        [
            contrast_name(r), r["kind"], r["task"], r["after"], r["verdict"], *_spread(r), p_value(r["t_p"]),
            p_value(r["holm_p"]), f"{r['wins']}/{r['ties']}/{r['losses']}",
        ]
        for r in report["transfer_contrasts"]
    ]  # fmt: skip
    head = ["contrast", "reading", "task", "after", "verdict", *SPREAD, "p (t)", "p (Holm)", "won/tied/lost"]
    return Table("Differences of readings", DIFFERENCES, head, rows, 5)


def _matrices(report: Mapping[str, Any]) -> Table:
    """Put all arms in one table; a task that an arm does not have stays empty."""
    tasks = list(dict.fromkeys(task for matrix in report["matrices"] for task in matrix["tasks"]))
    rows = [row for matrix in report["matrices"] for row in _matrix_rows(matrix, tasks)]
    told = {f"{m['metric']}, {m['better']} is better" for m in report["matrices"]}
    note = f"{'; '.join(sorted(told))}. Mean over seeds, with half the width of the 95 % t interval."
    return Table("Evaluation matrix", note, ["arm", "after", *tasks, "n"], rows, 2)


def _matrix_rows(matrix: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[list[str]]:
    for label, cells in zip(matrix["labels"], matrix["cells"], strict=True):
        by_task = dict(zip(matrix["tasks"], cells, strict=True))
        shown = [_cell(by_task[task]) if task in by_task else NONE for task in tasks]
        yield [_arm(matrix), label, *shown, str(matrix["n"])]


def _cell(found: Mapping[str, Any]) -> str:
    half = f" ± {(found['interval'][1] - found['interval'][0]) / 2:.2g}" if found["interval"] else ""
    return _shown(found["mean"]) + half


def _pair(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['of']}s", f"{row['left']}, {row['right']}", row["after"] or NONE]


def _cosines(report: Mapping[str, Any]) -> Table:
    rows = [[_arm(r), *_pair(r), *_spread(r)] for r in report["cosines"]]
    return Table("Cosines", COSINES, ["arm", "of", "pair", "after", *SPREAD], rows, 4)


def _cosine_contrasts(report: Mapping[str, Any]) -> Table:
    rows = [[contrast_name(r), *_pair(r), *_spread(r)] for r in report["cosine_contrasts"]]
    return Table("Differences of cosines", COSINES, ["contrast", "of", "pair", "after", *SPREAD], rows, 4)


def _names(report: Mapping[str, Any]) -> Table:
    rows = [
        [n["reading"], n["ours"], n["source"], n["formula"], n["turned"], f"{n['better']} is better", n["where"]]
        for n in report["reading_names"]
    ]
    head = ["ours", "formula", "source's name", "source's formula", "its sign", "its direction", "where"]
    return Table("Names elsewhere", f"X_Y: loss on X after phase Y. {NOTE}", head, rows, 7)
