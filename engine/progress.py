"""The live display of `ctr run`: what the status files of the runs say, a few times a second, on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .rundir import Status
from .text import printable

if TYPE_CHECKING:
    from .planning import Planned

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
                state = status.status
                if shown.get(name) != state and state != "queued":
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


def facts(status: Status) -> str:
    """Return epoch, losses and metrics of a status on one line, as far as they are known."""
    words = []
    if status.epochs:
        words.append(f"epoch {status.epoch or 0}/{status.epochs}")
    if status.train_loss is not None:
        words.append(f"train {status.train_loss:.4f}")
    words += [f"val {printable(name, 20)} {value:.4g}" for name, value in status.val.items()]
    if status.error:
        words.append(printable(status.error, 300))
    return "  ".join(words)


class Board:
    """The table of a study's runs, drawn from their status files."""

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._planned = planned
        self._kept = {p.name for p in planned if p.keep}
        self._before = {p.name: Status.from_file(p.here.status) for p in planned}

    def read(self) -> dict[str, Status]:
        """Return the status of every run that is not kept; one that an earlier start left waits for its turn."""
        found: dict[str, Status] = {}
        for p in self._planned:
            status, before = Status.from_file(p.here.status), self._before[p.name]
            if p.name not in self._kept and status is not None:
                waits = before is not None and before.heartbeat == status.heartbeat
                found[p.name] = Status("queued") if waits else status
        return found

    def render(self) -> Any:
        """Draw one line for each live run under a bar for the whole study."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        statuses = self.read()
        share = sum(_share(status) for status in statuses.values()) + len(self._kept)
        ended = sum(status.status in ("finished", "failed", "stopped") for status in statuses.values())
        head = Table.grid(padding=(0, 1))
        total = len(self._planned)
        head.add_row(
            Text(f"{ended + len(self._kept)}/{total} runs"), ProgressBar(total=total, completed=share, width=40)
        )
        table = Table.grid(padding=(0, 2))
        for name, status in statuses.items():
            state = status.status
            if state in ("live", "paused", "failed"):
                bar = ProgressBar(total=1.0, completed=_share(status), width=16)
                table.add_row(
                    Text(MARKS[state]), Text(name), bar, Text(facts(status), overflow="ellipsis", no_wrap=True)
                )
        return Group(head, table)


def _share(status: Status) -> float:
    if status.status == "finished":
        return 1.0
    return min(status.step / status.total, 1.0) if status.step and status.total else 0.0
