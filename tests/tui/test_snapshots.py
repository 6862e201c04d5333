"""Each screen, as text, at three sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from ctr.engine import panels
from ctr.plugins.phase_controller import panel
from ctr.tui.app import Viewer

from .driving import drive, press, same_as_snapshot, screen_text, settle
from .fake_runs import study

SIZES = {"80x24": (80, 24), "120x40": (120, 40), "200x60": (200, 60)}
RUN_TABS = {"2": "rates", "3": "why", "4": "events", "5": "matrix", "6": "spec", "7": "origin", "8": "panels"}


@pytest.mark.parametrize("size", SIZES)
def test_every_screen_looks_as_it_did(size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study(tmp_path / "runs", seeds=(42, 137, 7), interval=3600.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(panels, "installed", lambda: {"phase_controller": panel.sections})

    async def walk(app: Viewer, pilot: Pilot[None]) -> None:
        async def look(name: str, *keys: str) -> None:
            await press(app, pilot, *keys)
            await settle(app, pilot)
            same_as_snapshot(f"{name}-{size}", screen_text(app))

        await look("runs")
        await look("run", "enter")
        await look("run-cursor", *["left"] * 8)
        for key, name in RUN_TABS.items():
            await look(f"run-{name}", key)
        await look("help", "question_mark")
        await look("confirm", "escape", "X")
        await look("study", "n", "v")
        await look("compare", "c")

    drive(Path("runs"), walk, SIZES[size])
