"""What lies where in `runs/<study>/<run>/`, who may write there, and how the living are asked to stop.

Loads no torch: the viewer reads runs through this module, and whatever it needs of storage and status is here.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from .errors import DataError, StorageError
from .lock import Lock, Owner
from .status import Heartbeat, Status, memory_bytes
from .storage import (
    TEMPORARY,
    atomic_write,
    jsonable,
    make_folder,
    number,
    read_bytes,
    read_json,
    remove_quietly,
    storage_error,
    write_json,
    write_new,
)
from .text import printable, slug_problem

__all__ = [
    "Heartbeat",
    "Lock",
    "Owner",
    "Request",
    "RunDir",
    "Status",
    "StudyDir",
    "What",
    "atomic_write",
    "jsonable",
    "make_folder",
    "memory_bytes",
    "number",
    "pending",
    "read_json",
    "request",
    "studies",
    "write_json",
]

What = Literal["stop", "pause", "resume", "checkpoint"]
_REQUEST = re.compile(r"\d{1,20}-\d{1,10}-[0-9a-f]{8}\.json\Z")
_MARKS = ("spec.yaml", "status.json", "events.jsonl", "provenance.json", "lock")


@dataclass(frozen=True)
class RunDir:
    """One run's folder and the names in it."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def status(self) -> Path:
        return self.path / "status.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def series_index(self) -> Path:
        return self.path / "series.json"

    @property
    def matrix(self) -> Path:
        return self.path / "matrix.json"

    def folder(self, *names: str) -> Path:
        """Return the path of a folder inside the run; raises `DataError` for a name that could lead out of it."""
        for name in names:
            if problem := slug_problem(name):
                raise DataError(f"{printable(name, 80)}: as the name of a folder in a run, this {problem}")
        return self.path.joinpath(*names)

    def lock(self, take_over: bool = False) -> Lock:
        """Create the folder where needed and become its one writer; raises `FolderOwned` naming pid and host.

        A dead owner on this host is inherited from, and `lock.taken_over` names it. What its last moment left
        unfinished is swept away.
        """
        return Lock.acquire(self.path, take_over)


@dataclass(frozen=True)
class StudyDir:
    """One study's folder: its index and its runs."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def index(self) -> dict[str, Any]:
        """Return what `study.json` holds now; empty where it is missing or malformed."""
        try:
            raw = read_json(self.path / "study.json")
        except DataError:
            return {}
        return raw if isinstance(raw, dict) else {}

    def runs(self) -> list[RunDir]:
        """Return the runs that exist on disk: those of the index in its order, then the others by name."""
        found = {run.name: run for run in map(RunDir, _folders(self.path)) if _is_run(run.path)}
        listed = self.index.get("runs")
        named = [entry.get("name") for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        first = [found.pop(name) for name in named if isinstance(name, str) and name in found]
        return first + list(found.values())


def studies(root: Path) -> list[StudyDir]:
    """Return the studies under `root`, by name; none where it is missing."""
    return [StudyDir(path) for path in _folders(root) if _is_study(path)]


def _folders(path: Path) -> Iterator[Path]:
    try:
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    except OSError:
        return
    for name in names:
        if (path / name).is_dir():
            yield path / name


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in _MARKS)


def _is_study(path: Path) -> bool:
    return (path / "study.json").exists() or (not _is_run(path) and any(_is_run(inner) for inner in _folders(path)))


@dataclass(frozen=True)
class Request:
    """What somebody asked a run to do. `who` and `time` come from outside and are for display."""

    what: What
    who: str
    time: float


def request(run: Path, what: What, who: str) -> None:
    """Ask the process that owns `run` for something; it obeys between two updates."""
    if what not in get_args(What):
        raise DataError(f"{printable(what, 80)}: no such request; known are {', '.join(get_args(What))}")
    if not run.is_dir():
        raise DataError(f"{printable(run)}: is no run folder")
    folder = run / "control"
    make_folder(folder)
    name = f"{time.time_ns()}-{os.getpid()}-{secrets.token_hex(4)}.json"
    data = orjson.dumps(jsonable({"what": what, "who": printable(who, 100), "time": time.time()}))
    temporary = folder / f"{TEMPORARY}{name}"
    try:
        write_new(temporary, data)
        os.rename(temporary, folder / name)
    except OSError as error:
        remove_quietly(temporary)
        raise storage_error(folder / name, "the request cannot be written", error, len(data)) from error


def pending(run: Path) -> list[Request]:
    """Return the requests that wait for this run, oldest first, and remove them; garbage is removed unheard."""
    folder = run / "control"
    try:
        names = sorted(name for name in os.listdir(folder) if _REQUEST.match(name))
    except OSError:
        return []
    heard = [_take(folder / name) for name in names]
    return sorted((found for found in heard if found is not None), key=lambda found: found.time)


def _take(path: Path) -> Request | None:
    try:
        raw = orjson.loads(read_bytes(path, 1 << 16))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raw = None
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        # a request that cannot be removed would be obeyed for ever
        raise storage_error(path, "the request cannot be removed", error, kind=StorageError) from error
    if not isinstance(raw, dict) or raw.get("what") not in get_args(What):
        return None
    when = number(raw.get("time"))
    return Request(raw["what"], printable(raw.get("who", ""), 100), when if when is not None and when >= 0 else 0.0)
