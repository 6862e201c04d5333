"""`ctr tui` and `ctr status`: options in, a screen or one plain frame out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ctr.engine.errors import UsageError
from ctr.engine.text import printable

Runs = Annotated[Path, typer.Argument(help="a folder of studies, one study, or one run")]


def tui(
    runs: Runs = Path("runs"),
    once: Annotated[bool, typer.Option("--once", help="print one plain frame and end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print the same facts as JSON and end")] = False,
    theme: Annotated[str, typer.Option(help="ctr-dark, ctr-light, ctr-contrast, or any of Textual's")] = "ctr-dark",
    no_color: Annotated[bool, typer.Option("--no-color", help="one colour; NO_COLOR does the same")] = False,
) -> None:
    """Watch runs live, in the terminal; reads run folders only."""
    if once or as_json:
        _print(runs, as_json)
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("ctr tui needs a terminal; use --once or --json to print what it would show")
    if no_color:
        os.environ["NO_COLOR"] = "1"
    from .quick import view

    view(runs, theme)


def status(
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="print the facts as JSON")] = False,
) -> None:
    """Say in one line per study, and one per run at work, how things stand."""
    _print(runs, as_json, short=True)


def _print(runs: Path, as_json: bool, short: bool = False) -> None:
    from . import frame

    if not runs.is_dir():
        raise UsageError(f"{printable(runs)}: no such folder; give the folder that `ctr run` wrote to")
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 120
    text = frame.as_json(runs) if as_json else frame.short(runs) if short else frame.full(runs, width)
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # `ctr tui --once | head` closed the pipe: that is no error, and the interpreter must not try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
