"""The viewer: opening beside TensorBoard's loader, a chart of a million points, and what following live runs costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson

from ctr.engine.series import SeriesWriter

from .bench import Bench
from .table import Row, Section
from .watch import KEY, PER_SECOND, RUNS

ROOT = Path(__file__).parents[2]
LENGTHS = (10_000, 100_000, 1_000_000, 10_000_000)
TENSORBOARD = 1_000_000  # longer ones take minutes to write and to load
MILLION = 1_000_000
Times = np.ndarray[Any, np.dtype[np.float64]]
SERIES = (
    "train.total",
    "train.lr",
    "train.base_lr",
    "train.epoch",
    "train.items",
    "clock.seconds",
    "a.b",
    "a.c",
    "a.d",
)
CTR = "import sys; from ctr.engine.entry import main; sys.argv[:] = ['ctr', 'tui', sys.argv[1]]; sys.exit(main())"
WATCH = "import sys; from tests.bench.watch import main; main()"
BARE = """\
import numpy
from textual.app import App
from textual.widgets import Static
class Bare(App):
    def compose(self):
        yield Static("train.loss")
Bare().run()
"""


def curve(rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    noise = np.random.default_rng(0).normal(0.0, 0.05, rows)
    return 2.3 * np.exp(-3.0 * np.arange(rows) / rows) + 0.2 + noise


def write_series(folder: Path, rows: int, names: tuple[str, ...] = ()) -> Path:
    """Write the series as the engine does."""
    writer, steps, values = SeriesWriter(folder), np.arange(rows), curve(rows)
    for key in (KEY, *names):
        writer.declare(key)
        writer.append(key, steps, values)
        writer.flush()
    writer.close()
    return folder


def write_tensorboard(folder: Path, rows: int) -> Path:
    """Write the same scalars with TensorBoard's record writer: what its EventFileWriter writes, without the queue."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    now = time.time()
    with (folder / "events.out.tfevents.1.bench").open("wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        for step, value in enumerate(curve(rows).tolist()):
            summary = Summary(value=[Summary.Value(tag=KEY, simple_value=value)])
            writer.write(Event(wall_time=now, step=step, summary=summary).SerializeToString())
        writer.flush()
    return folder


class Children:
    """Starts processes whose modules are compiled once, as an installed program's are, wherever this one's are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder), "OMP_NUM_THREADS": "1"}
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(self, what: str, *arguments: object) -> tuple[Path, subprocess.Popen[bytes]]:
        out = self.folder / f"{what}-{time.monotonic_ns()}.json"
        command = [sys.executable, "-m", "tests.bench.watch", what, str(out), *map(str, arguments)]
        return out, subprocess.Popen(command, cwd=ROOT, env=self.env)

    def run(self, what: str, *arguments: object) -> dict[str, Any]:
        out, process = self.start(what, *arguments)
        return _result(out, process.wait(300))

    def view(self, study: Path, screen: str, seconds: float) -> dict[str, Any]:
        """Show live runs in a terminal and take every byte from it, as a terminal does."""
        from .terminal import Terminal

        out = self.folder / f"{screen}.json"
        with Terminal(["view", str(out), str(study), screen, str(seconds)], WATCH, self.env) as terminal:
            end, last = time.monotonic() + seconds + 30, b""
            while not out.exists() and time.monotonic() < end and terminal.process.poll() is None:
                last = terminal.read(0.1) or last
            if not out.exists():
                raise RuntimeError(f"the watched viewer ended early: {last[-500:].decode(errors='replace')}")
        return _result(out, 0)


def _result(out: Path, code: int) -> dict[str, Any]:
    if code or not out.exists():
        raise RuntimeError(f"{out.stem} ended with code {code}")
    found: dict[str, Any] = orjson.loads(out.read_bytes())
    return found


def opening(bench: Bench, children: Children) -> list[Row]:
    """One series of each length, opened by the viewer's store and by TensorBoard's accumulator."""
    rows: list[Row] = []
    for length in LENGTHS:
        for reader, writes in (("ctr", write_series), ("tensorboard", write_tensorboard)):
            if reader == "tensorboard" and length > min(TENSORBOARD, TENSORBOARD * bench.scale):
                continue
            folder = writes(bench.folder(f"{reader}-{length}"), length)
            times = 3 if reader == "ctr" or length < MILLION else 1
            found = [children.run("load", reader, folder) for _ in range(times)]
            if any(each["rows"] != length for each in found):
                raise RuntimeError(f"{reader} read {found[0]['rows']} of {length} points")
            took, spent = (1e3 * median(each[what] for each in found) for what in ("wall", "cpu"))
            size = median(each["memory"] for each in found)
            name = "ctr" if reader == "ctr" else "TensorBoard"
            rows.append(Row(f"{name} opens {_short(length)} points", took, "ms", spent, note=f"{size:.1f} MiB"))
    return rows


def _short(length: int) -> str:
    return f"10^{len(str(length)) - 1}"


def long_runs(folder: Path) -> Path:
    """Make a study of a short run and one of a million steps; the last value of each is one to wait for."""
    for number, rows in ((1, 1000), (2, MILLION)):
        run = folder / f"plain-s{number}"
        run.mkdir()
        write_series(run, rows, SERIES)
        writer = SeriesWriter(run)
        writer.append(KEY, np.array([rows]), np.array([float(number) + 6.5]))
        writer.flush()
        writer.close()
        status = {"status": "finished", "step": rows, "total": rows, "heartbeat": time.time(), "started": number}
        (run / "status.json").write_bytes(orjson.dumps(status))
        (run / "spec.yaml").write_text("study: long\n")
    return folder


def starts(run: Path, children: Children, rounds: int) -> list[Row]:
    """From Python's first line to the first chart of a run of a million steps and ten series, on a terminal."""
    from .terminal import Terminal

    took: dict[str, list[tuple[float, float]]] = {CTR: [], BARE: []}
    for number in range(rounds + 1):
        for code, found in took.items():
            with Terminal([str(run)], code, children.env) as terminal:
                wall = terminal.until(KEY) - terminal.begin
                if number:  # the first one compiles
                    found.append((wall, terminal.cpu() or wall))
    ours, bare = ([1e3 * np.array(part) for part in zip(*found, strict=True)] for found in took.values())
    note = f"CPU {min(ours[1]):.0f} ms; first chart painted, from Python's first line"
    floor = f"CPU {min(bare[1]):.0f} ms; Textual and numpy alone, showing one word"
    over = (
        f"CPU {min(ours[1]) - min(bare[1]):.0f} ms over it; wall {min(ours[0]) / min(bare[0]):.2f}×; same run, in turns"
    )
    return [
        Row("`ctr tui` on a run of 10^6 × 10", min(ours[0]), "ms", median(ours[0]), bar=300.0, note=note),
        Row("an application without content", min(bare[0]), "ms", median(bare[0]), note=floor),
        Row("`ctr tui` over an application without content", *_ratio(ours[1], bare[1]), note=over),
    ]


def _ratio(ours: Times, bare: Times) -> tuple[float, str, float]:
    """Return the ratio of the smallest CPU times, its unit, and the median of the ratios of each turn."""
    return min(ours) / min(bare), "×", float(median(ours / bare))


def by_key(study: Path, children: Children, rounds: int) -> Row:
    """Inside the viewer: go from the short run to the long one, whose files it has not read."""
    from ctr.tui.ticks import number

    from .terminal import Terminal

    short, long = (f"{KEY} {number(k + 6.5)}" for k in (1, 2))
    took: list[float] = []
    with Terminal([str(study)], CTR, children.env) as terminal:
        terminal.until("seed 2")
        terminal.press(b"jj")
        terminal.until(short)
        terminal.press(b"\r")
        terminal.until(short)
        for _ in range(rounds):
            _rest(terminal)
            took.append(1e3 * (-terminal.press(b"N") + terminal.until(long)))
            _rest(terminal)
            terminal.press(b"P")
            terminal.until(short)
    return Row("chart of 10^6 points, key to paint", min(took), "ms", median(took), bar=100.0, note="cold: other run")


def _rest(terminal: Any) -> None:
    """Take what is still painted, until nothing comes for a moment."""
    while terminal.read(0.5):
        pass


@contextmanager
def live(bench: Bench, children: Children, seconds: float) -> Iterator[tuple[Path, Path]]:
    """Keep live runs growing in a process of their own; give their study and the file that will hold the stamps."""
    study = bench.folder("live") / "watched"
    out, process = children.start("write", study, seconds)
    try:
        while not all((study / f"controller-s{k}" / "status.json").exists() for k in range(RUNS)):
            time.sleep(0.05)
        yield study, out
        process.wait(seconds + 30)
    finally:
        process.kill()
        process.wait()


def following(bench: Bench, children: Children) -> list[Row]:
    """Watch live runs on a terminal: what following costs, and how late a row is known and painted."""
    seconds = max(4.0, 8.0 * bench.scale)
    screens = {"list": "list and preview", "run": "one of them open", "compare": "all four overlaid"}
    with live(bench, children, 3 * (seconds + 5.0)) as (study, out):
        seen = {screen: children.view(study, screen, seconds) for screen in screens}
    if not all(len(found["painted"]) > 2 for found in seen.values()):
        raise RuntimeError("a watched screen painted nothing new")
    stamps = np.array(_result(out, 0)["stamps"])
    shares = [
        Row(f"four live runs, {name}", 100 * seen[screen]["share"], "%", bar=5.0, note="of a core")
        for screen, name in screens.items()
    ]
    return [*shares, *(_lag(stamps, seen["run"], what) for what in ("known", "painted"))]


def _lag(stamps: np.ndarray[Any, Any], seen: dict[str, Any], what: str) -> Row:
    """Return the median and the 99th percentile of the time from appending a row until it was `what`."""
    times, steps = np.array(seen[what]).T
    steps = np.maximum.accumulate(steps)
    mine = np.flatnonzero((stamps >= seen["begin"]) & (stamps <= seen["end"] - 2.0))
    first = np.searchsorted(steps, mine)  # the first look that had this step
    lags = 1e3 * (times[first] - stamps[mine])
    p50, p99 = np.percentile(lags, [50, 99])
    name = {"known": "appended row until the model has it", "painted": "appended row until it is painted"}[what]
    return Row(name, p50, "ms", note=f"p99 {p99:.0f} ms of {len(mine)} rows")


def measure(bench: Bench) -> Section:
    with tempfile.TemporaryDirectory(prefix="compiled-", dir=bench.root.parent) as folder:
        children, rounds = Children(Path(folder)), bench.rounds(5)
        study = long_runs(bench.folder("long"))
        first = starts(study / "plain-s2", children, rounds)
        rows = [by_key(study, children, rounds), *first, *following(bench, children), *opening(bench, children)]
    method = "Processes of their own on a pseudo-terminal of 120x40; smallest wall time and its median, of an opening "
    method += "median wall and CPU time and growth of the largest memory. Files are in the page cache. Live: "
    method += f"{RUNS} runs of {PER_SECOND} steps a second, a record and 12 series each. TensorBoard up to 10^6: "
    method += "longer ones take minutes."
    return Section("The viewer", method, rows)
