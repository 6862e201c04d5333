"""The laws that every plugin keeps, as functions: each is silent, or raises `Broken` with the reason and the line.

`LAWS` holds them in the order in which they are tried. A law that cannot be tried on a plugin raises `NotTried`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctr.engine.checkpoint import join_state, split_state
from ctr.engine.errors import CtrError, PluginError
from ctr.engine.events_log import read_events
from ctr.engine.host import implementations, plugin_problem
from ctr.engine.kernel import Kernel
from ctr.engine.text import printable

from .runs import bits, close_all, finish, train_spec
from .subject import EPOCHS, Subject
from .watch import (
    LineWatch,
    fingerprint,
    global_streams,
    place_of,
    place_of_attribute,
    place_of_error,
    shared_values,
    spied,
)

CASES = (("step", 7, 1), ("step", 12, 1), ("accumulation", 7, 2), ("evaluation", 10, 2))
HOT = ("extra_loss", "schedule_lr")


class Broken(AssertionError):
    """A law that a plugin breaks: the reason, and the line to look at where one is known."""

    def __init__(self, text: str, place: str | None = None) -> None:
        super().__init__(f"{text}\n  look at {place}" if place else text)
        self.text, self.place = text, place


class NotTried(Exception):
    """A law that cannot be tried here, and why."""


@dataclass(frozen=True)
class Law:
    """A law by name, the sentence that it claims, and the function that tries it in an empty folder.

    What the function returns, if anything, is a remark that belongs to the verdict.
    """

    name: str
    claim: str
    check: Callable[[Subject, Path], str | None]


# --------------------------------------------------------------------------------------------------- what it is
def hosted(subject: Subject, folder: Path) -> str | None:
    """Hold the class against the contract, and the settings of its trial against its Config."""
    kind, trial = subject.kind, subject.trial
    try:
        implementations(kind)
    except PluginError as error:
        raise Broken(str(error), place_of(getattr(kind, error.hook, kind))) from error
    if problem := plugin_problem(kind):
        raise Broken(problem, place_of(kind))
    for which in ("active", "inert"):
        if getattr(trial, which) is None:
            continue
        try:
            subject.config(which)
        except Exception as error:  # a stranger's validator may raise anything
            text = f"the {which} settings of its trial are refused: {printable(error, 500)}"
            raise Broken(text, place_of(kind.Config)) from error
    loose = [] if kind.Config.model_config.get("extra") == "forbid" else ["extra='forbid': a typo would be no error"]
    loose += (
        [] if kind.Config.model_config.get("frozen") else ["frozen=True: settings could change while a run goes on"]
    )
    if loose:
        raise Broken(f"its Config lacks {'; and '.join(loose)}", place_of(kind.Config))
    return f"hooks: {', '.join(subject.hooks) or 'none'}"


_NO_TORCH = """
import importlib, json, sys, traceback
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            frames = [f for f in traceback.extract_stack()[:-1] if not f.filename.startswith("<")]
            print(json.dumps([f.filename + ":" + str(f.lineno) for f in frames]))
            sys.exit(3)
sys.meta_path.insert(0, Finder())
importlib.import_module(sys.argv[1])
"""


def no_torch(subject: Subject, folder: Path) -> None:
    """Import the module in a process of its own, in which the import of torch is caught where it happens."""
    path = [p for p in sys.path if p]
    code = f"import sys; sys.path += [p for p in {path!r} if p not in sys.path]\n{_NO_TORCH}"
    words = [sys.executable, "-c", code, subject.kind.__module__]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    if done.returncode == 3:
        frames = json.loads(done.stdout.strip().splitlines()[-1])
        own = [frame for frame in frames if subject.owns(frame.rpartition(":")[0])]
        text = "importing its module loads torch, for which `ctr --help` and the viewer would wait; "
        raise Broken(text + "import it inside the methods that use it", (own or frames or [None])[-1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise Broken(f"its module cannot be imported alone: {printable(last, 300)}", place_of(subject.kind))


# --------------------------------------------------------------------------------------------------- what it does
def _trained(subject: Subject, folder: Path, which: str | None = "active", **more: Any) -> Kernel:
    """Train to the end; what a plugin raises becomes `Broken` with its line."""
    try:
        return finish(subject.run(folder, which, **more))
    except Broken:
        raise
    except CtrError as error:
        hook = getattr(error, "hook", "")
        at = place_of_error(error, subject.owns) or place_of(getattr(subject.kind, hook, None) if hook else None)
        raise Broken(printable(error, 800), at or place_of(subject.kind)) from error
    except Exception as error:
        at = place_of_error(error, subject.owns)
        what = "could not be made" if at else "does not get through a run"
        text = f"plugin {subject.name} {what}: {type(error).__name__}: {printable(error, 500)}"
        raise Broken(text, at or place_of(subject.kind)) from error
    finally:
        close_all()


def three_steps(subject: Subject, folder: Path) -> str | None:
    """Take three updates and come to rest: every hook that can be asked is asked, and what it answers is accepted."""
    asked: dict[str, int] = {}

    def count(hook: str, call: Callable[[], Any], event: Any) -> Any:
        asked[hook] = asked.get(hook, 0) + 1
        return call()

    _trained(subject, folder / "three", kind=spied(subject.kind, count), epochs=1, grad_accum=2)
    never = sorted(set(subject.hooks) - set(asked))
    if never:
        where = place_of(getattr(subject.kind, never[0]))
        raise Broken(f"{', '.join(never)} was never asked in three steps of its task; name another task", where)
    return ", ".join(f"{hook} asked {many} times" for hook, many in sorted(asked.items())) or "it has no hook"


def _told(folder: Path, name: str) -> list[Any]:
    """Return what a plugin left behind beside weights: its series, marks, states and snapshots."""
    series = {path.name: path.read_bytes() for path in (folder / "series").glob(f"{name}.*")}
    events = [r for r in read_events(folder) if name in (r.get("owner"), r.get("by"))]
    return [series, [(r["event"], r["step"], r.get("value"), r.get("why"), r.get("slug")) for r in events]]


def acts(subject: Subject, folder: Path) -> str | None:
    """Compare a run with the plugin with one without it; otherwise the other laws are kept by doing nothing."""
    with_it = bits(_trained(subject, folder / "with"))
    without = bits(_trained(subject, folder / "without", None))
    if with_it != without:
        return "it changes the weights"
    if any(_told(folder / "with", subject.name)):
        return "it changes no weight, and logs"
    text = "under its active settings it changes no weight and logs nothing, so nothing was tried"
    raise Broken(f"{text}; say trial = {{'active': {{...}}}} that acts within {EPOCHS} epochs", place_of(subject.kind))


def inert(subject: Subject, folder: Path) -> None:
    """Compare a run under inert settings with a run without the plugin."""
    if subject.trial.inert is None:
        text = "it names no settings under which it changes nothing"
        raise NotTried(f"{text}; say trial = {{'inert': {{...}}}} on the class, or --inert")
    one = bits(_trained(subject, folder / "inert", "inert"))
    other = bits(_trained(subject, folder / "without", None))
    if different := _differing(one, other):
        text = f"inert settings {dict(subject.trial.inert)} change {different}"
        raise Broken(text, place_of(getattr(subject.kind, next(iter(subject.hooks), ""), subject.kind)))


def _differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> str:
    names = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    return f"{len(names)} of {len(one)} tensors, first {names[0]}" if names else ""


def order(subject: Subject, folder: Path) -> None:
    """Make and register it before its neighbours, and after them."""
    beside = ("a-neighbour", "z-neighbour")
    first = bits(_trained(subject, folder / "first", beside=beside))
    last = bits(_trained(subject, folder / "last", beside=beside, first=False))
    if different := _differing(first, last):
        raise Broken(
            f"made before its neighbours and after them, a run differs in {different}", _shared(subject, folder)
        )


def same_seed(subject: Subject, folder: Path) -> None:
    """Train twice in one process: what one run leaves behind in a module or a class, the next would see."""
    one, other = (bits(_trained(subject, folder / name)) for name in ("one", "two"))
    if different := _differing(one, other):
        text = f"two runs of one seed in one process differ in {different}"
        raise Broken(f"{text}; what instances share must not change", _shared(subject, folder))
    if _told(folder / "one", subject.name) != _told(folder / "two", subject.name):
        raise Broken("two runs of one seed in one process log different things", _shared(subject, folder))


def _shared(subject: Subject, folder: Path) -> str | None:
    """Find the line that changes what all instances of a plugin share."""
    before = shared_values(subject.kind)
    watch = LineWatch(subject.owns, lambda: shared_values(subject.kind))
    with watch.on():
        _trained(subject, folder / "watched")
    return watch.found or (place_of(subject.kind) if before == shared_values(subject.kind) else None)


def no_global_draw(subject: Subject, folder: Path) -> None:
    """Look at the process's random streams before and after each call, the making of the plugin included."""
    where: list[str] = []

    def around(hook: str, call: Callable[[], Any], event: Any) -> Any:
        before = global_streams()
        answer = call()
        if global_streams() != before:
            where.append(f"hook {hook}, step {event.step}")
        return answer

    subject.made("active", folder)  # so that what it reads, if it reads a run, is there
    before = global_streams()
    subject.made("active", folder)
    if global_streams() != before:
        where.append("making it")
    _trained(subject, folder / "draws", kind=spied(subject.kind, around))
    if where:
        watch = LineWatch(subject.owns, global_streams)
        with watch.on():
            subject.made("active", folder)
            _trained(subject, folder / "watched")
        text = f"{where[0]}: draws from a random stream of the whole process, which shifts everybody else's numbers"
        raise Broken(f"{text}; draw from the generator that it is given", watch.found or place_of(subject.kind))


def no_mutation(subject: Subject, folder: Path) -> None:
    """Look at all that a hook is given, at weights, gradients and moments, before and after each call."""
    found: list[tuple[str, str]] = []
    kernels: list[Kernel] = []

    def seen(event: Any) -> dict[str, str]:
        parts = {
            f"{type(event).__name__.lower()}.{name}": fingerprint(value)
            for name, value in vars(event).items()
            if not name.startswith("_") and name not in ("sink", "owner", "log", "grad_norm", "probe", "evaluate")
        }
        for kernel in kernels:
            parts["weights"] = fingerprint(kernel.module.state_dict())
            parts["gradients"] = fingerprint([p.grad for p in kernel.module.parameters()])
            if kernel.optimizer is not None:
                parts["moments"] = fingerprint([dict(kernel.optimizer.state[p]) for p in kernel.optimizer.state])
        return parts

    def around(hook: str, call: Callable[[], Any], event: Any) -> Any:
        before = seen(event)
        answer = call()
        after = seen(event)
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        found.extend((hook, name) for name in changed)
        return answer

    def run(kind: Any, name: str) -> None:
        kernels[:] = [subject.run(folder / name, kind=kind)]
        try:
            finish(kernels[0])
        except Exception as error:  # what was changed may be what the run then fails of
            if not found:
                raise Broken(printable(error, 800), place_of_error(error, subject.owns)) from error
        finally:
            close_all()

    run(spied(subject.kind, around), "spied")
    if found:
        hook, name = found[0]
        event_now: list[Any] = [None]

        def note(hook: str, call: Callable[[], Any], event: Any) -> Any:
            event_now[0] = event
            return call()

        watch = LineWatch(subject.owns, lambda: seen(event_now[0]).get(name) if event_now[0] is not None else None)
        found_before = list(found)
        with watch.on():
            run(spied(subject.kind, note), "watched")
        text = f"hook {found_before[0][0]} changes {name}, which everybody reads; copy what is to be changed"
        raise Broken(text, watch.found or place_of(getattr(subject.kind, hook)))


# --------------------------------------------------------------------------------------------------- what it keeps
def state_round_trips(subject: Subject, folder: Path) -> str | None:
    """Put the memory of a trained plugin through a checkpoint's format into a fresh one, and ask that one for it."""
    if not hasattr(subject.kind, "state"):
        return "it keeps no memory"
    _saved(subject, subject.made("active", folder)[0])  # before a run fails of it
    kernel = _trained(subject, folder / "trained")
    said, held = _saved(subject, kernel.host.plugins[subject.name])
    fresh, _ = subject.made("active", folder)
    try:
        fresh.restore(held)
        again = fresh.state()
    except Exception as error:
        text = f"restore(state()) raised {type(error).__name__}: {printable(error, 300)}"
        raise Broken(text, place_of_error(error, subject.owns) or place_of(subject.kind.restore)) from error
    lost = _lost(said, again)
    if lost:
        raise Broken(f"after restore(state()), {lost}", place_of(subject.kind.restore))
    return None


def _saved(subject: Subject, plugin: Any) -> tuple[Any, Any]:
    """Return what a plugin says of its memory, and what a checkpoint gives back of that."""
    try:
        said = plugin.state()
        tree, tensors = split_state({"plugin": said})
        return said, join_state(json.loads(json.dumps(tree)), {n: t.clone() for n, t in tensors.items()})["plugin"]
    except Exception as error:
        at = place_of_error(error, subject.owns) or place_of(subject.kind.state)
        raise Broken(f"state() holds what no checkpoint can: {printable(error, 300)}", at) from error


def _lost(said: Any, again: Any) -> str:
    if not isinstance(said, Mapping) or not isinstance(again, Mapping):
        return "" if fingerprint(said) == fingerprint(again) else "state() says something else"
    for name in said:
        if name not in again:
            return f"{printable(name, 80)} is gone"
        if fingerprint(said[name]) != fingerprint(again[name]):
            return f"{printable(name, 80)} is {printable(again[name], 80)}, and was {printable(said[name], 80)}"
    return ""


def stop_in(kernel: Any, step: int, where: str) -> None:
    """Raise after `step` updates: before the next, in the middle of an accumulation, or in an evaluation."""

    def die(*args: Any) -> Any:
        raise _Killed

    task, update, backward = kernel.plans[0].task, kernel._update, kernel.backward
    evaluate = task.evaluate

    def update_or_die(*args: Any) -> None:
        update(*args) if kernel.position.step < step or where != "step" else die()

    def backward_or_die(plan: Any, batch: Any, index: int, count: int) -> Any:
        second = kernel.position.step >= step and index % 2 == 1 and where == "accumulation"
        return die() if second else backward(plan, batch, index, count)

    kernel._update, kernel.backward = update_or_die, backward_or_die
    task.evaluate = lambda *a: die() if kernel.position.step >= step and where == "evaluation" else evaluate(*a)
    try:
        kernel.run()
    except _Killed:
        return
    finally:
        kernel.keeper.heartbeat.stop()
    raise RuntimeError(f"a run of {kernel.position.step} updates cannot be interrupted after {step}")


class _Killed(Exception):
    """Stands for a kill inside an update."""


def resumed(subject: Subject, folder: Path) -> None:
    """Kill runs in the middle of an epoch, of an accumulation and of an evaluation, and let them go on."""
    for number, (where, step, accum) in enumerate(CASES):
        more: dict[str, Any] = {"grad_accum": accum, "checkpoint": {"every_steps": 5}}
        straight_in, broken_in = folder / f"straight{number}", folder / f"broken{number}"
        straight = _trained(subject, straight_in, **more)
        try:
            stop_in(subject.run(broken_in, **more), step, where)
        finally:
            close_all()
        other = _trained(subject, broken_in, **more)
        said = _differing(bits(straight), bits(other))
        said = said or _other_files(straight_in, broken_in)
        if said:
            text = f"killed in {where} after {step} updates and resumed, a run differs from a straight one in {said}"
            raise Broken(text + _forgotten(subject, straight, other), _forgotten_at(subject, straight, other))


def _other_files(one: Path, other: Path) -> str:
    files = [{p.name: p.read_bytes() for p in (f / "series").iterdir() if p.name[:6] != "clock."} for f in (one, other)]
    names = [name for name in sorted({*files[0], *files[1]}) if files[0].get(name) != files[1].get(name)]
    if names:
        return f"series {names[0]}"
    skip = ("checkpoint", "resumed")
    told = [
        [(r["event"], r["step"], r.get("value"), r.get("why")) for r in read_events(f) if r["event"] not in skip]
        for f in (one, other)
    ]
    return "" if told[0] == told[1] else "what was logged"


def _strayed(subject: Subject, straight: Kernel, other: Kernel) -> str | None:
    pair = [vars(kernel.host.plugins[subject.name]) for kernel in (straight, other)]
    return next((n for n in pair[0] if fingerprint(pair[0][n]) != fingerprint(pair[1].get(n))), None)


def _forgotten(subject: Subject, straight: Kernel, other: Kernel) -> str:
    name = _strayed(subject, straight, other)
    if name is None:
        return ""
    pair = [printable(vars(kernel.host.plugins[subject.name]).get(name), 60) for kernel in (straight, other)]
    return f"; self.{name} is {pair[1]} at the end, and {pair[0]} in the straight run: state() must hold it"


def _forgotten_at(subject: Subject, straight: Kernel, other: Kernel) -> str | None:
    name = _strayed(subject, straight, other)
    return (place_of_attribute(subject.kind, name) if name else None) or place_of(subject.kind)


def new_phase(subject: Subject, folder: Path) -> None:
    """Go through two phases."""
    specs = [train_spec(name=name, epochs=3, reset_at=list(subject.trial.reset_at)) for name in ("A", "B")]
    kernel = _trained(subject, folder / "phases", phases=specs)
    assert kernel.matrix is not None
    if list(kernel.matrix.rows) != ["start", "A", "B"]:
        raise Broken(f"of two phases, {', '.join(kernel.matrix.rows)} were measured", place_of(subject.kind))


# --------------------------------------------------------------------------------------------------- what it costs
def overhead(subject: Subject, folder: Path) -> str | None:
    """Time each call; this states, and judges nothing: the machine may be busy."""
    spent: dict[str, list[float]] = {}

    def timed(hook: str, call: Callable[[], Any], event: Any) -> Any:
        start = time.perf_counter()
        answer = call()
        spent.setdefault(hook, []).append(time.perf_counter() - start)
        return answer

    _trained(subject, folder / "timed", kind=spied(subject.kind, timed))
    told = [f"{hook} {sorted(row)[len(row) // 2] * 1e6:.0f} µs" for hook, row in sorted(spent.items())]
    return "median per call on the tiny task: " + ", ".join(told) if told else "it has no hook"


def no_wait(subject: Subject, folder: Path) -> str | None:
    """Train on a device while torch raises wherever the host waits for it inside a hot hook."""
    hot = [hook for hook in HOT if hook in subject.hooks]
    if not hot:
        return "it has no hook in the hot path"
    if not torch.cuda.is_available():
        raise NotTried("this machine has no CUDA device")
    calls = {"made": 0}

    def strict(hook: str, call: Callable[[], Any], event: Any) -> Any:
        if hook not in HOT:
            return call()
        calls["made"] += 1
        torch.cuda.set_sync_debug_mode("error" if calls["made"] > len(hot) else "default")  # the first call may set up
        try:
            return call()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    _trained(subject, folder / "device", kind=spied(subject.kind, strict), device="cuda")
    return f"{calls['made']} calls of {', '.join(hot)} on {torch.cuda.get_device_name()}, none waited"


LAWS: tuple[Law, ...] = (
    Law("hosted", "the host takes it, and its settings are strict", hosted),
    Law("no-torch", "importing it loads no torch", no_torch),
    Law("three-steps", "three steps ask every hook, and take every answer", three_steps),
    Law("acts", "its active settings act", acts),
    Law("inert", "inert settings change no bit", inert),
    Law("order", "the order of registration changes no bit", order),
    Law("same-seed", "the same seed gives the same bits", same_seed),
    Law("no-global-draw", "it draws from no global random stream", no_global_draw),
    Law("no-mutation", "what it is given stays as it was", no_mutation),
    Law("state", "its memory survives state and restore", state_round_trips),
    Law("resumed", "a resumed run equals an uninterrupted one", resumed),
    Law("new-phase", "a new phase finds it ready", new_phase),
    Law("overhead", "what a call costs is stated", overhead),
    Law("no-wait", "on a device, the hot path waits for nothing", no_wait),
)
