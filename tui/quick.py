"""`ctr tui` without options: straight to the screen, without the command line's libraries."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path


def tui(words: Sequence[str]) -> bool:
    """Take `ctr tui [RUNS]` on a terminal; say whether it was that."""
    if len(words) > 1 or not all(word.strip() and not word.startswith("-") for word in words):
        return False
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    view(Path(*words) if words else Path("runs"))
    return True


def view(runs: Path, theme: str = "ctr-dark") -> None:
    """Show the viewer until it is left."""
    gc.disable()  # thousands of objects are made that stay; the viewer enables it once the screen stands
    from .app import Viewer

    Viewer(runs, theme).run()
