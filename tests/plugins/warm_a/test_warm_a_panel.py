"""What viewer and report show of warm A: every reset with its sizes, why the guard acted, and how A moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctr.engine import panels
from ctr.engine.events_log import read_events
from ctr.engine.panels import SeriesPlot, Table
from ctr.engine.series import read_series, series_index
from ctr.plugins.warm_a import WarmA
from ctr.plugins.warm_a.panel import COLUMNS, MOST, sections
from tests.engine.tiny import finish, make

from .standin import Documents


class Records:
    """A run as its folder holds it, or as it is given."""

    name, spec = "run", {}

    def __init__(self, events: Sequence[Mapping[str, Any]], folder: Path | None = None) -> None:
        self.events, self._folder = events, folder

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        if self._folder is None or key not in series_index(self._folder):
            return np.zeros(0, np.int64), np.zeros(0)
        return read_series(self._folder, key)


def record(index: int = 0, owner: str = "warm_a", step: int = 3, **reset: Any) -> dict[str, Any]:
    sizes = {"before": {"a": 2.0, "b": 1.5}, "after": {"a": 2.0, "b": 0.0}}
    did = {"owner": owner, "index": index, "a": "keep", "b": 0.0, "clear": ["a", "b"], "merge": False, **sizes}
    return {"event": "boundary", "step": step, "kind": "document", "reset": {**did, **reset}}


def test_a_run_shows_its_resets_and_its_series(tmp_path: Path) -> None:
    plugin = WarmA(WarmA.Config(a="norm", guard={"groups": 1}), None)
    finish(make(tmp_path, {"warm_a": plugin}, task=Documents(3, compared=True), epochs=2))
    events = list(read_events(tmp_path))
    table, guard, *plots = sections(Records(events, tmp_path))
    assert isinstance(table.body, Table) and table.title == "Resets" and table.body.columns == COLUMNS
    told = [r for r in events if r["event"] == "boundary" and r["reset"]]
    assert len(table.body.rows) == len(told) == 5
    for row, event in zip(table.body.rows, told, strict=True):
        reset = event["reset"]
        a, b = [reset["before"]["a"], reset["after"]["a"]], [reset["before"]["b"], 0.0]
        assert list(row[:8]) == [event["step"], event["kind"], reset["index"], "warm_a", *a, *b]
    policies = [row[8] for row in table.body.rows]
    assert policies[0] == "A norm, B zero, forgets A and B" and "A redraw, B zero, forgets A and B" in policies
    assert guard.title == "Guard" and isinstance(guard.body, Table) and guard.body.rows[0][1] == "guard"
    drawn = [plot.body.keys for plot in plots if isinstance(plot.body, SeriesPlot)]
    angles = [f"warm_a.angle_{which}" for which in ("min", "mean", "max")]
    assert drawn == [["warm_a.a_ratio"], ["warm_a.b_norm"], angles, ["warm_a.gain"]] and len(plots) == 4


def test_policies_are_told_in_words() -> None:
    events = [
        record(b=1.0, clear=[]),
        record(b=0.25, clear=["b"], a="pull"),
        record(merge=True),
        record(owner="engine", a="redraw"),
    ]
    (table,) = sections(Records(events))
    assert isinstance(table.body, Table)
    assert [(row[3], row[8]) for row in table.body.rows] == [
        ("warm_a", "A keep, B keep"),
        ("warm_a", "A pull, B x 0.25, forgets B"),
        ("warm_a", "A keep, B zero, forgets A and B, merged"),
        ("engine", "A redraw, B zero, forgets A and B"),
    ]


def test_of_a_long_stream_the_last_resets_are_shown() -> None:
    (table,) = sections(Records([record(index) for index in range(MOST + 5)]))
    assert isinstance(table.body, Table) and table.title == f"Resets, the last {MOST} of {MOST + 5}"
    assert [row[2] for row in table.body.rows] == list(range(5, MOST + 5))


def test_a_run_in_which_it_reset_nothing_has_no_section() -> None:
    assert sections(Records([])) == []
    others = [record(owner="engine"), {"event": "boundary", "step": 0, "kind": "run", "reset": None}]
    marks = [{"event": "mark", "owner": "warm_a", "name": "never-asked", "why": "x", "step": 3}]
    assert sections(Records([*others, *marks])) == []


def test_a_record_of_another_make_takes_nothing_down() -> None:
    strange = {"event": "boundary", "reset": {"owner": "warm_a", "clear": 7, "before": 1, "b": "none", "index": True}}
    (table,) = sections(Records([strange]))
    assert isinstance(table.body, Table)
    assert table.body.rows == [(None, "", None, "warm_a", None, None, None, None, "A –, B –")]


def test_the_panel_is_found_by_entry_point() -> None:
    assert panels.installed().get("warm_a") is sections
