"""A study before anything trains: its runs, which runs they read, what their folders hold, how many threads they get.

Whatever lies in a folder and cannot be read is told on stderr and counts as not finished; it stops no other run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import CtrError, DataError, FolderOwned, UsageError, guess
from .host import Registry
from .rundir import RunDir, Status, StudyDir, read_json
from .spec import RunSpec, StudySpec
from .text import printable

MOST_THREADS = 1024


@dataclass
class Planned:
    """One run of a study before it is executed.

    `after` names the runs that it reads, `asked` holds how it named them, `refs` their identities. `status`, `found`
    (the identity) and `threads` are what its folder says already; `wrong` is why it cannot start.
    """

    run: RunSpec
    folder: Path
    identity: str
    fingerprints: Mapping[str, str]
    sources: dict[str, Path] = field(default_factory=dict)
    asked: dict[str, tuple[str, str | int]] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    status: Status | None = None
    found: str | None = None
    threads: int | None = None
    keep: bool = False
    wrong: CtrError | None = None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def here(self) -> RunDir:
        return RunDir(self.folder)


def plan(spec: StudySpec, folder: Path, registry: Registry) -> tuple[list[Planned], int]:
    """Expand a study into runs with identities, sources after which they must come, and its thread count."""
    kept = _index(folder)
    seen: dict[str, Mapping[str, str]] = {}
    rows = [_planned(one, folder, registry, seen) for one in spec.runs()]
    by_name = {row.name: row for row in rows}
    for row in _by_reference(rows, spec, kept, by_name):
        row.refs = {plugin: by_name[source.name].identity for plugin, source in row.sources.items()}
        row.identity = row.run.identity(row.fingerprints, _device(row.run), row.refs)
        _look(row)
    return rows, _threads(spec, folder, kept, rows)


def _index(folder: Path) -> dict[str, Any]:
    found = StudyDir(folder).index
    if not found and (folder / "study.json").exists():
        _tell(f"{folder / 'study.json'}: holds no index of a study; it is written anew")
    return found


def _tell(text: str) -> None:
    print(f"warning: {printable(text, 500)}", file=sys.stderr)


def _threads(spec: StudySpec, folder: Path, kept: Mapping[str, Any], rows: Sequence[Planned]) -> int:
    """Return the study's one thread count; another than that of runs that are finished is refused."""
    used = {row.threads for row in rows if row.keep and row.threads is not None}
    asked, before = spec.train.threads, kept.get("threads")
    if asked is not None:
        if other := sorted(used - {asked}):
            counts = ", ".join(map(str, other))
            raise FolderOwned(
                f"{folder} holds runs that were finished with {counts} threads, and train.threads asks for {asked}: "
                f"they would not be comparable to the bit; set train.threads: {other[0]}, or train all runs anew "
                "in another folder (--runs) or under another name (study)"
            )
        return asked
    if type(before) is int and 0 < before <= MOST_THREADS:
        return before
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    begun = [row.threads for row in rows if row.threads is not None]
    return min(begun, default=max(1, cores // 2))  # where the index is lost, as the runs that have begun


def _planned(one: RunSpec, folder: Path, registry: Registry, seen: dict[str, Mapping[str, str]]) -> Planned:
    return Planned(one, folder / one.name, "", fingerprints_of(one, registry, seen))


def fingerprints_of(one: RunSpec, registry: Registry, seen: dict[str, Mapping[str, str]]) -> dict[str, str]:
    """Return a hash of everything that a run reads; `seen` keeps what was hashed, for runs that read the same."""
    fingerprints: dict[str, str] = {}
    for name, entry in one.tasks.items():
        key = f"{entry.kind}:{entry.config.model_dump_json()}"
        if key not in seen:
            seen[key] = registry.tasks[entry.kind].fingerprints(entry.config)
        fingerprints.update({f"{name}.{source}": value for source, value in seen[key].items()})
    fingerprints.update(_model(one, registry, seen))
    return fingerprints


def _model(one: RunSpec, registry: Registry, seen: dict[str, Mapping[str, str]]) -> Mapping[str, str]:
    """Return a hash of what a model is loaded from; its first task says."""
    ask = getattr(registry.tasks[next(iter(one.tasks.values())).kind], "model_fingerprints", None)
    if ask is None:
        return {}
    key = f"model:{one.model.model_dump_json()}"
    if key not in seen:
        seen[key] = ask(one.model)
    return seen[key]


def _device(one: RunSpec) -> str:
    name = one.phases[0].train.device
    if name == "cpu":
        return name
    from .build import device_of

    return device_of(name).type


# ------------------------------------------------------------------------------------------------- what is there
def _look(row: Planned) -> None:
    """Note what a run's folder holds, and what bars the way."""
    here = row.here
    row.status = Status.from_file(here.status)
    if here.status.exists() and (row.status is None or row.status.status == "unknown"):
        _tell(f"{here.status}: says nothing usable; the run counts as not finished")
    about = _provenance(here)
    identity, threads = about.get("identity"), about.get("threads")
    row.found = identity if isinstance(identity, str) else None
    row.threads = threads if type(threads) is int else None
    row.keep = row.status is not None and row.status.status == "finished" and row.found == row.identity
    row.wrong = _wrong(row)


def _provenance(here: RunDir) -> dict[str, Any]:
    try:
        raw = read_json(here.provenance) if here.path.is_dir() else None
    except DataError as error:
        _tell(str(error))
        return {}
    return raw if isinstance(raw, dict) else {}


def _wrong(row: Planned) -> CtrError | None:
    if os.path.lexists(row.folder) and not row.folder.is_dir():
        return DataError(f"{row.folder}: is no folder, so run {row.name} cannot be written there; move it away")
    if row.found is None and any(row.here.folder("checkpoints").glob("*-*")):
        text = "names no run, so it is unknown whose checkpoints lie beside it; --replace moves the folder to .old/"
        return DataError(f"{row.here.provenance}: {text}")
    return None


# ---------------------------------------------------------------------------------------------------- references
def _by_reference(
    rows: Sequence[Planned], spec: StudySpec, kept: Mapping[str, Any], by_name: Mapping[str, Planned]
) -> Iterator[Planned]:
    """Resolve references, as recorded where the same was asked before, and yield runs after the runs they read."""
    for row in rows:
        for plugin, asked in row.run.refs().items():
            source = _recorded(row, plugin, asked, kept, by_name) or _named(row, asked, rows, list(spec.seeds))
            if source is None:
                text = f"run {row.name}: plugin {plugin} reads arm {asked[0]}, which has no run with the same point"
                raise UsageError(text)
            row.run = row.run.with_ref(plugin, source.run.seed)
            row.asked[plugin] = asked
            row.sources[plugin] = source.folder
            row.after.append(source.name)
    waiting = list(rows)
    done: set[str] = set()
    while waiting:
        ready = [row for row in waiting if done.issuperset(row.after)]
        if not ready:
            raise UsageError(f"runs {', '.join(row.name for row in waiting)} read each other in a circle")
        yield from ready
        done.update(row.name for row in ready)
        waiting = [row for row in waiting if row.name not in done]


def _recorded(
    row: Planned, plugin: str, asked: tuple[str, str | int], kept: Mapping[str, Any], by_name: Mapping[str, Planned]
) -> Planned | None:
    """Return the run that the same request was answered with before, so that a new seed re-pairs nobody."""
    before: Any = kept
    for key in ("replays", row.name, plugin):
        before = before.get(key) if isinstance(before, dict) else None
    if not isinstance(before, dict) or (before.get("arm"), before.get("seed")) != asked:
        return None
    source = by_name.get(str(before.get("run")))
    return source if source and _matches(source, asked[0], source.run.seed, row.run.point) else None


def _named(row: Planned, asked: tuple[str, str | int], rows: Sequence[Planned], seeds: Sequence[int]) -> Planned | None:
    arm, seed = asked
    chosen = _seed_of(seed, row.run.seed, seeds)
    return next((other for other in rows if _matches(other, arm, chosen, row.run.point)), None)


def _matches(row: Planned, arm: str, seed: int, point: Mapping[str, Any]) -> bool:
    return row.run.arm == arm and row.run.seed == seed and (row.run.point == point or not row.run.point)


def _seed_of(seed: str | int, own: int, seeds: Sequence[int]) -> int:
    if seed == "same":
        return own
    return seeds[(seeds.index(own) + 1) % len(seeds)] if seed == "next" else int(seed)


def as_asked(rows: Sequence[Planned]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return which run each reference was resolved to, beside the request: what `study.json` records."""
    return {row.name: {plugin: _answered(row, plugin) for plugin in row.sources} for row in rows if row.sources}


def _answered(row: Planned, plugin: str) -> dict[str, Any]:
    arm, seed = row.asked[plugin]
    return {"arm": arm, "seed": seed, "run": row.sources[plugin].name}


def select(planned: Sequence[Planned], arms: Sequence[str], seeds: Sequence[int]) -> list[Planned]:
    """Choose runs by arm and seed, with the runs they read; an arm or a seed that does not exist is refused."""
    known_arms, known_seeds = {p.run.arm for p in planned}, {p.run.seed for p in planned}
    for arm in arms:
        if arm not in known_arms:
            raise UsageError(f"--arm {arm}: this study has {', '.join(sorted(known_arms))}.{guess(arm, known_arms)}")
    for seed in seeds:
        if seed not in known_seeds:
            raise UsageError(f"--seed {seed}: this study has {', '.join(map(str, sorted(known_seeds)))}")
    by_name = {p.name: p for p in planned}
    names = {p.name for p in planned if (not arms or p.run.arm in arms) and (not seeds or p.run.seed in seeds)}
    while more := {source for name in names for source in by_name[name].after} - names:
        names |= more
    return [p for p in planned if p.name in names]
