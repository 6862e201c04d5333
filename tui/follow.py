"""One run, followed: its files read on as they grow, in slices bounded by records and by time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ctr.engine.errors import CtrError
from ctr.engine.events_log import EventReader
from ctr.engine.series import SeriesReader
from ctr.engine.status import Status

from .facts import Facts, document, facts, mapping, text
from .history import History
from .picture import Axis, axis_from
from .pyramid import Pyramid

RECORDS = 1000
AXES = {"step": "", "epoch": "train.epoch", "items": "train.items", "seconds": "clock.seconds"}
TROUBLE = (OSError, CtrError, ValueError)


class About(NamedTuple):
    """What `series.json` says of a series."""

    key: str
    hold: bool = False
    unit: str = ""
    better: str = ""
    labels: tuple[str, ...] = ()


@dataclass
class Followed:
    """One series that somebody looks at."""

    data: Pyramid
    reader: SeriesReader


class RunStore:
    """The open run. Only what `want` names is read of the series; everything else is small."""

    def __init__(self, path: Path, study: str = "", planned: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.study = study or path.parent.name
        self.planned = planned
        self.history = History()
        self.index: dict[str, About] = {}
        self.series: dict[str, Followed] = {}
        self.gone = False
        self.version = 0
        self._events = EventReader(path)
        self._index_stamp: tuple[int, int] | None = None
        self._empty = Pyramid()

    def poll(self, seconds: float = 0.02, records: int = RECORDS) -> bool:
        """Read on for at most about `seconds`; say whether anything new was read."""
        deadline = time.perf_counter() + seconds
        before = self.version
        gone = not self.path.is_dir()
        if gone != self.gone:
            self.gone, self.version = gone, self.version + 1
        if not gone:
            self._read_index()
            self._read_events(records, seconds / 2)
            for key in list(self.series):
                self._read_series(key)
                if time.perf_counter() > deadline:
                    break
        return self.version != before

    def catch_up(self, seconds: float = 2.0) -> None:
        """Read until nothing new comes, for at most `seconds`: for a frame that is printed once."""
        deadline = time.perf_counter() + seconds
        while self.poll(0.2, 100_000) and time.perf_counter() < deadline:
            continue

    def want(self, keys: Iterable[str]) -> None:
        """Follow exactly these series; what nobody looks at any more is kept in memory but not read on."""
        wanted = dict.fromkeys(keys)
        for key in wanted:
            if key not in self.series and not set(key) & set("/\\\0"):
                self.series[key] = Followed(Pyramid(), SeriesReader(self.path, key))
        for key in [k for k in self.series if k not in wanted]:
            del self.series[key]

    def data(self, key: str) -> Pyramid:
        found = self.series.get(key)
        return found.data if found else self._empty

    def about(self, key: str) -> About:
        return self.index.get(key) or About(key)

    def keys(self) -> list[str]:
        """Return the series of the run: those of the engine first, then by owner."""
        order = {"train": 0, "val": 1, "calibration": 2, "test": 3, "clock": 9}
        return sorted(self.index, key=lambda k: (order.get(k.split(".", 1)[0], 5), k))

    def newest(self) -> int:
        """Return the newest step that any series read so far knows."""
        return max((int(f.data.steps[-1]) for f in self.series.values() if f.data.size), default=0)

    def axis(self, name: str) -> Axis:
        key = AXES.get(name, "")
        data = self.data(key) if key else self._empty
        if not data.size:
            return Axis()
        return axis_from(name, data.steps.astype(np.float64), data.values)

    def label_at(self, key: str, step: float) -> str:
        """Return the label that a held series of labels shows at `step`."""
        row = self.data(key).at(step)
        labels = self.about(key).labels
        if row is None or not np.isfinite(row[1]) or not 0 <= row[1] < len(labels):
            return ""
        return labels[int(row[1])]

    def facts(self) -> Facts:
        status = Status.from_file(self.path / "status.json")
        return facts(status, self.study, self.path.name, self.planned)

    def _read_index(self) -> None:
        path = self.path / "series.json"
        try:
            found = path.stat()
        except (OSError, ValueError):
            return
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp == self._index_stamp:
            return
        content = document(path)
        if isinstance(content, dict):
            self._index_stamp = stamp
            self.index = {k: _about(k, v) for k, v in list(content.items())[:5000]}
            self.version += 1

    def _read_events(self, records: int, seconds: float) -> None:
        try:
            found = self._events.poll(records, seconds)
        except TROUBLE:
            return
        if self._events.restarted:
            self.history.cut(-1)
            self.version += 1
        superseded = self._events.superseded_from
        if found or superseded is not None:
            self._take(found, superseded)
            self.version += 1

    def _take(self, found: list[dict[str, Any]], superseded: int | None) -> None:
        if superseded is not None:
            self.history.cut(superseded)
        self.history.extend(found)

    def _read_series(self, key: str) -> None:
        followed = self.series[key]
        try:
            steps, values = followed.reader.poll()
        except TROUBLE:
            return
        if followed.reader.restarted:
            followed.data.clear()
            self.version += 1
        if len(steps):
            followed.data.extend(steps, values)
            self.version += 1


def _about(key: str, value: object) -> About:
    given = mapping(value)
    labels = given.get("labels")
    return About(
        key,
        given.get("kind") == "hold",
        text(given.get("unit"), 20),
        text(given.get("better"), 10),
        tuple(text(x, 300) for x in labels[:10000]) if isinstance(labels, list) else (),
    )
