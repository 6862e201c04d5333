"""The processes that the viewer's bench starts: loaders, a writer of live runs, and a viewer that is watched.

python -m tests.bench.watch WHAT FOLDER ... ; each prints or writes one JSON object. Loads no torch.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

KEY = "train.loss"
COLUMNS = 200
RUNS = 4
PER_SECOND = 20


def load(reader: str, folder: Path) -> dict[str, float]:
    """Read one series and have it ready to be drawn; time, and growth of the largest memory held."""
    read = {"ctr": _ctr, "tensorboard": _tensorboard}[reader]()
    before, begin, spent = _peak(), time.perf_counter(), time.process_time()
    rows = read(folder)
    took = {"wall": time.perf_counter() - begin, "cpu": time.process_time() - spent}
    return {"rows": rows, **took, "memory": _peak() - before}


def _ctr() -> Callable[[Path], int]:
    import numpy as np

    from ctr.tui.follow import RunStore

    def read(folder: Path) -> int:
        store = RunStore(folder)
        store.want([KEY])
        store.catch_up(60.0)
        data = store.data(KEY)
        data.columns(np.linspace(0.0, float(data.steps[-1]), COLUMNS + 1))
        return data.size

    return read


def _tensorboard() -> Callable[[Path], int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder: Path) -> int:
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        found.Reload()
        return len(found.Scalars(KEY))

    return read


def _peak() -> float:
    """Return the most memory this process has held, in MiB."""
    try:  # on Linux a child's ru_maxrss begins at its parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def write(study: Path, seconds: float) -> dict[str, Any]:
    """Train invented live runs: so many steps a second in each, a record and a row of every series at each step."""
    from tests.tui.fake_runs import FakeRun

    begin = time.time()
    runs = [FakeRun(study, "controller", k, epochs=2000, per_epoch=1, started=begin + k) for k in range(RUNS)]
    stamps: list[float] = []
    while time.time() < begin + seconds:
        stamps.append(time.time())
        for run in reversed(runs):  # the newest is what a viewer follows
            run.advance(1)
        if len(stamps) % PER_SECOND == 1:
            for run in runs:
                run.write_status("live")
        time.sleep(max(0.0, begin + len(stamps) / PER_SECOND - time.time()))
    return {"stamps": stamps}


def view(study: Path, screen: str, seconds: float) -> dict[str, Any]:
    """Show the runs in a real terminal for `seconds` once the screen stands; when which step was known and painted."""
    from textual.drivers.linux_driver import LinuxDriver

    from ctr.tui.app import Viewer
    from ctr.tui.follow import RunStore
    from ctr.tui.screens.compare import Chosen, CompareScreen
    from ctr.tui.widgets.chart import Chart

    known: list[tuple[float, int]] = []
    painted: list[tuple[float, int]] = []
    drawn: list[int] = []
    poll, render, send = RunStore.poll, Chart._render_plot, LinuxDriver.write

    def polled(self: Any, *args: Any, **more: Any) -> bool:
        new = poll(self, *args, **more)
        if new and self.path == newest:
            known.append((time.time(), self.newest()))
        return new

    def rendered(self: Any) -> None:
        render(self)
        ends = [int(line.data.steps[-1]) for line in self.picture.lines if line.data.size]
        if ends:
            drawn[:] = [max(ends)]

    def sent(self: Any, data: str) -> None:
        send(self, data)
        if drawn:
            painted.append((time.time(), drawn.pop()))

    newest = study / f"controller-s{RUNS - 1}"
    RunStore.poll, Chart._render_plot, LinuxDriver.write = polled, rendered, sent  # type: ignore[method-assign]
    app, marks = Viewer(study), list[tuple[float, float]]()

    def go() -> None:
        if screen == "run":
            app.open_run(next(run for run in app.catalog.runs() if run.path == newest))
        elif screen == "compare":
            chosen = [Chosen(run.facts.name, (run,), False) for run in app.catalog.runs()]
            app.push_screen(CompareScreen(chosen, app.catalog))

    def mark() -> None:
        gc.collect()
        marks.append((time.time(), time.process_time()))

    def stop() -> None:
        marks.append((time.time(), time.process_time()))
        app.exit()

    mount = Viewer.on_mount

    def mounted(self: Any) -> None:
        mount(self)
        self.set_timer(1.0, go)
        self.set_timer(3.0, mark)
        self.set_timer(3.0 + seconds, stop)

    Viewer.on_mount = mounted  # type: ignore[method-assign]
    app.run()
    (begin, spent), (end, total) = marks
    return {"begin": begin, "end": end, "share": (total - spent) / (end - begin), "known": known, "painted": painted}


def main() -> None:
    what, out, *rest = sys.argv[1:]
    if what == "load":
        found: dict[str, Any] = load(rest[0], Path(rest[1]))
    elif what == "write":
        found = write(Path(rest[0]), float(rest[1]))
    else:
        found = view(Path(rest[0]), rest[1], float(rest[2]))
    part = Path(f"{out}.part")
    part.write_bytes(orjson.dumps(found))
    os.replace(part, out)


if __name__ == "__main__":
    main()
