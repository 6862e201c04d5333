"""What compositions of a run's adapters came to, over seeds: each method against the run's own last state.

Plugins keep records `routes` (the tasks, the matrix on the items reported) and `route` (one method: its route, gains
and weights), whoever writes them. Both sides of a difference come from one run, so that pairs share seed and items.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import stats
from .report_read import Run, Study, mapping, number, text
from .report_tables import NONE, Table, interval, p_value, plain
from .report_transfer import spread

NOTE = (
    "Held against the run's own last state, or a given route, at equal seed, on items by which nothing was chosen; "
    "positive is better. "
    "Gain of a task: how much lower its loss is. Objective: what was chosen by. Learning kept: the share of the last "
    "phase's learning that is left, minus 1. Holm runs over the methods of a row's quantity, arm and point."
)
ROUTES = (
    "The routes that were chosen, the most frequent with how many runs have it. Passes: forward passes over one task's "
    "half of the split, what begins above some blocks by its share; a gradient counts as three. Means over runs."
)
PROMPTS = (
    "A route for each item by the loss of its beginning, judged on the rest. Accuracy: items for which the route that "
    "was chosen is the best of the candidates; gaps are losses of the rest, a mean over tasks and runs."
)
ALONE = "Mean loss on the items reported, over runs, with one phase's adapter alone beside the base."
AGAINST = {"sequential": "last state"}
BANDS = {"early": "band 0", "middle": "band 1", "late": "band 2"}
COSTS, GAPS = ("candidates", "passes", "seconds"), ("oracle_gap", "uniform_gap", "fixed_gap")


def routes(study: Study) -> dict[str, Any]:
    """Return the report's parts about routes; every one is empty where no run kept such records."""
    held = {run.name: _records(run) for run in study.runs if run.finished}
    held = {name: found for name, found in held.items() if found[1]}
    cells = [(arm, point) for arm in study.arms for point in study.points_of(arm)]
    by_cell = {
        cell: found
        for cell in cells
        if (found := {r.seed: held[r.name] for r in _runs(study, *cell) if r.name in held})
    }
    return {
        "routes": [row for cell, found in by_cell.items() for row in _methods(cell, found)],
        "route_gains": [row for cell, found in by_cell.items() for row in _gains(cell, found)],
        "route_prompts": [row for cell, found in by_cell.items() for row in _prompts(cell, found)],
        "route_alone": [row for cell, found in by_cell.items() for row in _alone(cell, found)],
    }


Held = tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]


def _runs(study: Study, arm: str, point: str) -> list[Run]:
    return [run for run in study.runs if (run.arm, run.point) == (arm, point)]


def _records(run: Run) -> Held:
    """Return what is said of all routes of a run, and its methods by name; the last of equal names counts."""
    about: Mapping[str, Any] = {}
    methods: dict[str, Mapping[str, Any]] = {}
    for event in run.of("record"):
        data = mapping(event.get("data"))
        if event.get("name") == "routes":
            about = data
        elif event.get("name") == "route" and text(data.get("method")):
            methods[text(data.get("method"))] = data
    return about, methods


def _names(found: Mapping[int, Held]) -> list[str]:
    return list(dict.fromkeys(name for _, methods in found.values() for name in methods if name != "sequential"))


def _gains(cell: tuple[str, str], found: Mapping[int, Held]) -> Iterator[dict[str, Any]]:
    """Yield each method's gain of each task, its objective and the learning it keeps, over the seeds of an arm.

    All against the run's own last state, then against the first given route, where there is one.
    """
    of = {
        name: {seed: methods[name] for seed, (_, methods) in found.items() if name in methods} for name in _names(found)
    }
    tasks = dict.fromkeys(task for rows in of.values() for row in rows.values() for task in mapping(row.get("gains")))
    given = next((name for name, rows in of.items() if all(row.get("kind") == "route" for row in rows.values())), None)
    for against in ("sequential", *([given] if given else [])):
        for quantity in (*(f"gain of {task}" for task in tasks), "objective", "learning kept"):
            pairs = {}
            for name, rows in of.items():
                values = {
                    seed: (_value(row, quantity), _own(found[seed][1], against, quantity)) for seed, row in rows.items()
                }
                if name != against and any(value is not None for value, _ in values.values()):
                    pairs[name] = values
            results = [stats.paired(one, "higher", (name, against)) for name, one in pairs.items()]
            for name, result in zip(pairs, stats.judge(results), strict=True):
                about = {"arm": cell[0], "point": cell[1], "method": name, "against": against, "quantity": quantity}
                yield {**about, **result.as_dict()}


def _own(methods: Mapping[str, Mapping[str, Any]], against: str, quantity: str) -> float | None:
    """Return a quantity of what a method is held against; of the run's own last state 0, but for an objective."""
    if against == "sequential" and quantity != "objective":
        return 0.0
    return _value(mapping(methods.get(against)), quantity)


def _value(row: Mapping[str, Any], quantity: str) -> float | None:
    if quantity == "objective":
        return number(row.get("objective"))
    if quantity == "learning kept":
        kept = number(row.get("kept"))
        return None if kept is None else kept - 1
    return number(mapping(row.get("gains")).get(quantity.removeprefix("gain of ")))


def _methods(cell: tuple[str, str], found: Mapping[int, Held]) -> Iterator[dict[str, Any]]:
    for name in _names(found):
        rows = [methods[name] for _, methods in found.values() if name in methods]
        told = Counter(text(row.get("route")) for row in rows if row.get("route") is not None)
        yield {
            "arm": cell[0], "point": cell[1], "method": name, "kind": text(rows[0].get("kind")),
            "space": text(rows[0].get("space")), "n": len(rows), "chosen": told.most_common(),
            **{key: spread([number(row.get(key)) for row in rows])["mean"] for key in COSTS},
            "weights": _weights(rows),
            "tried": [_tried(row) for row in rows if row.get("tried")],
        }  # fmt: skip


def _weights(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the mean weight of each group of each phase; a group that a run's route does not name has the phase's."""
    every = [{p: mapping(groups) for p, groups in mapping(row.get("weights")).items()} for row in rows]
    found: dict[str, dict[str, float]] = {}
    for phase in dict.fromkeys(phase for one in every for phase in one):
        groups = sorted({group for one in every for group in one.get(phase, {})}, key=_natural)
        found[phase] = {}
        for group in groups:
            own = [one.get(phase, {}) for one in every]
            values = [number(of.get(group, of.get("", 0.0))) or 0.0 for of in own]
            found[phase][group] = sum(values) / len(values)
    return found


def _natural(name: str) -> list[Any]:
    """Order names by the numbers in them, as blocks are counted, and bands by their depth."""
    name = BANDS.get(name, name)
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _tried(row: Mapping[str, Any]) -> list[list[Any]]:
    found = row.get("tried")
    rows = found if isinstance(found, list) else []
    return [one for one in rows if isinstance(one, list) and len(one) == 3 and None not in map(number, one[1:])]


def _prompts(cell: tuple[str, str], found: Mapping[int, Held]) -> Iterator[dict[str, Any]]:
    for name in _names(found):
        rows = [
            methods[name] for _, methods in found.values() if mapping(methods.get(name)).get("kind") == "contextual"
        ]
        if not rows:
            continue
        tasks = dict.fromkeys(task for row in rows for task in mapping(row.get("accuracy")))
        yield {
            "arm": cell[0], "point": cell[1], "method": name, "chance": number(rows[0].get("chance")),
            "accuracy": {t: spread([number(mapping(r.get("accuracy")).get(t)) for r in rows]) for t in tasks},
            **{key: spread([number(row.get(key)) for row in rows]) for key in GAPS},
        }  # fmt: skip


def _alone(cell: tuple[str, str], found: Mapping[int, Held]) -> Iterator[dict[str, Any]]:
    abouts = [about for about, _ in found.values()]
    phases = dict.fromkeys(phase for about in abouts for phase in mapping(about.get("alone")))
    for phase in phases:
        rows = [mapping(mapping(about.get("alone")).get(phase)) for about in abouts]
        tasks = dict.fromkeys(task for row in rows for task in row)
        losses = {task: spread([number(row.get(task)) for row in rows]) for task in tasks}
        yield {"arm": cell[0], "point": cell[1], "phase": phase, "losses": losses}


# ------------------------------------------------------------------------------------------------------ tables
def route_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables in the order of the report."""
    return [_gain_table(report), _route_table(report), _prompt_table(report), _alone_table(report)]


def _arm(row: Mapping[str, Any]) -> str:
    return f"{row['arm']} at {row['point']}" if row["point"] else str(row["arm"])


def _pair(row: Mapping[str, Any]) -> str:
    return f"{row['method']} − {AGAINST.get(row['against'], row['against'])}"


def _gain_table(report: Mapping[str, Any]) -> Table:
    order = {(_arm(row), row["method"]): i for i, row in enumerate(report["routes"])}
    rows = [
        [
            _arm(r), _pair(r), r["quantity"], r["verdict"], plain(r["mean"], "+"), interval(r["interval"]),
            str(r["n"]), p_value(r["t_p"]), p_value(r["holm_p"]), f"{r['wins']}/{r['ties']}/{r['losses']}",
        ]
        for r in sorted(
            report["route_gains"], key=lambda r: (r["against"] != "sequential", order.get((_arm(r), r["method"]), 0))
        )
    ]  # fmt: skip
    head = ["arm", "method", "of", "verdict", "mean", "95 % t interval", "n", "p (t)", "p (Holm)", "won/tied/lost"]
    return Table("Differences of routes", NOTE, head, rows, 4)


def _route_table(report: Mapping[str, Any]) -> Table:
    rows = []
    for r in report["routes"]:
        route, count = r["chosen"][0] if r["chosen"] else (NONE, 0)
        shown = route if len(route) <= 120 else route[:117] + "..."
        often = f"{count} of {r['n']}" if r["chosen"] else NONE
        rows.append([
            _arm(r), r["method"], r["kind"], r["space"], shown, often, plain(r["candidates"]), plain(r["passes"]),
            plain(r["seconds"]),
        ])  # fmt: skip
    head = ["arm", "method", "kind", "space", "route", "in runs", "candidates", "passes", "seconds"]
    return Table("Routes that were chosen", ROUTES, head, rows, 6)


def _prompt_table(report: Mapping[str, Any]) -> Table:
    rows = []
    for r in report["route_prompts"]:
        shares = ", ".join(f"{task} {_share(found['mean'])}" for task, found in r["accuracy"].items())
        gaps = [_mean(r[key]) for key in GAPS]
        rows.append([_arm(r), r["method"], shares, _share(r["chance"]), *gaps])
    head = ["arm", "method", "accuracy", "by chance", "above the best of each item", "below a route by lot",
            "below the best single route"]  # fmt: skip
    return Table("A route for each item", PROMPTS, head, rows, 3)


def _share(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.0f} %"


def _mean(found: Mapping[str, Any]) -> str:
    return plain(found["mean"], "+") + (f" {interval(found['interval'])}" if found["interval"] else "")


def _alone_table(report: Mapping[str, Any]) -> Table:
    tasks = list(dict.fromkeys(task for row in report["route_alone"] for task in row["losses"]))
    rows = [
        [_arm(r), r["phase"], *(plain(r["losses"][task]["mean"]) if task in r["losses"] else NONE for task in tasks)]
        for r in report["route_alone"]
    ]
    return Table("Adapters by tasks", ALONE, ["arm", "adapter of", *tasks], rows, 2)


def sentences(report: Mapping[str, Any]) -> list[str]:
    """Return a line for each method of each arm, for a terminal: gains of tasks, and what is kept of the last one."""
    lines = []
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in (row for row in report["route_gains"] if row["against"] == "sequential"):
        rows.setdefault((_arm(row), row["method"]), []).append(row)
    for (arm, method), found in rows.items():
        parts = [_said(row) for row in found if row["quantity"].startswith("gain of ")]
        kept = next((row["mean"] for row in found if row["quantity"] == "learning kept"), None)
        tail = f"; keeps {_share(1 + kept)} of the last phase's learning" if kept is not None else ""
        lines.append(f"{arm}, route {method}: {', '.join(parts)}{tail}")
    return lines


def _said(row: Mapping[str, Any]) -> str:
    what = row["quantity"].removeprefix("gain of ")
    return f"{what} {plain(row['mean'], '+')}" + (f" {interval(row['interval'])}" if row["interval"] else "")


def groups_of(weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the groups that any phase weighs apart, in the order in which they were first named."""
    return list(dict.fromkeys(group for groups in weights.values() for group in groups if group))


def heat(row: Mapping[str, Any]) -> tuple[list[str], list[str], list[list[float]]]:
    """Return phases, groups and the mean weight of each group in each phase, for a method that parts groups."""
    groups, phases = sorted(groups_of(row["weights"]), key=_natural), list(row["weights"])
    cells = [[of.get(group, of.get("", 0.0)) for group in groups] for of in row["weights"].values()]
    return phases, groups, cells


def candidates(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return what each candidate of a grid kept and gained, as means over runs, by method."""
    found = {}
    for row in rows:
        points: dict[str, list[tuple[float, float]]] = {}
        for tried in row["tried"]:
            for route, kept, gain in tried:
                points.setdefault(str(route), []).append((float(kept), float(gain)))
        if points:
            found[row["method"]] = [
                (sum(x for x, _ in many) / len(many), sum(y for _, y in many) / len(many)) for many in points.values()
            ]
    return found
