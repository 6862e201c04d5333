"""A process that has torch loaded and forks: each fork is one real `ctr` command, with a fault planted or without.

Started by harness.py, once a session, because loading torch takes longer than everything that is tested. Reads one
JSON order per line from stdin; answers with the pid of the fork, and with its exit status when it has ended.
"""

from __future__ import annotations

import builtins
import io
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WRITES = ("open", "write", "fsync", "rename", "replace", "mkdir", "link", "unlink", "truncate", "ftruncate")


def changes(call: str, args: Any) -> bool:
    """Say whether a call changes the disk; opening to read does not."""
    if call != "open":
        return True
    mode = args[1] if len(args) > 1 else "r"
    return bool(mode & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)) if isinstance(mode, int) else set(mode) != set("rb")


@dataclass
class Fault:
    """What happens at the n-th call of some kinds: the process dies, or the call fails."""

    calls: tuple[str, ...]
    nth: int
    how: str  # die: before, half, after; fail: once, dead
    code: int = 0
    reads: bool = False
    under: tuple[str, ...] = ()  # only what is opened below these; Python opens files of its own
    seen: int = 0

    def wrap(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not (self.opens_ours(args) if call == "open" and self.reads else changes(call, args)):
                return real(*args, **kwargs)
            self.seen += 1
            if self.seen != self.nth and not (self.how == "dead" and self.seen > self.nth):
                return real(*args, **kwargs)
            if self.how in ("once", "dead"):
                raise OSError(self.code, os.strerror(self.code), *[str(a) for a in args[:1] if not isinstance(a, int)])
            if self.how == "half" and call == "write" and len(args[1]) > 1:
                real(args[0], args[1][: len(args[1]) // 2])
            if self.how == "after":
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    def opens_ours(self, args: Any) -> bool:
        return not isinstance(args[0], int) and os.fspath(args[0]).startswith(tuple(self.under))

    def plant(self) -> None:
        for call in self.calls:
            setattr(os, call, self.wrap(call, getattr(os, call)))
        if "open" in self.calls:
            builtins.open = io.open = self.wrap("open", builtins.open)


PLACES = {
    "batch": ("ctr.engine.tasks.image_classification", "ImageClassification.batch"),
    "forward": ("ctr.engine.tasks.image_classification", "ImageClassification.forward"),
    "evaluate": ("ctr.engine.tasks.image_classification", "ImageClassification.evaluate"),
    "rates": ("ctr.engine.kernel", "resolve_lr"),
    "logged": ("ctr.engine.recorder", "Recorder.step"),
    "flush": ("ctr.engine.recorder", "Recorder.flush"),
    "capture": ("ctr.engine.resume", "capture"),
    "pack": ("ctr.engine.checkpoint", "pack"),
    "snapshot": ("ctr.engine.keeper", "save_tensors"),
    "reinstate": ("ctr.engine.resume", "reinstate"),
    "series": ("ctr.engine.series", "SeriesWriter.resume"),
}


def die_in(place: str, nth: int) -> Callable[[], int]:
    """Make the n-th call of a function of the engine the last thing the process does; return what counts the calls."""
    import importlib

    module, path = PLACES[place]
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    real, seen = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, wrapped)
    return lambda: seen


def command(order: dict[str, Any]) -> None:
    """Be a `ctr` command; never returns."""
    os.setsid()
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, number)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.argv = ["ctr", *order["argv"]]
    counts: dict[str, Callable[[], int]] = {}
    fault = Fault(**order["fault"]) if order.get("fault") else None
    if fault:
        fault.plant()
        counts["fault"] = lambda: fault.seen
    for place, nth in (order.get("places") or {}).items():
        counts[place] = die_in(place, nth)
    try:
        from ctr.engine.cli import main

        main()
        code: Any = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    if fault:
        fault.nth, fault.how = -1, "once"  # the disk works again, for the two files below
    sys.stdout.flush()
    sys.stderr.flush()
    if order.get("counts"):
        with open(order["counts"], "w") as file:  # type: ignore[assignment]
            json.dump({name: seen() for name, seen in counts.items()}, file)  # type: ignore[arg-type]
    os._exit(code)


def serve() -> None:
    import matplotlib.figure  # noqa: F401  what a command would load, loaded once
    import torch
    import torchvision  # noqa: F401

    import ctr.engine.cli
    import ctr.engine.execute
    import ctr.engine.figures
    import ctr.engine.progress
    import ctr.engine.report
    import ctr.engine.study
    import ctr.engine.tasks.image_models
    import ctr.engine.tasks.images  # noqa: F401

    torch.set_num_threads(1)
    reading, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waking)
    say({"ready": os.getpid(), "threads": len(os.listdir("/proc/self/task"))})
    waiting = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            reap()
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                start(json.loads(line), (reading, waking))


def start(order: dict[str, Any], pipes: tuple[int, int]) -> None:
    pid = os.fork()
    if pid:
        say({"id": order["id"], "pid": pid})
        return
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for pipe in pipes:
        os.close(pipe)
    command(order)


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
