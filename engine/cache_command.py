"""`ctr cache`: what ends of phases are kept beside the studies, and how to be rid of them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from .errors import FolderOwned, StorageError, UsageError
from .lock import Lock
from .output import say
from .phase_cache import cache_of, locks_of, read_about
from .storage import TEMPORARY, remove_quietly, storage_error
from .text import printable


def cache(
    runs: Annotated[Path, typer.Argument(help="the folder of studies that `ctr run` wrote to")] = Path("runs"),
    clear: Annotated[bool, typer.Option("--clear", help="remove all entries")] = False,
) -> None:
    """List the ends of phases that new runs can begin from, or remove them; runs keep what they took."""
    if not runs.is_dir():
        raise UsageError(f"{printable(runs)}: no such folder; give the folder that `ctr run` wrote to")
    entries = [path for path in _folders(cache_of(runs)) if not path.name.startswith(TEMPORARY)]
    if clear:
        for path in entries:
            _remove(path)
        for path in _folders(locks_of(runs)):
            _remove_lock(path)
        for path in _folders(cache_of(runs)):  # what a killed removal left
            remove_quietly(path)
        say(f"removed {len(entries)} cached ends of phases")
        return
    total = 0
    for path in entries:
        size, alone = _size(path)
        total += alone
        say(f"{path.name[:12]}  {_bytes(size):>10}  {_age(path):>8}  {_told(path)}")
    say(f"{len(entries)} cached ends of phases; {_bytes(total)} would be freed by --clear")


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise storage_error(path, "the cache cannot be listed", error) from error


def _remove(path: Path) -> None:
    gone = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        path.rename(gone)  # it vanishes as a whole: a run that reads it takes it for damaged, and trains
    except OSError as error:
        raise storage_error(path, "the cached end of a phase cannot be removed", error) from error
    remove_quietly(gone)


def _remove_lock(path: Path) -> None:
    """Remove the folder of a lock, unless a run holds it."""
    try:
        lock = Lock.acquire(path)
    except (FolderOwned, StorageError):
        return
    lock.release()
    remove_quietly(path)


def _size(path: Path) -> tuple[int, int]:
    """Return the bytes of an entry, and how many of them no run shares by another name of the file."""
    found = [file.stat() for file in path.rglob("*") if file.is_file()]
    return sum(one.st_size for one in found), sum(one.st_size for one in found if one.st_nlink == 1)


def _told(path: Path) -> str:
    try:
        about = read_about(path)
        return printable(f"{', '.join(about['phases'])} of {about['run']}", 200)
    except (ValueError, KeyError, TypeError) as error:
        return f"damaged: {printable(error, 150)}"


def _age(path: Path) -> str:
    seconds = max(0.0, time.time() - path.stat().st_mtime)
    unit, name = next((u, n) for u, n in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if seconds >= u or u == 1)
    return f"{seconds / unit:.0f} {name}"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
