"""What the viewer and the report show of warm A: each reset with its sizes before and after, and how A has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctr.engine.panels import Cell, Records, Section, SeriesPlot, Table

NAME = "warm_a"
MOST = 60  # resets in the table; a long stream has hundreds, and the last ones tell how it goes
COLUMNS = ("step", "boundary", "index", "by", "|A|", "|A| after", "|B|", "|B| after", "policy")
PLOTS = {
    "Size of A against its start, before each reset": ("a_ratio",),
    "Size of B before each reset": ("b_norm",),
    "Turn of A's row space between resets, in radians": ("angle_min", "angle_mean", "angle_max"),
    "Gain between resets, in nats a token": ("gain",),
}


def sections(records: Records) -> list[Section]:
    """Return the resets of a run in which warm A answered, and its series; nothing of any other run."""
    resets = [r for r in records.events if r.get("event") == "boundary" and isinstance(r.get("reset"), Mapping)]
    if not any(r["reset"].get("owner") == NAME for r in resets):
        return []
    title = "Resets" if len(resets) <= MOST else f"Resets, the last {MOST} of {len(resets)}"
    made = [Section(title, Table(COLUMNS, [_row(r) for r in resets[-MOST:]]))]
    marks = [r for r in records.events if r.get("event") == "mark" and r.get("owner") == NAME]
    if marks:
        rows = [(_whole(r.get("step")), str(r.get("name", "")), str(r.get("why", ""))) for r in marks]
        made.append(Section("Guard", Table(("step", "what", "why"), rows)))
    for title, names in PLOTS.items():
        drawn = [key for name in names if len(records.series(key := f"{NAME}.{name}")[0])]
        if drawn:
            made.append(Section(title, SeriesPlot(drawn)))
    return made


def _row(record: Mapping[str, Any]) -> tuple[Cell, ...]:
    reset = record["reset"]
    sizes = [_number(_of(reset, when).get(side)) for side in "ab" for when in ("before", "after")]
    place = (_whole(record.get("step")), str(record.get("kind", "")), _whole(reset.get("index")))
    return (*place, str(reset.get("owner", "")), *sizes, _policy(reset))


def _policy(reset: Mapping[str, Any]) -> str:
    """Say what a reset did, such as `A keep, B zero, forgets A and B`."""
    b = _number(reset.get("b"))
    said = "–" if b is None else {0.0: "zero", 1.0: "keep"}.get(b, f"x {b:g}")
    clear = reset.get("clear")
    parts = [f"A {reset.get('a', '–')}", f"B {said}"]
    if isinstance(clear, list | tuple) and clear:
        parts.append("forgets " + " and ".join(str(side).upper() for side in clear))
    return ", ".join([*parts, *(["merged"] if reset.get("merge") else [])])


def _of(reset: Mapping[str, Any], when: str) -> Mapping[str, Any]:
    found = reset.get(when)
    return found if isinstance(found, Mapping) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
