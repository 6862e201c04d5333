"""What the viewer and the report show of routes in one run: each method, its weights by group, and adapters alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ctr.engine.panels import Cell, Records, Section, Table

MOST = 40  # groups in a table of weights; one of every module of a large model is read in report.json


def sections(records: Records) -> list[Section]:
    """Return the routes of a run; nothing of a run that composed none."""
    kept = [r for r in records.events if r.get("event") == "record" and isinstance(r.get("data"), Mapping)]
    methods = [r["data"] for r in kept if r.get("name") == "route" and isinstance(r["data"].get("gains"), Mapping)]
    if not methods:
        return []
    tasks = list(dict.fromkeys(str(task) for one in methods for task in one["gains"]))
    head = ("method", "space", "objective", *(f"gain {task}" for task in tasks), "kept", "passes", "route")
    rows = [_row(one, tasks) for one in methods]
    made = [Section("Routes, on the items by which nothing was chosen", Table(head, rows))]
    for one in methods:
        if (weights := _weights(one)) is not None:
            made.append(Section(f"Weights of {one.get('method', '?')}", weights))
        if isinstance(one.get("accuracy"), Mapping):
            made.append(Section(f"Choices of {one.get('method', '?')}", _choices(one)))
    abouts = [r["data"] for r in kept if r.get("name") == "routes" and isinstance(r["data"].get("alone"), Mapping)]
    for about in abouts[-1:]:
        alone = {str(phase): row for phase, row in about["alone"].items() if isinstance(row, Mapping)}
        body = [(phase, *(_number(row.get(task)) for task in tasks)) for phase, row in alone.items()]
        if body:
            made.append(Section("Loss with one phase's adapter alone", Table(("adapter of", *tasks), body)))
    return made


def _row(one: Mapping[str, Any], tasks: Sequence[str]) -> tuple[Cell, ...]:
    gains = tuple(_number(one["gains"].get(task)) for task in tasks)
    route = str(one.get("route") or "by item")
    tail = (_number(one.get("kept")), _number(one.get("passes")), route if len(route) <= 60 else route[:57] + "...")
    return (str(one.get("method", "?")), str(one.get("space", "?")), _number(one.get("objective")), *gains, *tail)


def _weights(one: Mapping[str, Any]) -> Table | None:
    """Return the weights of groups by phase, None where no phase parts any."""
    phases = {str(p): g for p, g in _mapping(one.get("weights")).items() if isinstance(g, Mapping)}
    groups = list(dict.fromkeys(str(group) for of in phases.values() for group in of if group))
    if not groups:
        return None
    rows = [(group, *(_number(of.get(group, of.get("", 0.0))) for of in phases.values())) for group in groups[:MOST]]
    return Table(("group", *phases), rows)


def _choices(one: Mapping[str, Any]) -> Table:
    routes = one.get("candidate_routes")
    names = [str(route) for route in routes] if isinstance(routes, list) else []
    rows = []
    for task, share in one["accuracy"].items():
        counts = _mapping(one.get("chosen")).get(task)
        many = [_number(n) for n in counts] if isinstance(counts, list) else []
        rows.append((str(task), _number(share), *(many[i] if i < len(many) else None for i in range(len(names)))))
    return Table(("task", "accuracy", *names), rows)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
