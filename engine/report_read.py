"""Read a study's folder for the report: every run's files, and a named problem wherever one cannot be read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import CtrError
from .matrix import Matrix, load
from .storage import number, read_json
from .text import printable

__all__ = ["Run", "Study", "mapping", "number", "read_study", "sequence", "strings", "text"]
_RUN = re.compile(r"(?P<arm>.+?)-s(?P<seed>\d{1,18})(?:-(?P<point>.+))?\Z")


@dataclass
class Run:
    """What one run folder says. `problems` names what is missing or malformed; the rest is then empty."""

    name: str
    arm: str
    seed: int
    point: str
    folder: Path
    status: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    matrix: Matrix | None = None
    problems: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of one kind, in order."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _by_kind(self) -> dict[str, list[dict[str, Any]]]:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for event in self.events:
            kinds.setdefault(text(event.get("event")), []).append(event)
        return kinds

    @cached_property
    def state(self) -> str:
        """Say how the run stands: what its status file says, else what its log ends with."""
        ends = self.of("end")
        said = text(self.status.get("status")) or (text(ends[-1].get("status")) if ends else "")
        return said or ("missing" if not self.folder.is_dir() else "unknown")

    @property
    def finished(self) -> bool:
        return self.state == "finished"

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """Return the records at the ends of epochs."""
        return [event for event in self.of("epoch") if event.get("kind") == "epoch"]

    def digest(self, slug: str) -> str | None:
        """Return the hash of a snapshot's weights."""
        found = [event.get("digest") for event in self.of("snapshot") if event.get("slug") == slug]
        return text(found[-1]) or None if found else None


@dataclass
class Study:
    """A study's index and its runs, in the order of the index."""

    folder: Path
    name: str
    index: Mapping[str, Any]
    runs: list[Run]
    problems: list[str]

    @property
    def arms(self) -> list[str]:
        return _unique([*strings(self.index.get("arms")), *(run.arm for run in self.runs)])

    @property
    def points(self) -> list[str]:
        """Return the points of the sweep in order; one empty name where there is none."""
        named = [text(mapping(point).get("name")) for point in sequence(self.index.get("points"))]
        used = {run.point for run in self.runs}
        return [p for p in _unique([*named, *(run.point for run in self.runs)]) if p in used]

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def contrasts(self) -> list[tuple[str, str]]:
        pairs = [strings(pair) for pair in sequence(self.index.get("contrasts"))]
        return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]

    def points_of(self, *arms: str) -> list[str]:
        """Return the points at which any of the arms has runs; an arm without points meets every point."""
        used = {run.point for run in self.runs if run.arm in arms}
        return [p for p in self.points if p in used and (p or used == {""})]

    def at(self, arm: str, seed: int, point: str) -> Run | None:
        """Return the run of an arm at a seed and a point, or its only one where the arm has no points."""
        found = {run.point: run for run in self.runs if run.arm == arm and run.seed == seed}
        return found.get(point) or (found.get("") if set(found) == {""} else None)

    def metric(self, name: str) -> tuple[str, str]:
        """Return unit and direction of a metric; a loss is better lower, anything else unknown higher."""
        known = mapping(mapping(self.index.get("metrics")).get(name))
        better = text(known.get("better")) or ("lower" if name.endswith("loss") else "higher")
        return text(known.get("unit")), "lower" if better == "lower" else "higher"


def read_study(folder: Path) -> Study:
    """Read the study in `folder`; never raises for what a file holds or lacks."""
    problems: list[str] = []
    index = mapping(_try(problems, "study.json", lambda: read_json(folder / "study.json"), {}))
    if not index:
        problems.append("study.json is missing or empty: runs are told by the names of their folders, no contrasts")
    entries = [_entry(folder, mapping(entry)) for entry in sequence(index.get("runs"))]
    listed = [run for run in entries if run]
    if len(listed) < len(entries):
        problems.append(f"study.json: {len(entries) - len(listed)} of its runs have no usable name or seed")
    runs = listed or [run for path in _folders(folder) if (run := _named(path))]
    known = {run.folder.name for run in runs}
    extra = [path.name for path in _folders(folder) if path.name not in known]
    if extra:
        problems.append(f"not part of the study as it stands, left out: {', '.join(extra)}")
    for run in runs:
        _fill(run)
    return Study(folder, text(index.get("study")) or folder.name, index, runs, problems)


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    inside = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name != "figures"]
    return sorted(inside, key=lambda p: p.name)


def _entry(folder: Path, entry: Mapping[str, Any]) -> Run | None:
    name, seed = text(entry.get("name")), entry.get("seed")
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name or not isinstance(seed, int):
        return None
    return Run(name, text(entry.get("arm")) or name, seed, text(entry.get("point")), folder / name)


def _named(path: Path) -> Run | None:
    match = _RUN.match(path.name)
    return Run(path.name, match["arm"], int(match["seed"]), match["point"] or "", path) if match else None


def _fill(run: Run) -> None:
    """Read every file of a run that the report needs."""
    from .events_log import read_events

    if not run.folder.is_dir():
        return
    here, wrong = run.folder, run.problems
    run.status = mapping(_try(wrong, "status.json", lambda: _present(here / "status.json"), {}))
    if run.status.get("status") == "queued" and not (here / "events.jsonl").exists():
        return  # nothing is missing from a run that has not begun
    run.provenance = mapping(_try(wrong, "provenance.json", lambda: _present(here / "provenance.json"), {}))
    run.spec = mapping(_try(wrong, "spec.yaml", lambda: _spec(here / "spec.yaml"), {}))
    run.events = _try(wrong, "events.jsonl", lambda: read_events(here), [])
    phases = {text(p.get("name")): text(p.get("task")) for p in map(mapping, sequence(run.spec.get("phases")))}
    run.matrix = _try(wrong, "matrix.json", lambda: load(here / "matrix.json", phases), None)
    if not run.events:
        wrong.append("events.jsonl holds no record")


def _present(path: Path) -> Any:
    value = read_json(path)
    if value is None:
        raise ValueError("is missing")
    return value


def _spec(path: Path) -> Any:
    from .yaml_reader import read

    return read(path).data if path.exists() else {}


def _try(problems: list[str], what: str, read: Callable[[], Any], default: Any) -> Any:
    """Return what `read` reads, or `default` with a line in `problems`."""
    try:
        return read()
    except (CtrError, OSError, ValueError) as error:
        problems.append(printable(f"{what}: {error}", 300))
        return default


def _unique(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def mapping(value: Any) -> dict[str, Any]:
    """Return `value` if it is a mapping, else an empty one: files may hold anything."""
    return dict(value) if isinstance(value, Mapping) else {}


def sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def strings(value: Any) -> list[str]:
    return [x for x in sequence(value) if isinstance(x, str)]
