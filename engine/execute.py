"""One run, from what its folder holds to its end: build, resume if there is a checkpoint, train, say how it ended."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from . import resume
from .build import Built, build, settle_exactness
from .checkpoint import CheckpointStore, Loaded
from .errors import CtrError, GuardError, Interrupted, StorageError
from .events_log import EventLog
from .host import Registry
from .keeper import Keeper
from .kernel import Kernel
from .memory import account, exhausted
from .order import Order, Outcome
from .phase_keys import phase_keys
from .phase_reuse import Reuse
from .provenance import add_provenance, read_provenance, versions, write_provenance
from .recorder import Recorder
from .rundir import Heartbeat, RunDir, atomic_write
from .series import SeriesWriter
from .storage import TEMPORARY, remove_quietly, storage_error, sync_folder
from .text import printable


def execute(
    order: Order, registry: Registry, stop: threading.Event, after_update: Callable[[int], None] | None = None
) -> Outcome:
    """Train a run to its end, from its newest checkpoint if it has one; never raises for what a run can do wrong.

    `after_update` is told the number of updates after each; it is how an interruption is put at an exact place.
    """
    run = RunDir(order.folder)
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        with run.lock(order.take_over) as lock:
            return _locked(order, run, registry, stop, lock, after_update)
    except CtrError as error:
        return Outcome(order.run.name, "failed", error.exit_code, str(error))
    except OSError as error:
        return Outcome(order.run.name, "failed", StorageError.exit_code, f"{order.folder}: {error.strerror or error}")
    except Exception as error:  # one run must not take the others with it, whatever is wrong with it
        return Outcome(order.run.name, "failed", 1, _told(error))


def _locked(
    order: Order, run: RunDir, registry: Registry, stop: threading.Event, lock: Any, after_update: Any
) -> Outcome:
    heartbeat = Heartbeat(run.path, phases=len(order.run.phases))
    heartbeat.change("live", doing="preparing")
    events: EventLog | None = None
    kernel: Kernel | None = None
    closing = contextlib.ExitStack()
    text: str | None = "interrupted at once, without a checkpoint"
    status, code = "stopped", Interrupted.exit_code
    try:
        events = EventLog(run.path)
        kernel = _prepare(order, run, registry, events, heartbeat, stop, after_update, closing)
        if lock.taken_over:  # after the resume, whose record supersedes what stands before it
            _warn(events, kernel, f"lock taken over from {printable(lock.taken_over, 200)}")
        kernel.run()
        kernel.log.flush(sync=True)
        status, code, text = "finished", 0, None
    except Interrupted as error:
        status, code, text = "stopped", error.exit_code, str(error)
    except Exception as error:
        status, code, text = "failed", getattr(error, "exit_code", 1), _told(error, kernel)
        _flush_what_is_whole(kernel, error)
        _note(events, kernel, error, text)
    finally:
        closing.close()
        if events is not None:
            if heartbeat.error is not None:
                _warn(events, kernel, f"the status file could not always be written: {heartbeat.error}")
            _end(events, kernel, status, code)
        heartbeat.change(status, code=code, error=text)
        heartbeat.stop()
    return Outcome(order.run.name, status, code, text)


def _told(error: BaseException, kernel: Kernel | None = None) -> str:
    if exhausted(error):
        return account(error, kernel)
    if isinstance(error, CtrError):
        return str(error)
    if isinstance(error, RuntimeError) and "deterministic" in str(error):
        return (
            f"{error}\nthis operation has no deterministic form; set train.determinism: fast to run without exactness"
        )
    return f"{type(error).__name__}: {error}"


def _flush_what_is_whole(kernel: Kernel | None, error: BaseException) -> None:
    if kernel is not None and not isinstance(error, GuardError | StorageError):
        try:
            kernel.log.flush(flagged=kernel.position.step)
        except Exception:
            pass  # the error that ended the run is the one to tell; this flush only saves what it can


def _note(events: EventLog | None, kernel: Kernel | None, error: BaseException, text: str) -> None:
    about = {key: getattr(error, key, None) or None for key in ("plugin", "hook", "phase")}
    step = kernel.position.step if kernel else 0
    try:
        if events is not None:
            events.write("error", step, kind=type(error).__name__, text=printable(text, 2000), **about)
    except StorageError:
        pass  # the disk that refused is already what the run ended of


def _warn(events: EventLog, kernel: Kernel | None, text: str, **more: Any) -> None:
    with contextlib.suppress(StorageError):  # the disk that refuses this line has been told of already
        events.write(
            "warning", kernel.position.step if kernel else 0, owner="engine", text=printable(text, 500), **more
        )


def _end(events: EventLog, kernel: Kernel | None, status: str, code: int) -> None:
    try:
        events.write("end", kernel.position.step if kernel else 0, status=status, code=code)
    except StorageError:
        pass
    events.close()
    if kernel is not None:
        kernel.log.series.close()


def _prepare(
    order: Order,
    run: RunDir,
    registry: Registry,
    events: EventLog,
    heartbeat: Heartbeat,
    stop: threading.Event,
    after_update: Callable[[int], None] | None,
    closing: contextlib.ExitStack,
) -> Kernel:
    spec = order.run
    settle_exactness(spec.phases[0].train.determinism, order.threads)
    if torch.cuda.is_available():  # what the runs before this one left in cycles lies in the device's memory until now
        gc.collect()
        torch.cuda.empty_cache()
    built = build(spec, run.path, registry, order.sources)
    store = CheckpointStore(run.path, keep=spec.checkpoint.keep)
    loaded = store.newest()
    if loaded is None:
        atomic_write(run.spec, spec.text().encode())
        write_provenance(order, run, built)
    else:
        _set_aside(loaded)
    reuse = _reuse(order, run, built, registry, events, fresh=loaded is None)  # before weights are put back
    updates = _expected_updates(built)
    keeper = Keeper(
        run, store, heartbeat, checkpoint=spec.checkpoint, select=spec.select, updates=updates, stop=stop,
        after_update=after_update,
    )  # fmt: skip
    kernel = Kernel(
        plans=built.plans, tasks=built.tasks, module=built.module, host=built.host, log=None, keeper=keeper,
        seed=spec.seed, device=built.device, needs=built.needs, adapter=built.adapter, matrix=built.matrix,
    )  # fmt: skip
    kernel.log = _recorder(order, run, built, kernel, events, loaded)
    keeper.attach(kernel.log)
    resume.take_up(kernel, keeper, loaded)
    if loaded is None:
        events.write("start", 0, study=spec.study, arm=spec.arm, seed=spec.seed)
        for name, task in built.tasks.items():
            for note in getattr(task, "notes", ()):
                _warn(events, kernel, f"task {name}: {note}")
    else:
        _compare_arithmetic(order, run, events, kernel)
    if reuse is not None:
        closing.callback(reuse.close)
        if loaded is None:
            _begin(order, run, built, kernel, keeper, reuse)
        else:
            reuse.go_on(kernel.position.phase)
        keeper.reuse = reuse
    return kernel


def _recorder(
    order: Order, run: RunDir, built: Built, kernel: Kernel, events: EventLog, loaded: Loaded | None
) -> Recorder:
    """Open the log where a checkpoint left it, or anew."""
    series, log = SeriesWriter(run.path), order.run.log
    series.resume(loaded.record["series"] if loaded else {})
    offsets = np.cumsum([0, *(plan.train.epochs for plan in built.plans)]).tolist()
    declared = {name: getattr(plugin, "metrics", {}) for name, plugin in built.host.plugins.items()}
    return Recorder(
        series, events, steps=log.steps, seconds=log.seconds, offsets=offsets,
        metrics=built.plans[-1].task.metrics, declared=declared, flag=kernel.flag,
    )  # fmt: skip


def _reuse(order: Order, run: RunDir, built: Built, registry: Registry, events: EventLog, fresh: bool) -> Reuse | None:
    """Return the cache of phases; None for a run of one phase, which has no beginning to share."""
    spec = order.run
    if len(spec.phases) < 2 or not spec.checkpoint.cache:
        return None
    keys = phase_keys(order, built, registry)
    if fresh:
        add_provenance(run, phase_keys=keys)
    elif read_provenance(run).get("phase_keys") != keys:
        return None  # it began with other code or on another machine; what it makes now is neither's
    return Reuse(run.path, spec, order.identity, keys, events)


def _begin(order: Order, run: RunDir, built: Built, kernel: Kernel, keeper: Keeper, reuse: Reuse) -> None:
    """Go on from the longest beginning that another run trained already, once nobody trains a longer one."""
    entry = reuse.take(partial(keeper.idle, kernel))
    kernel.log = _recorder(order, run, built, kernel, kernel.log.events, entry.loaded if entry else None)
    keeper.attach(kernel.log)
    if entry is None:
        return
    loaded, own = reuse.begin(kernel, entry)
    resume.reinstate(kernel, keeper, loaded, own)
    if kernel.matrix is not None:
        keeper.matrix(kernel)
    add_provenance(run, cached={name: entry.about[name] for name in ("run", "phases", "key", "published")})
    keeper.commit(kernel, "cached")


def _compare_arithmetic(order: Order, run: RunDir, events: EventLog, kernel: Kernel) -> None:
    """Warn where a run goes on with other threads or another torch than it began with: the last bits may differ."""
    about = read_provenance(run)
    before = about.get("versions")
    pairs = {
        "threads": (about.get("threads"), order.threads),
        "torch": (before.get("torch") if isinstance(before, dict) else None, versions()["torch"]),
    }
    differs = {what: [was, now] for what, (was, now) in pairs.items() if was is not None and was != now}
    if differs:
        changes = ", ".join(f"{what} {was} → {now}" for what, (was, now) in differs.items())
        _warn(events, kernel, f"resumed, but not bit-exactly: {changes}", differs=differs)


def _set_aside(loaded: Loaded) -> None:
    """Remove the checkpoints that were skipped before the series they count on are cut.

    A disk that refused one of them once may read it the next time, and then nothing would fit together.
    """
    for name, _ in loaded.skipped:
        path = loaded.path.with_name(name)
        gone = path.with_name(f"{TEMPORARY}{name}")
        try:
            path.rename(gone)  # it vanishes as a whole
            sync_folder(path.parent)
        except OSError as error:
            raise storage_error(path, "the damaged checkpoint cannot be removed", error) from error
        remove_quietly(gone)


def _expected_updates(built: Built) -> int:
    total = 0
    for plan in built.plans:
        plan.task.begin(plan.phase)
        total += plan.train.epochs * -(-plan.task.batches(0) // plan.train.grad_accum)
    return total
