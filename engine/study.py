"""A study: every arm with every seed, what is finished kept, what is interrupted resumed, and a report at the end.

`run` is the one public entry for whatever drives runs.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .errors import FolderOwned, StorageError
from .host import Registry, discover
from .order import Order, Outcome
from .planning import Planned, as_asked, plan, select
from .rundir import atomic_write, make_folder, write_json
from .spec import StudySpec, difference, load_study
from .storage import storage_error

__all__ = ["Planned", "Progress", "StudyResult", "blocked", "plan", "queue", "run", "select", "stopping"]

Progress = Callable[[Sequence[Planned]], contextlib.AbstractContextManager[Any]]


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
    for p in chosen:
        _enqueue(p)
    with stopping() as stop, progress(chosen) if progress else contextlib.nullcontext():
        outcomes = _execute(chosen, partial(_order, threads=threads, take_over=take_over), registry, stop, jobs)
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


# ---------------------------------------------------------------------------------------------------- the folder
def _make_room(chosen: Sequence[Planned], replace: bool) -> None:
    """Refuse folders that hold another run, all at once; move them aside when asked to, and what failed with them."""
    there = [p for p in chosen if p.folder.is_dir()]
    taken = [p for p in there if p.found not in (None, p.identity) or (replace and (p.wrong or _failed(p)))]
    if taken and not replace:
        raise FolderOwned("\n".join(map(_conflict, taken)) + "\n--replace moves what is there to .old/")
    for p in taken:
        p.here.lock().release()  # refused where a living process writes
        make_folder(old := p.folder.parent / ".old")
        stem = f"{p.name}-{str(p.found)[:8]}"
        target = next(t for i in range(10**6) if not (t := old / (f"{stem}-{i}" if i else stem)).exists())
        try:
            p.folder.rename(target)
        except OSError as error:
            raise storage_error(p.folder, f"cannot be moved to {target}", error) from error
        p.status = p.found = p.wrong = None


def _failed(p: Planned) -> bool:
    return p.status is not None and p.status.status == "failed"


def _conflict(planned: Planned) -> str:
    from .yaml_reader import read

    lines: list[str] = []
    with contextlib.suppress(Exception):  # a spec that cannot be read has no difference to show
        lines = difference(read(planned.here.spec).data, planned.run.document())
    shown = "\n".join(f"    {line}" for line in lines[:12]) or "    the data or the device differ"
    return f"{planned.folder} holds another run of this name:\n{shown}"


def _write_study(spec: StudySpec, folder: Path, planned: Sequence[Planned], threads: int) -> None:
    make_folder(folder)
    atomic_write(folder / "study.yaml", spec.text().encode())
    index = spec.index()
    runs = [{"name": p.name, "arm": p.run.arm, "seed": p.run.seed, "point": p.run.point_name} for p in planned]
    write_json(folder / "study.json", {**index, "threads": threads, "replays": as_asked(planned), "runs": runs})


def _enqueue(p: Planned) -> None:
    """Let a run wait for its turn; a folder in which that cannot be written fails this run alone."""
    if not p.keep and p.wrong is None:
        try:
            queue(p)
        except StorageError as error:
            p.wrong = error


def queue(p: Planned) -> None:
    """Write a run's spec, and that it waits; how an earlier start of it ended stays until it begins."""
    make_folder(p.folder)
    if (p.folder / "lock").exists():
        return  # whoever holds it writes here; the start that follows takes it over, or says who that is
    try:
        atomic_write(p.here.spec, p.run.text().encode())
        if p.status is None or p.status.status not in ("failed", "stopped"):
            write_json(p.here.status, {"status": "queued", "heartbeat": time.time()})
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):  # an owner that came meanwhile swept it away
            raise


def _order(p: Planned, threads: int, take_over: bool) -> Order:
    return Order(p.run, p.folder, p.identity, p.fingerprints, threads, dict(p.sources), take_over, dict(p.refs))


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
    chosen: Sequence[Planned], order_of: Callable[[Planned], Order], registry: Registry, stop: threading.Event,
    jobs: int,
) -> list[Outcome]:  # fmt: skip
    done = {p.name: Outcome(p.name, "failed", p.wrong.exit_code, str(p.wrong)) for p in chosen if p.wrong}
    done.update({p.name: Outcome(p.name, "kept") for p in chosen if p.keep})
    waiting = [(p, order_of(p)) for p in chosen if p.name not in done]
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
    return [done[p.name] for p in chosen]


def _in_order(waiting: list[tuple[Planned, Order]], done: Mapping[str, Outcome]) -> Iterator[tuple[Planned, Order]]:
    left = list(waiting)
    while left:
        ready = next((row for row in left if all(name in done for name in row[0].after)), left[0])
        left.remove(ready)
        yield ready


def blocked(p: Planned, done: Mapping[str, Outcome]) -> Outcome | None:
    """Say that a run cannot start because a run it reads did not finish, and end it as that; None when it can."""
    source = next((done[name] for name in p.after if name in done and not done[name].good), None)
    if source is None:
        return None
    outcome = Outcome(p.name, source.status, source.code, f"reads run {source.name}, which did not finish")
    write_end(p, outcome)
    return outcome


def write_end(p: Planned, outcome: Outcome) -> None:
    """Write how a run ended that has no process of its own to say so; a disk that refuses changes no outcome."""
    about = {"status": outcome.status, "error": outcome.error, "code": outcome.code, "heartbeat": time.time()}
    with contextlib.suppress(StorageError):
        write_json(p.here.status, about)
