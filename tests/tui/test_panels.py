"""Panels of plugins: what the built-in one says, and that a broken one takes nothing down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from textual.pilot import Pilot

from ctr.engine import panels
from ctr.engine.panels import Section, SeriesPlot, Table, Text
from ctr.plugins.phase_controller import panel
from ctr.tui.app import Viewer
from ctr.tui.sections import table

from .driving import drive, press, screen_text
from .fake_runs import FakeRun


class Records:
    """A run of thirty steps in two regimes."""

    name = "run"
    spec: Mapping[str, Any] = {}
    events: Sequence[Mapping[str, Any]] = (
        {"event": "state", "step": 0, "owner": "phase_controller", "name": "regime", "value": "S0"},
        {"event": "state", "step": 12, "owner": "phase_controller", "name": "regime", "value": "S1"},
        {"event": "mark", "step": 12, "owner": "phase_controller", "name": "transition", "why": "it fell", "epoch": 2},
        {"event": "mark", "step": 13, "owner": "somebody", "name": "other", "why": "", "epoch": 2},
        {"event": "epoch", "step": 30},
    )

    def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        n = 3 if key == "phase_controller.deriv" else 0
        return np.arange(n), np.zeros(n)


def test_the_controller_shows_its_regimes_its_transitions_and_its_signals() -> None:
    regimes, transitions, signals = panel.sections(Records())
    assert regimes.body == Table(
        ("regime", "from step", "to step", "steps", "share"), [("S0", 0, 12, 12, "40%"), ("S1", 12, 30, 18, "60%")]
    )
    assert transitions.body == Table(("step", "epoch", "what", "why"), [(12, 2, "transition", "it fell")])
    assert signals.body == SeriesPlot(["phase_controller.deriv"])


def test_a_run_without_the_controller_has_no_section_of_it() -> None:
    records = Records()
    records.events = records.events[3:]
    assert panel.sections(records) == []


@pytest.mark.parametrize(
    "answer",
    [None, [1], [Section("t", "text")], [Section("t", Table(("a", "b"), [(1,)]))], "raise"],  # type: ignore[arg-type]
)
def test_a_panel_that_fails_or_answers_wrongly_becomes_a_section_that_says_so(answer: Any) -> None:
    def broken(records: panels.Records) -> list[Section]:
        if answer == "raise":
            raise RuntimeError("\x1b[2Jboom")
        return answer

    def good(records: panels.Records) -> list[Section]:
        return [Section("fine", Text("hello"))]

    first, second = panels.sections(Records(), {"broken": broken, "good": good})
    assert first.title == "broken" and isinstance(first.body, Text) and "The panel failed" in first.body.text
    assert "\x1b" not in first.body.text and second.title == "fine"


def test_the_installed_panels_are_found_by_entry_point() -> None:
    assert panels.installed().get("phase_controller") is panel.sections


def test_tables_align_numbers_and_wrap_the_last_column() -> None:
    text = table(Table(("n", "why"), [(5, "a b c d e f g h"), (1234, "z")]), 16).plain.splitlines()
    assert text[0].split() == ["n", "why"]
    assert text[1].startswith("    5  a b c d e") and text[2].strip() == "f g h"
    assert text[3].startswith("1 234  z")


def test_the_viewer_shows_sections_and_survives_a_broken_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = FakeRun(tmp_path / "runs" / "demo", interval=3600.0)
    run.advance(100)
    monkeypatch.setattr(panels, "installed", lambda: {"bad": ImportError("gone"), "phase_controller": panel.sections})

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "down", "down", "enter", "8")
        text = screen_text(app)
        assert "The panel failed: ImportError: gone" in text
        assert "Regimes" in text and "S1_BOUNDARY" in text and "phase_controller.deriv" in text

    drive(tmp_path / "runs", script, (120, 50))
