"""The files of series as everyone reads them: rows, index, and a follower; no file's content raises.

Rows are (int64 step, float64 value), little-endian. A `point` series holds what was measured at a step. A `hold`
stands until its next row; its values are numbers, or ids of the labels in `series.json`. Loads no torch.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .storage import read_json

ROW: Final = np.dtype([("step", "<i8"), ("value", "<f8")])
Rows: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float64]]

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+(\[[A-Za-z0-9_.-]+\])?\Z")
_LONGEST_KEY = 200
_MOST_ROWS = 1 << 26  # a reader's bound against a file made to exhaust memory; 1 GiB
_END = ".f64"


def key_problem(key: object) -> str | None:
    """Say why something cannot be the key of a series, which is `<owner>.<name>` or `<owner>.<name>[<group>]`."""
    if not isinstance(key, str) or not _KEY.match(key):
        return "a key is <owner>.<name> or <owner>.<name>[<group>], of letters, digits, '_', '-' and '.'"
    return f"a key has at most {_LONGEST_KEY} characters" if len(key) > _LONGEST_KEY else None


def series_path(folder: Path, key: str) -> Path:
    return folder / "series" / (key + _END)


def series_index(folder: Path) -> dict[str, dict[str, Any]]:
    """Return kind, unit, better, volatile and labels of every series, every type checked.

    Without a readable `series.json` the files themselves are listed, as points without a unit.
    """
    try:
        raw = read_json(folder / "series.json")
    except DataError:
        raw = None
    if isinstance(raw, dict):
        return {key: _entry(value) for key, value in raw.items() if key_problem(key) is None}
    return {key: _entry({}) for key in series_files(folder)}


def series_files(folder: Path) -> list[str]:
    try:
        names = os.listdir(folder / "series")
    except OSError:
        return []
    keys = (name.removesuffix(_END) for name in names if name.endswith(_END))
    return sorted(key for key in keys if key_problem(key) is None)


def _entry(raw: Any) -> dict[str, Any]:
    about = raw if isinstance(raw, dict) else {}
    labels = about.get("labels")
    return {
        "kind": "hold" if about.get("kind") == "hold" else "point",
        "unit": about["unit"] if isinstance(about.get("unit"), str) else "",
        "better": about["better"] if about.get("better") in ("higher", "lower") else None,
        "volatile": about.get("volatile") is True,
        "labels": [str(label) for label in labels] if isinstance(labels, list) else None,
    }


class SeriesReader:
    """Follows one series while it grows; `restarted` says that the rows known before the last `poll` are void."""

    def __init__(self, folder: Path, key: str) -> None:
        self.restarted = False
        self._path = series_path(folder, key) if key_problem(key) is None else None
        self._rows = 0
        self._last = b""
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> Rows:
        """Return the rows that were added since the last call; all of them after a file was cut or replaced."""
        self.restarted = False
        try:
            data = self._read()
        except OSError:
            self._start_over()
            self._seen, data = None, b""
        rows = len(data) // ROW.itemsize
        if rows:
            self._rows += rows
            self._last = data[(rows - 1) * ROW.itemsize : rows * ROW.itemsize]
        return _rows(data)

    def _read(self) -> bytes:
        if self._path is None:
            return b""
        about = os.stat(self._path)
        seen = (about.st_ino, about.st_size, about.st_mtime_ns)
        if seen == self._seen:
            return b""
        self._seen = seen
        file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return self._new_rows(file)
        finally:
            os.close(file)

    def _new_rows(self, file: int) -> bytes:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        if self._rows:
            # the last known row is read again: a file that was cut and grew back shows itself there
            known = os.pread(file, ROW.itemsize, (self._rows - 1) * ROW.itemsize)
            if known != self._last:
                self._start_over()
        start = self._rows * ROW.itemsize
        size = min(os.fstat(file).st_size, _MOST_ROWS * ROW.itemsize) - start
        return os.pread(file, size, start) if size > 0 else b""

    def _start_over(self) -> None:
        self.restarted = self._rows > 0
        self._rows, self._last = 0, b""


def _rows(data: bytes) -> Rows:
    table = np.frombuffer(data, ROW, len(data) // ROW.itemsize)
    return np.ascontiguousarray(table["step"], np.int64), np.ascontiguousarray(table["value"], np.float64)


def read_series(folder: Path, key: str) -> Rows:
    """Return steps and values of a series; both empty where there is none. A torn last row is not yet there."""
    return SeriesReader(folder, key).poll()


def at(folder: Path, key: str, step: int) -> float | str | None:
    """Return what a hold stood at when `step` was made, as its label where it has labels; None before its first row."""
    steps, values = read_series(folder, key)
    row = int(np.searchsorted(steps, step, side="right")) - 1
    if row < 0:
        return None
    value = float(values[row])
    labels = series_index(folder).get(key, {}).get("labels")
    if labels is None:
        return value
    return labels[int(value)] if value == value and 0 <= value < len(labels) else None
