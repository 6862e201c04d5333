"""The pulse of a run: a thread that rewrites `status.json`, and a reader that trusts nothing in it."""

from __future__ import annotations

import math
import os
import resource
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from .errors import CtrError, DataError
from .storage import jsonable, number, read_bytes, write_json
from .text import printable

SILENT = 10
"""How many heartbeats a live run may miss before its reader calls it stale."""

STATES = ("queued", "live", "paused", "finished", "failed", "stopped")
_LARGEST = 1 << 20


class Heartbeat:
    """Keeps `status.json` fresh while training goes on; what the disk refuses is remembered, never raised.

    `update` only notes values, the thread writes them every `interval` seconds, `change` writes at once.
    """

    def __init__(self, folder: Path, interval: float = 1.0, **fields: Any) -> None:
        self.error: CtrError | None = None
        self._path, self._interval = folder / "status.json", interval
        self._begin = time.monotonic()
        about = {"status": "live", "pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}
        self._fields: dict[str, Any] = {**about, **fields}
        self._noting, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="ctr-heartbeat", daemon=True)
        self._thread.start()

    def update(self, **fields: Any) -> None:
        """Note values for the next beat; no I/O."""
        with self._noting:
            self._fields.update(fields)

    def change(self, status: str, **fields: Any) -> None:
        """Write a change of status at once, and so that it survives a power cut."""
        self.update(status=status, **fields)
        self._write(sync=True)

    def stop(self) -> None:
        """End the thread; the file stays as the last write left it."""
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            self._write()

    def _write(self, sync: bool = False) -> None:
        with self._writing:
            with self._noting:
                fields = dict(self._fields)
            fields["heartbeat"], fields["heartbeat_interval"] = time.time(), self._interval
            fields["monotonic"] = time.monotonic() - self._begin
            fields.setdefault("memory_bytes", memory_bytes())
            try:
                write_json(self._path, self._clean(fields), sync)
            except CtrError as error:
                self.error = error

    def _clean(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        clean = {}
        for name, value in fields.items():
            try:
                clean[name] = jsonable(value, name)
            except DataError as error:  # one odd value must not silence the heartbeat
                self.error = error
        return clean


def memory_bytes() -> int:
    """Return how much memory this process holds; its peak where /proc is missing."""
    try:
        pages = int(read_bytes(Path("/proc/self/statm")).split()[1])
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Status:
    """What `status.json` says, with every type checked and every text cleaned; None where it says nothing usable."""

    status: str = "unknown"
    doing: str = ""
    pid: int | None = None
    host: str = ""
    phase: str = ""
    phase_index: int | None = None
    phases: int | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    total: int | None = None
    batch: int | None = None
    batches: int | None = None
    steps_per_second: float | None = None
    eta_seconds: float | None = None
    heartbeat: float = 0.0
    heartbeat_interval: float = 1.0
    monotonic: float = 0.0
    started: float = 0.0
    train_loss: float | None = None
    val: Mapping[str, float] = field(default_factory=dict)
    lr: float | None = None
    memory_bytes: int | None = None
    code: int | None = None
    error: str | None = None
    age: float = 0.0

    @classmethod
    def from_file(cls, path: Path, now: float | None = None) -> Status | None:
        """Read a status; None where the file is missing or is not a JSON object."""
        try:
            raw = orjson.loads(read_bytes(path, _LARGEST))
            written = path.stat().st_mtime
        except (OSError, ValueError):
            return None
        return cls._from(raw, written, time.time() if now is None else now) if isinstance(raw, dict) else None

    @classmethod
    def _from(cls, raw: dict[str, Any], written: float, now: float) -> Status:
        known: dict[str, Any] = {}
        for name in ("doing", "host", "phase"):
            known[name] = printable(raw[name], 200) if isinstance(raw.get(name), str) else ""
        for name in _COUNTS:
            known[name] = _count(raw.get(name))
        for name in ("steps_per_second", "eta_seconds"):
            known[name] = _span(raw.get(name))
        for name in ("train_loss", "lr"):
            known[name] = number(raw.get(name))
        for name in ("monotonic", "started"):
            known[name] = _span(raw.get(name)) or 0.0
        val = raw.get("val") if isinstance(raw.get("val"), dict) else {}
        values = {printable(name, 100): number(value) for name, value in (val or {}).items()}
        beat = _span(raw.get("heartbeat"))
        beat = written if beat is None else beat
        # a heartbeat from the future (a clock was set back) is judged by the file's own time, and never below zero
        known["age"] = max(0.0, now - (min(beat, written) if beat > now else beat))
        return cls(
            status=raw["status"] if raw.get("status") in STATES else "unknown",
            heartbeat=beat,
            heartbeat_interval=min(_span(raw.get("heartbeat_interval")) or 1.0, 3600.0),
            val={name: value for name, value in values.items() if value is not None},
            error=printable(raw["error"]) if isinstance(raw.get("error"), str) else None,
            **known,
        )

    @property
    def stale(self) -> bool:
        """Say whether a run that should be alive has been silent too long."""
        return self.status in ("live", "paused") and self.age > SILENT * self.heartbeat_interval

    @property
    def label(self) -> str:
        """Return the one word for this run: its status, or `stale`."""
        return "stale" if self.stale else self.status


_COUNTS = (
    *("pid", "phase_index", "phases", "epoch", "epochs", "step", "total", "batch", "batches"),
    *("memory_bytes", "code"),
)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _span(value: Any) -> float | None:
    """Return a time or a rate: finite and not negative, or None."""
    given = number(value)
    return given if given is not None and 0 <= given < math.inf else None
