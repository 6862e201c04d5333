"""The event log of a run: one record per line, never cut, readable while it is being written.

Every record holds `seq`, `time`, `event` and `step`. `seq` rises over the whole file, resumes included, so that a
`resumed` record can say which records before it no longer count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from .errors import DataError
from .storage import jsonable, storage_error, write_all

LONGEST: Final = 1 << 20
"""The most bytes that one record may take; a longer line is garbage to every reader."""

_DEEPEST = 64
_CLIP = 20_000
_OWN = ("seq", "time", "event", "step")
Record = dict[str, Any]


class EventLog:
    """Appends records. A line that a crash tore is ended first, and `seq` goes on from the last whole record."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self._torn = False
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(self.path, flags, 0o666)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                write_all(self._file, b"\n")
            self.seq = _next_seq(self._file)
        except OSError as error:
            raise storage_error(self.path, "the event log cannot be opened", error) from error

    def write(self, event: str, step: int, **fields: Any) -> Record:
        """Append one record and return it; raises `StorageError` where the disk refuses, and then counts nothing."""
        if overlap := [name for name in _OWN if name in fields]:
            raise DataError(f"event {event}: the log itself writes {', '.join(overlap)}")
        about = {"seq": self.seq, "time": time.time(), "event": event, "step": step}
        record: Record = {**about, **_clip(jsonable(fields, f"event {event}"))}
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        if len(line) > LONGEST:
            raise DataError(f"event {event}: a record of {len(line):,} bytes; at most {LONGEST:,} are allowed")
        self._append(b"\n" + line if self._torn else line)
        self.seq += 1
        return record

    def _append(self, line: bytes) -> None:
        before = os.fstat(self._file).st_size
        try:
            write_all(self._file, line)
        except OSError as error:
            if os.fstat(self._file).st_size != before:  # part of the line may be there: end it next time, and
                self._torn = True  # never give its number again
                self.seq += 1
            raise storage_error(self.path, "an event cannot be written", error, len(line)) from error
        self._torn = False

    def resumed(self, checkpoint: str, from_seq: int, step: int, skipped: Sequence[tuple[str, str]] = ()) -> Record:
        """Record a resume: what stands before this line with a `seq` above `from_seq` no longer counts."""
        return self.write("resumed", step, checkpoint=checkpoint, from_seq=from_seq, skipped=skipped)

    def sync(self) -> None:
        """Make what was written survive a power cut; a checkpoint asks for it before it counts on the log."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise storage_error(self.path, "the event log cannot be synced", error) from error

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _clip(value: Any) -> Any:
    """Shorten texts that no reader would show in full, such as the message of a plugin's exception."""
    if isinstance(value, str):
        return value if len(value) <= _CLIP else value[:_CLIP] + "…"
    if isinstance(value, dict):
        return {name: _clip(item) for name, item in value.items()}
    return [_clip(item) for item in value] if isinstance(value, list) else value


def _next_seq(file: int) -> int:
    """Return the number after that of the last whole record, looking back from the end as far as needed."""
    size, window = os.fstat(file).st_size, 1 << 16
    while True:
        start = max(0, size - window)
        lines = os.pread(file, size - start, start).split(b"\n")
        found = [record["seq"] for line in lines[1 if start else 0 :] if (record := parse(line)) is not None]
        if found or not start:
            return max(found, default=-1) + 1
        window *= 8


def parse(line: bytes) -> Record | None:
    """Return the record on a line, or None for anything that is none: such a line stops no reader."""
    if len(line) > LONGEST:
        return None
    try:
        record = orjson.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not _is_record(record):
        return None
    brackets = line.count(b"[") + line.count(b"{")
    return None if brackets > _DEEPEST and _deeper(record, _DEEPEST) else record


def _deeper(value: Any, most: int) -> bool:
    """Say whether a value nests deeper than `most` levels, without recursion of our own."""
    level = [value]
    for _ in range(most):
        inner = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level = [item for items in inner for item in items]
    return any(isinstance(item, dict | list) for item in level)


def _is_record(record: Record) -> bool:
    seq, when, step, event = record.get("seq"), record.get("time"), record.get("step"), record.get("event")
    counts = type(seq) is int and type(step) is int and 0 <= seq < 2**53 and 0 <= step < 2**53
    if not counts or type(when) not in (int, float) or type(event) is not str:
        return False
    return event != "resumed" or type(record.get("from_seq")) is int


def standing(records: Iterable[Record]) -> list[Record]:
    """Return the records that still count: a `resumed` record drops what stands before it above its `from_seq`."""
    kept: list[Record] = []
    highest = -1
    for record in records:
        if record["event"] == "resumed" and record["from_seq"] < highest:
            kept = [earlier for earlier in kept if earlier["seq"] <= record["from_seq"]]
        kept.append(record)
        highest = max(highest, record["seq"])
    return kept


def read_events(folder: Path) -> list[Record]:
    """Return the records of a run that still count; torn and garbage lines are passed over, no file is no record."""
    reader, records = EventReader(folder), list[Record]()
    while found := reader.following(most=1 << 20, seconds=60.0):
        records += found
    return standing(records)


class EventReader:
    """Follows a log while it grows.

    After each `poll`: `restarted` says that the file was replaced and all that was known before is void;
    `superseded_from`, unless None, that the consumer must drop what it holds with a higher `seq` before it adds what
    was returned. `garbage` counts the lines that were no record.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "events.jsonl"
        self.restarted = False
        self.superseded_from: int | None = None
        self.garbage = 0
        self._offset = 0
        self._inode: int | None = None
        self._skipping = False

    def poll(self, most: int = 1000, seconds: float = 0.01) -> list[Record]:
        """Return at most `most` new records, spending about `seconds`; a torn last line is not yet there."""
        records = self.following(most, seconds)
        resumes = [record["from_seq"] for record in records if record["event"] == "resumed"]
        if not resumes:
            return records
        self.superseded_from = min(resumes)
        return standing(records)

    def following(self, most: int, seconds: float) -> list[Record]:
        """Return the next records as they stand in the file, also those that a later one supersedes."""
        self.restarted, self.superseded_from = False, None
        limit = time.monotonic() + seconds
        records: list[Record] = []
        try:
            if self._unchanged():
                return records
            file = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return records
        try:
            while len(records) < most and self._read(file, most, limit, records) and time.monotonic() < limit:
                pass
        except OSError:  # a folder, a stale network handle: what was read so far counts, the rest may come
            pass
        finally:
            os.close(file)
        return records

    def _unchanged(self) -> bool:
        try:
            about = os.stat(self.path)
        except FileNotFoundError:
            self._start_over(None)
            raise
        if about.st_ino != self._inode or about.st_size < self._offset:
            self._start_over(about.st_ino)
        return about.st_size == self._offset

    def _start_over(self, inode: int | None) -> None:
        self.restarted = self._offset > 0
        self._offset, self._inode, self._skipping = 0, inode, False

    def _read(self, file: int, most: int, limit: float, records: list[Record]) -> bool:
        """Take the lines of one block; False when no whole line is left."""
        block = os.pread(file, LONGEST, self._offset)
        end = block.rfind(b"\n") + 1
        if not end:
            if self._skipping or len(block) == LONGEST:  # a line too long for a record: pass over it as it comes
                self.garbage += not self._skipping
                self._skipping = True
                self._offset += len(block)
            return len(block) == LONGEST
        start = 0
        while start < end and len(records) < most:
            stop = block.index(b"\n", start) + 1
            self._line(block[start : stop - 1], records)
            start = stop
            if time.monotonic() > limit:
                break
        self._offset += start
        return True

    def _line(self, line: bytes, records: list[Record]) -> None:
        if self._skipping:
            self._skipping = False
            return
        record = parse(line)
        if record is not None:
            records.append(record)
        elif line.strip():
            self.garbage += 1
