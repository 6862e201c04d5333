"""A study: every arm with every seed, what is finished kept, what is interrupted resumed, and a report at the end.

`run` is the one public entry for whatever drives runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import FolderOwned, StorageError, UsageError, guess
from .host import Registry, discover
from .order import Order, Outcome
from .rundir import RunDir, atomic_write, make_folder, read_json, write_json
from .spec import RunSpec, StudySpec, difference, load_study
from .storage import storage_error

Progress = Callable[[Sequence["Planned"]], contextlib.AbstractContextManager[Any]]


@dataclass
class Planned:
    """One run of a study before it is executed. `after` names the runs that it reads."""

    run: RunSpec
    folder: Path
    identity: str
    fingerprints: Mapping[str, str]
    sources: dict[str, Path] = field(default_factory=dict)
    after: list[str] = field(default_factory=list)
    keep: bool = False

    @property
    def name(self) -> str:
        return self.run.name


@dataclass(frozen=True)
class StudyResult:
    """Where a study lies, how its runs ended, its report, and the worst exit code among its runs."""

    folder: Path
    outcomes: Sequence[Outcome]
    report: dict[str, Any]
    code: int


def run(
    path: Path,
    runs: Path = Path("runs"),
    *,
    sets: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    replace: bool = False,
    take_over: bool = False,
    progress: Progress | None = None,
) -> StudyResult:
    """Validate a spec, run what is not finished, and report.

    Raises `SpecError` and `DataError` before anything is written, and `FolderOwned` where a folder holds a run of
    another identity. A run that fails does not stop the others; the report is written in any case.
    """
    registry = discover()
    spec = load_study(path, sets, registry)
    folder = runs / spec.study
    planned, threads = plan(spec, folder, registry)
    chosen = select(planned, arms, seeds)
    _make_room(chosen, replace)
    _write_study(spec, folder, planned, threads)
    orders = _orders(chosen, threads, take_over)
    with stopping() as stop, progress(chosen) if progress else contextlib.nullcontext():
        outcomes = _execute(orders, registry, stop, jobs)
    from .report import build_report

    try:
        report = build_report(folder)
    except StorageError as error:  # how the runs ended must be heard all the same
        ends = [f"run {o.name} {o.status} (exit code {o.code}): {o.error}" for o in outcomes if o.error]
        raise StorageError("\n".join([*ends, str(error)])) from error
    code = 130 if stop.is_set() else max((o.code for o in outcomes), key=_badness, default=0)
    return StudyResult(folder, outcomes, report, code)


def _badness(code: int) -> int:
    return (0, 4, 3, 5, 7, 6, 2, 1, 130).index(code) if code in (0, 4, 3, 5, 7, 6, 2, 1, 130) else 9


# ---------------------------------------------------------------------------------------------------- planning
def plan(spec: StudySpec, folder: Path, registry: Registry) -> tuple[list[Planned], int]:
    """Expand a study into runs with identities, sources after which they must come, and its thread count."""
    kept = read_json(folder / "study.json") or {}
    threads = _threads(spec, kept)
    seen: dict[str, Mapping[str, str]] = {}
    rows = [_planned(one, folder, registry, seen) for one in spec.runs()]
    by_name = {row.name: row for row in rows}
    for row in _by_reference(rows, spec, kept, by_name):
        row.identity = row.run.identity(row.fingerprints, _device(row.run), _identities(row, by_name))
        row.keep = _finished(row)
    return rows, threads


def _threads(spec: StudySpec, kept: Mapping[str, Any]) -> int:
    if spec.train.threads is not None:
        return spec.train.threads
    if isinstance(kept.get("threads"), int):
        return int(kept["threads"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


def _planned(one: RunSpec, folder: Path, registry: Registry, seen: dict[str, Mapping[str, str]]) -> Planned:
    fingerprints: dict[str, str] = {}
    for name, entry in one.tasks.items():
        key = f"{entry.kind}:{entry.config.model_dump_json()}"
        if key not in seen:
            seen[key] = registry.tasks[entry.kind].fingerprints(entry.config)
        fingerprints.update({f"{name}.{source}": value for source, value in seen[key].items()})
    return Planned(one, folder / one.name, "", fingerprints)


def _device(one: RunSpec) -> str:
    name = one.phases[0].train.device
    if name == "cpu":
        return name
    from .build import device_of

    return device_of(name).type


def _identities(row: Planned, by_name: Mapping[str, Planned]) -> dict[str, str]:
    return {plugin: by_name[source.name].identity for plugin, source in row.sources.items()}


def _by_reference(
    rows: Sequence[Planned], spec: StudySpec, kept: Mapping[str, Any], by_name: Mapping[str, Planned]
) -> Iterator[Planned]:
    """Resolve references, as recorded where they were recorded, and yield runs after the runs they read."""
    recorded = kept.get("replays") or {}
    seeds = list(spec.seeds)
    for row in rows:
        for plugin, (arm, seed) in row.run.refs().items():
            before = (recorded.get(row.name) or {}).get(plugin)
            source = by_name.get(before) if before else None
            if source is None:
                chosen = _seed_of(seed, row.run.seed, seeds)
                source = next((r for r in rows if _matches(r, arm, chosen, row.run.point)), None)
            if source is None:
                raise UsageError(
                    f"run {row.name}: plugin {plugin} reads arm {arm}, which has no run with the same point"
                )
            row.run = row.run.with_ref(plugin, source.run.seed)
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


def _matches(row: Planned, arm: str, seed: int, point: Mapping[str, Any]) -> bool:
    return row.run.arm == arm and row.run.seed == seed and (row.run.point == point or not row.run.point)


def _seed_of(seed: Any, own: int, seeds: Sequence[int]) -> int:
    if seed == "same":
        return own
    return seeds[(seeds.index(own) + 1) % len(seeds)] if seed == "next" else int(seed)


def _finished(row: Planned) -> bool:
    status = read_json(row.folder / "status.json") or {}
    return status.get("status") == "finished" and _identity_in(row.folder) == row.identity


def _identity_in(folder: Path) -> str | None:
    provenance = read_json(folder / "provenance.json") or {}
    return provenance.get("identity")


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


# ---------------------------------------------------------------------------------------------------- the folder
def _make_room(chosen: Sequence[Planned], replace: bool) -> None:
    """Refuse folders that hold another run, all at once; move them aside when asked to, and what failed with them."""
    found = {p.name: _identity_in(p.folder) for p in chosen}
    taken = [p for p in chosen if found[p.name] not in (None, p.identity) or (replace and _failed(p))]
    if taken and not replace:
        raise FolderOwned("\n".join(map(_conflict, taken)) + "\n--replace moves what is there to .old/")
    for p in taken:
        RunDir(p.folder).lock().release()  # refused where a living process writes
        make_folder(old := p.folder.parent / ".old")
        stem = f"{p.name}-{str(found[p.name])[:8]}"
        target = next(t for i in range(10**6) if not (t := old / (f"{stem}-{i}" if i else stem)).exists())
        try:
            p.folder.rename(target)
        except OSError as error:
            raise storage_error(p.folder, f"cannot be moved to {target}", error) from error


def _failed(p: Planned) -> bool:
    return (read_json(p.folder / "status.json") or {}).get("status") == "failed"


def _conflict(planned: Planned) -> str:
    from .yaml_reader import read

    lines: list[str] = []
    with contextlib.suppress(Exception):  # a spec that cannot be read has no difference to show
        lines = difference(read(planned.folder / "spec.yaml").data, planned.run.document())
    shown = "\n".join(f"    {line}" for line in lines[:12]) or "    the data or the device differ"
    return f"{planned.folder} holds another run of this name:\n{shown}"


def _write_study(spec: StudySpec, folder: Path, planned: Sequence[Planned], threads: int) -> None:
    make_folder(folder)
    atomic_write(folder / "study.yaml", spec.text().encode())
    replays: dict[str, dict[str, str]] = {
        p.name: {plugin: source.name for plugin, source in p.sources.items()} for p in planned if p.sources
    }
    index = spec.index()
    runs = [{"name": p.name, "arm": p.run.arm, "seed": p.run.seed, "point": p.run.point_name} for p in planned]
    write_json(folder / "study.json", {**index, "threads": threads, "replays": replays, "runs": runs})


def _orders(chosen: Sequence[Planned], threads: int, take_over: bool) -> list[tuple[Planned, Order | None]]:
    rows: list[tuple[Planned, Order | None]] = []
    for p in chosen:
        sources = dict(p.sources)
        order = Order(p.run, p.folder, p.identity, p.fingerprints, threads, sources, take_over)
        rows.append((p, None if p.keep else order))
        if not p.keep:
            queue(p)
    return rows


def queue(p: Planned) -> None:
    """Write a run's spec, and that it waits."""
    make_folder(p.folder)
    if (p.folder / "lock").exists():
        return  # whoever holds it writes here; the start that follows takes it over, or says who that is
    try:
        atomic_write(p.folder / "spec.yaml", p.run.text().encode())
        write_json(p.folder / "status.json", {"status": "queued", "heartbeat": time.time()})
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # an owner that came meanwhile swept it away
            raise


# ---------------------------------------------------------------------------------------------------- executing
@contextlib.contextmanager
def stopping() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event that runs obey between two updates; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` leaves it
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _execute(
    rows: Sequence[tuple[Planned, Order | None]], registry: Registry, stop: threading.Event, jobs: int
) -> list[Outcome]:
    done: dict[str, Outcome] = {p.name: Outcome(p.name, "kept") for p, order in rows if order is None}
    waiting = [(p, order) for p, order in rows if order is not None]
    if jobs > 1 and len(waiting) > 1:
        from .workers import Pool

        Pool(min(jobs, len(waiting)), stop).run(waiting, done)
    elif waiting:
        from .execute import execute  # loads torch, so not where all runs are kept

        for p, order in _in_order(waiting, done):
            if stop.is_set():
                done[p.name] = Outcome(p.name, "stopped", 130)
            else:
                done[p.name] = blocked(p, done) or execute(order, registry, stop)
    return [done[p.name] for p, _ in rows]


def _in_order(waiting: list[tuple[Planned, Order]], done: Mapping[str, Outcome]) -> Iterator[tuple[Planned, Order]]:
    left = list(waiting)
    while left:
        ready = next((row for row in left if all(name in done for name in row[0].after)), left[0])
        left.remove(ready)
        yield ready


def blocked(p: Planned, done: Mapping[str, Outcome]) -> Outcome | None:
    """Say that a run cannot start because a run it reads did not finish; None when it can."""
    bad = [name for name in p.after if name in done and done[name].status not in ("kept", "finished")]
    if not bad:
        return None
    text = f"reads run {bad[0]}, which did not finish"
    write_json(p.folder / "status.json", {"status": "failed", "error": text, "code": 3, "heartbeat": time.time()})
    return Outcome(p.name, "failed", 3, text)
