"""Driving the viewer by keys, and reading its screen as text."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from ctr.tui.app import Viewer

SNAPSHOTS = Path(__file__).parent / "snapshots"
Script = Callable[[Viewer, Pilot[None]], Awaitable[None]]


def drive(root: Path, script: Script, size: tuple[int, int] = (120, 40), theme: str = "ctr-dark") -> None:
    """Open the viewer on `root` and let `script` press keys; whatever the viewer raises fails the test."""

    async def session() -> None:
        app = Viewer(root, theme)
        async with app.run_test(size=size) as pilot:
            await settle(app, pilot)
            await script(app, pilot)

    asyncio.run(session())


async def settle(app: Viewer, pilot: Pilot[None], looks: int = 2) -> None:
    """Let the viewer look at its files as its clock would, without waiting for the clock."""
    for _ in range(looks):
        await pilot.pause()
        app._look()
        _hurry(app)
    await pilot.pause()


def _hurry(app: Viewer) -> None:
    """Make what is drawn at most once a second due now."""
    for name in ("_drawn", "_since"):
        for widget in (app.screen, *app.screen.query("Preview")):
            if hasattr(widget, name):
                setattr(widget, name, getattr(widget, name) - 10.0 if getattr(widget, name) else 0.0)
    if hasattr(app.screen, "_built"):
        app.screen._built = (app.screen._built[0], 0.0)


async def press(app: Viewer, pilot: Pilot[None], *keys: str) -> None:
    await pilot.press(*keys)
    await settle(app, pilot)


def screen_text(app: Viewer) -> str:
    """Return the screen as lines of text."""
    strips = app.screen._compositor.render_strips(app.size)
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


def same_as_snapshot(name: str, text: str) -> None:
    """Compare with the stored screen; CTR_SNAPSHOTS=update writes it instead."""
    path = SNAPSHOTS / f"{name}.txt"
    if os.environ.get("CTR_SNAPSHOTS") == "update":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    stored = path.read_text(encoding="utf-8") if path.exists() else ""
    assert text == stored, f"{name} looks different; if that is meant, run with CTR_SNAPSHOTS=update and look at it"
