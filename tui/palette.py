"""What the command palette offers: every study and run, and the things a person does."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from .themes import THEMES

if TYPE_CHECKING:
    from .app import Viewer

MOST = 2000


def commands(app: Viewer) -> list[SystemCommand]:
    """Return titles (printable), help and actions."""
    from .messages import OpenStudy

    found = [
        SystemCommand("Keys", "All keys, by screen", app.action_help),
        SystemCommand("Screenshot", "Save a picture of the screen as SVG in this folder", app.action_screenshot),
        SystemCommand("Quit", "Leave the viewer; runs go on", app.action_quit),
    ]
    for theme in THEMES:
        found.append(SystemCommand(f"Theme {theme.name}", "Change colours", partial(setattr, app, "theme", theme.name)))
    for study in app.catalog.studies.values():
        go = partial(app.post_message, OpenStudy(study.path))
        found.append(SystemCommand(f"Study {study.name}", study.question or "Its seeds and verdicts", go))
    for run in list(app.catalog.runs())[:MOST]:
        title = f"Run {run.facts.study} {run.facts.name}"
        found.append(SystemCommand(title, run.facts.label, partial(app.open_run, run)))
    return found
