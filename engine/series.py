"""Numbers over steps, one file per series, appended in blocks by the one writer of a run.

`series_reader` says what the files hold. A hold is written on change only. A checkpoint records every length, and
`resume` puts the files back to it, so that a resumed run's series equal an uninterrupted one's byte for byte.
Loads no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError, StorageError
from .series_reader import (
    ROW,
    Rows,
    SeriesReader,
    at,
    key_problem,
    read_series,
    series_files,
    series_index,
    series_path,
)
from .storage import make_folder, read_bytes, storage_error, sync_folder, write_all, write_json
from .text import printable

__all__ = [
    "ROW",
    "Rows",
    "SeriesReader",
    "SeriesWriter",
    "at",
    "key_problem",
    "read_series",
    "series_index",
    "series_path",
]

Kind = Literal["point", "hold"]
Better = Literal["higher", "lower"]

_MOST_OPEN = 200
_MOST_LABELS = 4096
_MOST_BYTES = 1 << 40
_WAY_OUT = "the run cannot be resumed exactly; start it again with --replace"


class _Series:
    """What the writer knows of one series: rows on disk, rows waiting, and where the last one stands."""

    __slots__ = ("descriptor", "held", "ids", "key", "path", "rows", "step", "synced", "waiting")

    def __init__(self, key: str, path: Path, labels: list[str] | None) -> None:
        self.key, self.path = key, path
        self.descriptor = -1
        self.waiting: list[bytes] = []
        self.synced = True
        self.ids = None if labels is None else {label: number for number, label in enumerate(labels)}
        self.rows, self.step, self.held = self._look()

    def _look(self) -> tuple[int, int, float | None]:
        """Return rows, last step and last value of what lies on disk; a torn last row does not count."""
        try:
            with open(self.path, "rb", buffering=0) as file:
                rows = os.fstat(file.fileno()).st_size // ROW.itemsize
                last = os.pread(file.fileno(), ROW.itemsize, (rows - 1) * ROW.itemsize) if rows else b""
        except FileNotFoundError:
            return 0, -1, None
        except OSError as error:
            raise storage_error(self.path, "the series cannot be read", error) from error
        if not rows:
            return 0, -1, None
        row = np.frombuffer(last, ROW)[0]
        return rows, int(row["step"]), float(row["value"])

    def add(self, block: NDArray[Any]) -> None:
        first = int(block["step"][0])
        if first < self.step:
            raise DataError(f"series {self.key}: step {first} after step {self.step}; steps must not go back")
        self.step = int(block["step"][-1])
        self.waiting.append(block.tobytes())

    def open(self) -> int:
        """Return a descriptor that appends behind the last whole row."""
        if self.descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self.descriptor = os.open(self.path, flags, 0o666)
            if os.fstat(self.descriptor).st_size != self.rows * ROW.itemsize:
                os.ftruncate(self.descriptor, self.rows * ROW.itemsize)
        return self.descriptor

    def write(self) -> None:
        """Write the waiting rows at one go; what the disk took only in part is taken back and waits on."""
        data = b"".join(self.waiting)
        try:
            write_all(self.open(), data)
        except OSError as error:
            self.close()  # opening it again cuts off what was written in part
            raise storage_error(self.path, "the series cannot be written", error, len(data)) from error
        self.rows += len(data) // ROW.itemsize
        self.waiting.clear()
        self.synced = False

    def sync(self) -> None:
        if not self.synced:
            os.fsync(self.open())
            self.synced = True

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class SeriesWriter:
    """Writes the series of a run: `append` and `hold` gather rows, `flush` writes each series in one call."""

    def __init__(self, folder: Path) -> None:
        self._run = folder
        self._index = series_index(folder)
        self._series = {key: self._new(key) for key in self._index}
        self._open: dict[str, None] = {}
        self._changed = False
        self._unsynced_index = False

    def _new(self, key: str) -> _Series:
        return _Series(key, series_path(self._run, key), self._index[key]["labels"])

    def declare(
        self, key: str, *, kind: Kind = "point", unit: str = "", better: Better | None = None, volatile: bool = False
    ) -> None:
        """Say what a series is before its first row; saying the same again changes nothing."""
        entry = self._index.get(key)
        if entry is None:
            if problem := key_problem(key):
                raise DataError(f"series {printable(key, 80)}: {problem}")
            entry = self._index[key] = {"labels": None}
            self._series[key] = self._new(key)
        elif entry["kind"] != kind:
            raise DataError(f"series {key}: declared as {kind}, but it is a {entry['kind']} already")
        wanted = {**entry, "kind": kind, "unit": unit, "better": better, "volatile": volatile}
        self._changed |= wanted != entry
        entry.update(wanted)

    def append(self, key: str, steps: ArrayLike, values: ArrayLike) -> None:
        """Add rows to a point series; `steps` and `values` are one-dimensional and equally long."""
        series = self._of(key, "point")
        at, what = np.asarray(steps), np.asarray(values)
        if at.ndim != 1 or at.shape != what.shape:
            raise DataError(f"series {key}: {at.shape} steps for {what.shape} values; give two equally long rows")
        if not len(at):
            return
        if at.dtype.kind not in "iu":
            raise DataError(f"series {key}: steps must be whole numbers, not {at.dtype}")
        block = np.empty(len(at), ROW)
        block["step"], block["value"] = at, what
        series.add(block)

    def hold(self, key: str, step: int, value: float | str) -> None:
        """Let `value` stand from `step` on; a value that stands already writes nothing."""
        series = self._of(key, "hold")
        number = self._label(series, value) if isinstance(value, str) else self._plain(series, value)
        held = series.held
        if held is not None and (number == held or (number != number and held != held)):
            return
        series.add(np.array([(step, number)], ROW))
        series.held = number

    def _of(self, key: str, kind: Kind) -> _Series:
        entry = self._index.get(key)
        if entry is None:
            raise DataError(f"series {printable(key, 80)}: not declared; declare it before its first row")
        if entry["kind"] != kind:
            raise DataError(f"series {key}: is a {entry['kind']}, and was written as a {kind}")
        return self._series[key]

    def _plain(self, series: _Series, value: float) -> float:
        if series.ids is not None:
            raise DataError(f"series {series.key}: holds labels, so {value} cannot stand in it; give a text")
        return float(value)

    def _label(self, series: _Series, label: str) -> float:
        if series.ids is None:
            if series.held is not None:
                raise DataError(f"series {series.key}: holds numbers, so {printable(label, 80)!r} cannot stand in it")
            series.ids = {}
        if label not in series.ids:
            if len(series.ids) >= _MOST_LABELS:
                text = f"more than {_MOST_LABELS} different labels; a label is a constant text, log numbers as numbers"
                raise DataError(f"series {series.key}: {text}")
            series.ids[label] = len(series.ids)
            self._index[series.key]["labels"] = list(series.ids)
            self._changed = True
        return float(series.ids[label])

    def flush(self, sync: bool = False) -> None:
        """Write what waits, one call per series; with `sync` it also survives a power cut."""
        folder = self._run / "series"
        if not self._open and any(series.waiting for series in self._series.values()):
            make_folder(folder)
        if self._changed or (sync and self._unsynced_index):  # labels first: no row may name an unknown one
            write_json(self._run / "series.json", self._index, sync)
            self._changed, self._unsynced_index = False, not sync
        for series in self._series.values():
            if series.waiting:
                self._ready(series)
                series.write()
        if sync:
            self._sync(folder)

    def _ready(self, series: _Series) -> None:
        """Keep the number of open files below what a system allows; who waited longest is closed."""
        if series.key not in self._open:
            if len(self._open) >= _MOST_OPEN:
                oldest = next(iter(self._open))
                self._series[oldest].close()
                del self._open[oldest]
            self._open[series.key] = None

    def _sync(self, folder: Path) -> None:
        unsynced = [series for series in self._series.values() if not series.synced]
        try:
            for series in unsynced:
                self._ready(series)
                series.sync()
            if unsynced:
                sync_folder(folder)
        except OSError as error:
            raise storage_error(folder, "the series cannot be synced", error) from error

    def lengths(self) -> dict[str, int]:
        """Return the rows of every series, what waits included after writing it: what a checkpoint records."""
        self.flush()
        return {key: self._series[key].rows for key in sorted(self._series)}

    def resume(self, lengths: Mapping[str, int]) -> None:
        """Put every series back to a recorded length; those born later, and torn last rows, go.

        `resume({})` clears the folder for a run that starts afresh. Raises `StorageError` where rows that a
        checkpoint counts on are missing.
        """
        self.close()
        for key in lengths:
            if key not in self._index:
                raise self._lost(f"series {printable(key, 80)}")
        before = {key: dict(entry) for key, entry in self._index.items()}
        for key in {*self._index, *series_files(self._run)} - {*lengths}:
            self._index.pop(key, None)
            self._cut(key, 0)
        for key, rows in lengths.items():
            self._cut(key, rows)
            if self._index[key]["labels"] is not None:
                self._index[key]["labels"] = self._labels(key)
        self._series = {key: self._new(key) for key in self._index}
        self._changed = False
        if self._index != before:
            self._rewrite_index()

    def _rewrite_index(self) -> None:
        path = self._run / "series.json"
        if self._index:
            write_json(path, self._index)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise storage_error(path, "the index cannot be removed", error) from error

    def _cut(self, key: str, rows: int) -> None:
        path = series_path(self._run, key)
        try:
            size = path.stat().st_size if path.exists() else 0
            if size < rows * ROW.itemsize:
                have = size // ROW.itemsize
                raise StorageError(f"{printable(path)}: holds {have} rows where {rows} were recorded; {_WAY_OUT}")
            if not rows:
                path.unlink(missing_ok=True)
            elif size > rows * ROW.itemsize:
                os.truncate(path, rows * ROW.itemsize)
        except OSError as error:
            raise storage_error(path, "the series cannot be cut back", error) from error

    def _labels(self, key: str) -> list[str] | None:
        """Return the labels that the remaining rows name: they were given their ids in the order of the rows."""
        labels = self._index[key]["labels"]
        path = series_path(self._run, key)
        try:
            values = np.frombuffer(read_bytes(path, _MOST_BYTES) if path.exists() else b"", ROW)["value"]
        except OSError as error:  # not as a reader sees it: rows that cannot be read are not rows that are not there
            raise storage_error(path, "the series cannot be read", error) from error
        if not len(values):
            return None
        sound = bool(np.isfinite(values).all() and values.min() >= 0)
        used = int(values.max()) + 1 if sound else len(labels) + 1
        if used > len(labels):
            raise self._lost(f"labels of series {key}, of which {len(labels)} are there")
        return list(labels[:used])

    def _lost(self, what: str) -> StorageError:
        return StorageError(f"{printable(self._run / 'series.json')}: lost {what}; {_WAY_OUT}")

    def close(self) -> None:
        """Close the files; rows that wait are dropped, so `flush` first."""
        for series in self._series.values():
            series.close()
        self._open.clear()
