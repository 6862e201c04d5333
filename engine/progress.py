"""The live display of `ctr run`: what the status files of the runs say, a few times a second, on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .rundir import read_json
from .text import printable

if TYPE_CHECKING:
    from .study import Planned

MARKS = {"finished": "✓", "failed": "✗", "stopped": "■", "live": "▶", "paused": "‖", "queued": "·"}


@contextlib.contextmanager
def watch(planned: Sequence[Planned]) -> Iterator[None]:
    """Show the runs of a study while they train; a terminal gets a live table, a pipe one line per change."""
    from rich.console import Console

    console = Console(stderr=True)
    show = _live(console, planned) if console.is_terminal else _lines(planned)
    with show:
        yield


@contextlib.contextmanager
def _live(console: Any, planned: Sequence[Planned]) -> Iterator[None]:
    from rich.live import Live

    board = Board(planned)
    with Live(get_renderable=board.render, console=console, refresh_per_second=4, transient=True):
        yield


@contextlib.contextmanager
def _lines(planned: Sequence[Planned]) -> Iterator[None]:
    board, over = Board(planned), threading.Event()

    def follow() -> None:
        shown: dict[str, str] = {}
        while True:
            last = over.wait(0.5)
            for name, status in board.read().items():
                state = status.get("status", "queued")
                if shown.get(name) != state and state not in ("queued",):
                    shown[name] = state
                    print(
                        f"{MARKS.get(state, '?')} {name} {state} {facts(status)}".rstrip(), file=sys.stderr, flush=True
                    )
            if last:
                return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def facts(status: dict[str, Any]) -> str:
    """Return epoch, losses and metrics of a status on one line, as far as they are known."""
    words = []
    if status.get("epochs"):
        words.append(f"epoch {status.get('epoch', 0)}/{status['epochs']}")
    if isinstance(status.get("train_loss"), float):
        words.append(f"train {status['train_loss']:.4f}")
    for name, value in (status.get("val") or {}).items():
        if isinstance(value, int | float):
            words.append(f"val {printable(name, 20)} {value:.4g}")
    if status.get("error"):
        words.append(printable(status["error"], 300))
    return "  ".join(words)


class Board:
    """The table of a study's runs, drawn from their status files."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._planned = planned
        self._kept = {p.name for p in planned if p.keep}

    def read(self) -> dict[str, dict[str, Any]]:
        """Return the status of every run that is not kept; a file that cannot be read yet is an empty one."""
        found: dict[str, dict[str, Any]] = {}
        for p in self._planned:
            if p.name not in self._kept:
                with contextlib.suppress(Exception):  # a display must not stop a study
                    found[p.name] = read_json(p.folder / "status.json") or {}
        return found

    def render(self) -> Any:
        """Draw one line for each live run under a bar for the whole study."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        statuses = self.read()
        share = sum(_share(status) for status in statuses.values()) + len(self._kept)
        ended = sum(status.get("status") in ("finished", "failed", "stopped") for status in statuses.values())
        head = Table.grid(padding=(0, 1))
        total = len(self._planned)
        head.add_row(
            Text(f"{ended + len(self._kept)}/{total} runs"), ProgressBar(total=total, completed=share, width=40)
        )
        table = Table.grid(padding=(0, 2))
        for name, status in statuses.items():
            state = status.get("status", "queued")
            if state in ("live", "paused", "failed"):
                bar = ProgressBar(total=1.0, completed=_share(status), width=16)
                table.add_row(
                    Text(MARKS[state]), Text(name), bar, Text(facts(status), overflow="ellipsis", no_wrap=True)
                )
        return Group(head, table)


def _share(status: dict[str, Any]) -> float:
    if status.get("status") == "finished":
        return 1.0
    step, total = status.get("step"), status.get("total")
    return min(step / total, 1.0) if isinstance(step, int) and isinstance(total, int) and total else 0.0
