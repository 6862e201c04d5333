"""What the viewer and the report show of the controller: when it was in which regime, and why it moved on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ctr.engine.panels import Records, Section, SeriesPlot, Table, Text

NAME = "phase_controller"
SIGNALS = ("deriv", "tau", "rho", "share", "beta")


def sections(records: Records) -> list[Section]:
    """Return the timeline of regimes, the transitions with their reasons, and the signals behind them."""
    mine = [r for r in records.events if r.get("owner") == NAME]
    states = [r for r in mine if r.get("event") == "state" and r.get("name") == "regime"]
    if not states:
        return []
    last = max((_whole(r.get("step")) for r in records.events), default=0)
    made = [Section("Regimes", Table(("regime", "from step", "to step", "steps", "share"), _timeline(states, last)))]
    made.append(_transitions([r for r in mine if r.get("event") == "mark"]))
    keys = [f"{NAME}.{name}" for name in SIGNALS]
    drawn = [key for key in keys if len(records.series(key)[0])]
    return [*made, Section("Signals", SeriesPlot(drawn))] if drawn else made


def _timeline(states: list[Mapping[str, Any]], last: int) -> list[tuple[str, int, int, int, str]]:
    starts = [_whole(r.get("step")) for r in states]
    rows = []
    for record, start, end in zip(states, starts, [*starts[1:], last], strict=True):
        steps = max(end - start, 0)
        share = f"{steps / last:.0%}" if last > 0 else "–"
        rows.append((str(record.get("value", "")), start, end, steps, share))
    return rows


def _transitions(marks: list[Mapping[str, Any]]) -> Section:
    if not marks:
        return Section("Transitions", Text("None so far: the controller is in the regime it began in."))
    rows = [
        (_whole(r.get("step")), r.get("epoch") if isinstance(r.get("epoch"), int) else None, *_told(r)) for r in marks
    ]
    return Section("Transitions", Table(("step", "epoch", "what", "why"), rows))


def _told(record: Mapping[str, Any]) -> tuple[str, str]:
    return str(record.get("name", "")), str(record.get("why", ""))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
