"""Asking a run for something: a question first, then a file in its `control/` folder."""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Literal

from rich.text import Text

from ctr.engine.errors import CtrError

from .clean import clean, plain
from .facts import FINAL, Facts

if TYPE_CHECKING:
    from ctr.engine.rundir import What
    from ctr.tui.app import Viewer

    from .catalog import RunEntry

ASK: dict[What, str] = {
    "pause": "Pause the run between two updates?",
    "resume": "Let the run go on?",
    "checkpoint": "Ask for a checkpoint now?",
    "stop": "Stop the run? It commits a checkpoint first and can be resumed.",
}


def who() -> str:
    """Name who asks, for the run's event log."""
    try:
        return plain(f"{getpass.getuser()}@{socket.gethostname()}", 100)
    except (OSError, KeyError):
        return plain(socket.gethostname(), 100)


def wanted(key: Literal["pause", "checkpoint", "stop"], facts: Facts) -> What:
    """Return what a key asks for; pausing what is paused means going on."""
    return "resume" if key == "pause" and facts.status == "paused" else key


class Control:
    """The control keys of a screen that shows one run."""

    run: RunEntry
    viewer: Viewer

    def action_control(self, key: Literal["pause", "checkpoint", "stop"]) -> None:
        from ctr.tui.screens.confirm import Confirm

        facts = self.run.facts
        if facts.status in FINAL or facts.label in ("gone", "queued"):
            self.viewer.say(
                "Nothing to ask", f"{facts.name} is {facts.label}; only a run that is live or paused listens."
            )
            return
        what = wanted(key, facts)
        question = Text(f"{ASK[what]}\n\n", "bold", end="")
        question.append_text(clean(f"{facts.study} › {facts.name}", "", 120))
        if facts.label == "stale":
            question.append("\n\nIt has been silent for long; it may not hear this.", "italic")

        def answered(yes: bool | None) -> None:
            if yes:
                self._send(what)

        self.viewer.push_screen(Confirm(question), answered)

    def _send(self, what: What) -> None:
        from ctr.engine.rundir import request

        try:
            request(self.run.path, what, who())
        except (CtrError, OSError) as error:
            self.viewer.say("The request could not be written", str(error), bad=True)
            return
        self.viewer.say("Asked", f"{self.run.facts.name}: {what}. The run's answer will stand among the decisions.")
