"""Ends of phases that any run may begin from: `<runs>/.cache/phases/<key>/`, complete or invisible, never changed.

An entry is what a run would hold that was killed at the end of the phase: its checkpoint, the rows of its series so
far, the records of its log so far, and its snapshots; `entry.json` has the sha256 of each file. What is small or still
grows is copied, the rest is linked. Loads no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from .checkpoint import CheckpointStore, Loaded
from .errors import CheckpointError
from .events_log import Record, parse
from .series_reader import ROW, series_path
from .storage import TEMPORARY, jsonable, make_folder, number, read_bytes, remove_quietly, sync_folder, write_new
from .text import printable, slug_problem

VERSION = 1
ENTRY, EVENTS, INDEX = "entry.json", "events.jsonl", "series.json"
LINKED = ("snapshots", "adapters")
OWN = ("start", "checkpoint", "resumed", "control", "cached", "error", "end")
"""Records that say how one run went, and nothing about the numbers."""

_BLOCK = 1 << 20
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)


def cache_of(root: Path) -> Path:
    """Return the folder of the cache that lies beside the studies in `root`."""
    return root / ".cache" / "phases"


def locks_of(root: Path) -> Path:
    """Return the folder in which there is one to lock for each entry that is in the making."""
    return root / ".cache" / "locks"


@dataclass(frozen=True)
class Entry:
    """An entry whose every file verified. `about` says which run it comes from, and when; `best` is of `select`."""

    path: Path
    about: Mapping[str, Any]
    loaded: Loaded

    @property
    def phases(self) -> list[str]:
        return list(self.about["phases"])

    @property
    def best(self) -> float | None:
        return number(self.about["best"])

    def records(self, select: Mapping[str, Any]) -> list[Record]:
        """Return the records that hold for any run; what was selected only where it was by the same metric."""
        lines = read_bytes(self.path / EVENTS, 1 << 32).splitlines()
        found = [record for line in lines if (record := parse(line)) is not None]
        return found if self.about["select"] == select else [one for one in found if not _selects(one)]


def _selects(record: Record) -> bool:
    chosen = record["event"] == "snapshot" and record.get("by") == "engine" and record.get("slug") == "selected"
    return chosen or "selects" in record


def shared(records: Sequence[Record]) -> list[Record]:
    """Return the records of a log that belong into an entry; of the warnings those that name a phase."""
    told = [record for record in records if record["event"] not in OWN]
    return [record for record in told if record["event"] != "warning" or "phase" in record]


# ---------------------------------------------------------------------------------------------------- writing
def publish(
    target: Path,
    staging: Path,
    run: Path,
    checkpoint: Path,
    lengths: Mapping[str, int],
    records: Sequence[Record],
    about: Mapping[str, Any],
) -> None:
    """Make an entry of what lies in a run's folder now; raises `OSError` and leaves nothing where the disk refuses.

    Who calls this holds the lock in `staging`, so there is one writer per entry; a damaged one is replaced.
    """
    make_folder(target.parent)
    stage = staging / f"{TEMPORARY}entry"
    try:
        remove_quietly(stage)
        os.mkdir(stage)
        place = stage / "checkpoints" / checkpoint.name
        for name in ("tensors.safetensors", "record.json", "manifest.json"):
            _link(checkpoint / name, place / name)
        _lay_series(run, stage, lengths)
        lines = b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)
        write_new(stage / EVENTS, lines)
        for name in _folders(records, about["phases"]):
            for path in sorted((run / name).rglob("*")):
                if path.is_file() and not path.name.startswith(TEMPORARY):
                    _link(path, stage / path.relative_to(run))
        write_new(stage / ENTRY, _told({**about, "files": dict(_hashes(stage))}))
        for folder in [path for path in stage.rglob("*") if path.is_dir()]:
            sync_folder(folder)
        sync_folder(stage)
        _displace(target)
        os.rename(stage, target)
        sync_folder(target.parent)
    finally:
        remove_quietly(stage)


def _folders(records: Sequence[Record], phases: Sequence[str]) -> list[str]:
    slugs = dict.fromkeys(str(record.get("slug")) for record in records if record["event"] == "snapshot")
    return [f"snapshots/{slug}" for slug in slugs if not slug_problem(slug)] + [f"adapters/{name}" for name in phases]


def _lay_series(source: Path, target: Path, lengths: Mapping[str, int]) -> None:
    """Copy an index, and of each series as many rows as are recorded; the files of a run grow, so they are not linked.

    Raises `OSError` where rows are missing.
    """
    if not lengths:
        return
    _new_file(target / INDEX, read_bytes(source / INDEX))
    for key, rows in lengths.items():
        path = series_path(source, key)
        data = read_bytes(path, 1 << 40)[: rows * ROW.itemsize] if rows else b""
        if len(data) < rows * ROW.itemsize:
            raise OSError(errno.EIO, "rows are missing", str(path))
        if rows:
            _new_file(series_path(target, key), data)


def _new_file(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    write_new(path, data)


def _link(source: Path, target: Path) -> None:
    """Give a file that is never changed, only replaced, a second name; copy it where the filesystem cannot."""
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copyfile(source, target)


def _displace(target: Path) -> None:
    if target.exists():
        gone = target.with_name(f"{TEMPORARY}{target.name}")
        remove_quietly(gone)
        os.rename(target, gone)
        remove_quietly(gone)


def _hashes(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each file with its hash; a checkpoint's own files are in its manifest."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and (not name.startswith("checkpoints/") or path.name == "manifest.json"):
            yield name, {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest()


def _told(about: Mapping[str, Any]) -> bytes:
    plain = jsonable(dict(about), ENTRY)
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps({"version": VERSION, "sha256": _seal(plain), "about": plain}, option=options)


def _seal(about: Any) -> str:
    return hashlib.sha256(orjson.dumps(about, option=orjson.OPT_SORT_KEYS)).hexdigest()


# ---------------------------------------------------------------------------------------------------- reading
def read_about(path: Path) -> dict[str, Any]:
    """Return what an entry says of itself; raises `ValueError` with the reason where it cannot be trusted."""
    try:
        told = orjson.loads(read_bytes(path / ENTRY))
    except OSError as error:
        raise ValueError(f"{ENTRY} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{ENTRY} is not JSON") from error
    if not isinstance(told, dict) or told.get("version") != VERSION:
        raise ValueError(f"{ENTRY} has another version than {VERSION}, which this ctr reads")
    about = told.get("about")
    if not isinstance(about, dict) or told.get("sha256") != _seal(about):
        raise ValueError(f"{ENTRY} does not match its sha256")
    return about


def read_entry(path: Path) -> Entry:
    """Return an entry once all of it is as it was written; raises `ValueError` with the reason otherwise."""
    about = read_about(path)
    if about.get("key") != path.name:
        raise ValueError(f"{ENTRY} is that of another entry, {printable(about.get('key'), 12)}")
    for name, told in about["files"].items():
        _check(path / name, name, told)
    try:
        loaded = CheckpointStore(path).newest()
    except CheckpointError as error:
        raise ValueError(str(error).splitlines()[-1].strip()) from error
    if loaded is None or loaded.path.name != about["checkpoint"]:
        raise ValueError("its checkpoint is missing")
    return Entry(path, about, loaded)


def _check(path: Path, name: str, told: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != told["bytes"]:
            raise ValueError(f"{name} holds {size:,} bytes, not the {told['bytes']:,} written")
        if _sha256(path) != told["sha256"]:
            raise ValueError(f"{name} does not match its sha256")
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error


def lay(entry: Entry, run: Path, select: Mapping[str, Any]) -> None:
    """Put an entry's series, snapshots and adapters into the folder of a run that has none; raises `OSError`."""
    _lay_series(entry.path, run, entry.loaded.record["series"])
    for name in entry.about["files"]:
        folder, _, rest = name.partition("/")
        if folder in LINKED and (entry.about["select"] == select or not rest.startswith("selected/")):
            (run / name).unlink(missing_ok=True)
            _link(entry.path / name, run / name)
    for folder in LINKED:
        for path in [run / folder, *(run / folder).glob("*/")]:
            if path.is_dir():
                sync_folder(path)
