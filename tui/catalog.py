"""All studies and runs below a folder, looked at again and again without reading what did not change."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ctr.engine.status import Status

from .facts import FINAL, Facts, document, facts, gone, mapping, text

RELIST = 2.0  # seconds between looks for new folders whose parent seems unchanged
RUN_FILES = ("status.json", "spec.yaml", "events.jsonl", "series.json", "provenance.json")


@dataclass
class RunEntry:
    """One run folder: its facts, and what its status file looked like when they were read."""

    path: Path
    facts: Facts  # as judged at the last look
    planned: Mapping[str, Any] | None = None
    stamp: tuple[int, int, int] | None = None
    beat: float | None = None  # the last heartbeat seen
    changed_at: float | None = None  # reader's monotonic time when the heartbeat was last seen to change
    age: float = 0.0  # seconds of silence when first seen, by the wall clock
    seen_at: float = 0.0  # reader's monotonic time of that
    order: float = 0.0  # newest first: when the run began


@dataclass
class StudyEntry:
    """One study folder and the runs in it."""

    path: Path
    name: str
    index: Mapping[str, Any] = field(default_factory=dict)
    runs: dict[str, RunEntry] = field(default_factory=dict)
    stamp: int = 0
    index_stamp: tuple[int, int, int] | None = None
    listed_at: float = -1e9
    gone: bool = False

    @property
    def question(self) -> str:
        return text(self.index.get("question"), 300)

    def arms(self) -> list[str]:
        """Return the arms, in the order of the spec where it is known."""
        listed = self.index.get("arms")
        known = [text(a, 80) for a in listed] if isinstance(listed, list) else []
        return list(dict.fromkeys([a for a in known if a] + [r.facts.arm for r in self.runs.values()]))

    def prefer(self) -> str:
        """Return the name of the metric that the study compares on, without its split."""
        on = self.index.get("on")
        first = on[0] if isinstance(on, list) and on else on
        return text(first, 80).split(".", 1)[-1] if isinstance(first, str) else ""


class Catalog:
    """The folder given to the viewer: a folder of studies, one study, or one run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.studies: dict[str, StudyEntry] = {}
        self.version = 0
        self.missing = False
        self._turn = 0
        self._root_stamp = 0
        self._listed_at = -1e9

    def runs(self) -> Iterator[RunEntry]:
        for study in self.studies.values():
            yield from study.runs.values()

    def find(self, path: Path) -> RunEntry | None:
        return next((r for r in self.runs() if r.path == path), None)

    def study_of(self, path: Path) -> StudyEntry | None:
        return next((s for s in self.studies.values() if s.path in (path, path.parent)), None)

    def newest_live(self) -> RunEntry | None:
        live = [r for r in self.runs() if r.facts.label == "live"]
        return max(live, key=lambda r: r.order, default=None)

    def scan(self, now: float, tick: float, seconds: float = 0.03) -> bool:
        """Look for new folders and changed statuses for at most about `seconds`; say whether anything changed."""
        before, deadline = self.version, time.perf_counter() + seconds
        self._list_studies(tick)
        for study in list(self.studies.values()):
            self._list_runs(study, tick)
        runs = list(self.runs())
        active = [r for r in runs if r.facts.status not in FINAL]
        resting = [r for r in runs if r.facts.status in FINAL]
        fresh = [r for r in active if r.stamp is None and r.facts.status != "queued"]
        self._look(fresh + [r for r in active if r not in fresh] if len(fresh) < 50 else active, now, tick, deadline)
        if resting:
            turn = self._turn % len(resting)
            self._turn += self._look(resting[turn:] + resting[:turn], now, tick, deadline, most=200)
        return self.version != before

    def _look(self, runs: list[RunEntry], now: float, tick: float, deadline: float, most: int = 100000) -> int:
        for k, run in enumerate(runs[:most]):
            if self._status(run, now, tick):
                self.version += 1
            if k % 16 == 15 and time.perf_counter() > deadline:
                return k + 1
        return min(len(runs), most)

    def _list_studies(self, tick: float) -> None:
        try:
            stamp = os.stat(self.root).st_mtime_ns
        except (OSError, ValueError):
            self._mark_gone()
            return
        if self.missing:
            self.missing, self.version = False, self.version + 1
        if stamp == self._root_stamp and tick - self._listed_at < RELIST * 5:
            return
        self._root_stamp, self._listed_at = stamp, tick
        for path in self._study_folders():
            if path.name not in self.studies:
                self.studies[path.name] = StudyEntry(path, text(path.name, 120))
                self.version += 1

    def _mark_gone(self) -> None:
        if not self.missing:
            self.missing, self.version = True, self.version + 1

    def _study_folders(self) -> list[Path]:
        if _is_run(self.root):
            return [self.root.parent]
        if (self.root / "study.json").is_file() or (self.root / "study.yaml").is_file():
            return [self.root]
        folders = _folders(self.root)
        if folders and all(_is_run(f) for f in folders[:3]):
            return [self.root]
        return folders

    def _list_runs(self, study: StudyEntry, tick: float) -> None:
        try:
            stamp = os.stat(study.path).st_mtime_ns
        except (OSError, ValueError):
            if not study.gone:
                study.gone, self.version = True, self.version + 1
            return
        if study.gone:
            study.gone, self.version = False, self.version + 1
        if stamp == study.stamp and tick - study.listed_at < RELIST * 5:
            return
        study.stamp, study.listed_at = stamp, tick
        self._read_index(study)
        planned = _planned(study.index)
        only = self.root.name if _is_run(self.root) else None
        found = [f.name for f in _folders(study.path) if f.name in planned or _is_run(f)]
        for name in [*planned, *found]:
            if name in study.runs or (only is not None and name != only):
                continue
            found_facts = facts(None, study.name, name, planned.get(name))
            study.runs[name] = RunEntry(study.path / name, found_facts, planned.get(name))
            self.version += 1

    def _read_index(self, study: StudyEntry) -> None:
        stamp = _stamp(study.path / "study.json")
        if stamp != study.index_stamp:
            study.index_stamp = stamp
            study.index = mapping(document(study.path / "study.json"))
            self.version += 1

    def _status(self, run: RunEntry, now: float, tick: float) -> bool:
        """Look at one status file; say whether the row changed."""
        before, stamp = run.facts, _stamp(run.path / "status.json")
        if stamp is None:
            if run.stamp is not None and not run.path.exists():
                run.facts = gone(run.facts)
            return run.facts != before
        if stamp != run.stamp or before.status == "gone":
            status = Status.from_file(run.path / "status.json", now)
            if status is None and run.stamp is not None and before.status != "gone":
                return False  # a damaged file may be whole again at the next look
            run.stamp = stamp
            run.facts = facts(status, before.study, run.path.name, run.planned)
            run.order = run.facts.started or run.facts.heartbeat or stamp[0] / 1e9
        if run.facts.status in ("live", "paused"):
            run.facts = replace(run.facts, age=self._age(run, now, tick))
        return _visible(run.facts) != _visible(before)

    def _age(self, run: RunEntry, now: float, tick: float) -> float:
        """Return seconds of silence: by our own clock once a beat was seen to arrive, by the wall before that."""
        beat = run.facts.heartbeat
        if run.beat is not None and beat != run.beat:
            run.changed_at = tick
        first, run.beat = run.beat is None, beat
        if run.changed_at is not None:
            return max(0.0, tick - run.changed_at)
        if first:
            run.age, run.seen_at = run.facts.age, tick
        return max(0.0, run.age + tick - run.seen_at)


def _visible(found: Facts) -> tuple[Any, ...]:
    """Return what of a row can be seen: the age alone does not ask for a new picture."""
    hidden = ("age", "heartbeat", "monotonic")
    return (found.label, *(getattr(found, f.name) for f in fields(found) if f.name not in hidden))


def _planned(index: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    runs = index.get("runs")
    if not isinstance(runs, list):
        return {}
    named = ((mapping(r).get("name"), mapping(r)) for r in runs)
    return {n: r for n, r in named if isinstance(n, str) and n not in ("", ".", "..") and not set(n) & set("/\0")}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _folders(path: Path) -> list[Path]:
    """Return the folders in `path` that are not hidden, by name; none when it cannot be read."""
    try:
        with os.scandir(path) as found:
            return sorted(Path(e.path) for e in found if not e.name.startswith(".") and e.is_dir())
    except (OSError, ValueError):
        return []


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN_FILES)
