"""Starting real `ctr` commands with faults planted in them, and telling whether what they leave is right to the bit."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ctr.engine.events_log import read_events
from ctr.engine.rundir import read_json
from ctr.engine.tensor_file import load_tensors
from ctr.engine.verify import compare

HERE = Path(__file__).parent
PATIENCE = 240.0
KILLED = -signal.SIGKILL
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
VOLATILE = ("seq", "time", "seconds")
OUTSIDE = ("resumed", "warning", "control", "error")


def site(folder: Path) -> Path:
    """Install planted.py as a distribution of its own would be: a module and its entry points."""
    about = folder / "ctr_planted-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ctr-planted\nVersion: 1.0\n")
    points = "[ctr.plugins]\nplanted = ctr_planted:Planted\n[ctr.tasks]\nnan_images = ctr_planted:NanImages\n"
    (about / "entry_points.txt").write_text(points)
    shutil.copy(HERE / "planted.py", folder / "ctr_planted.py")
    return folder


@dataclass
class Command:
    """One `ctr` command under way or over. `code` is negative where a signal ended it."""

    argv: Sequence[str]
    out: Path
    err: Path
    counts: Path
    began: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    pid: int = 0
    code: int = 0

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the end, and fail where it does not come: no fault may leave a command hanging."""
        if not self.ended.wait(seconds):
            self.kill()
            raise AssertionError(f"ctr {' '.join(self.argv)} hangs; it said {self.said()!r}")
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.began.wait(PATIENCE) and not self.ended.is_set():
            os.kill(self.pid, number)

    def said(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def counted(self) -> dict[str, int]:
        found: dict[str, int] = json.loads(self.counts.read_bytes())
        return found


class Forks:
    """Starts commands in a process that has torch loaded already."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self.path = site(folder / "site")
        path = os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH")]))
        self.env = env = {**os.environ, **ONE_THREAD, "PYTHONPATH": path, "MPLBACKEND": "agg"}
        words = [sys.executable, "-W", "error", str(HERE / "forks.py")]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=folder)
        self._by_id: dict[int, Command] = {}
        self._by_pid: dict[int, Command] = {}
        self._ready: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        self.about = self._ready.get(timeout=PATIENCE)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            if "ready" in told:
                self._ready.put(told)
            elif "pid" in told:
                one = self._by_id[told["id"]]
                one.pid = told["pid"]
                self._by_pid[one.pid] = one
                one.began.set()
            else:
                one = self._by_pid.pop(told["ended"])
                one.code = told["code"]
                one.ended.set()

    def start(
        self, *argv: object, fault: Mapping[str, Any] | None = None, places: Mapping[str, int] | None = None
    ) -> Command:
        """Start `ctr` with these words; `fault` is one of forks.Fault, `places` say where it dies."""
        number = next(self._numbers)
        out, err, counts = (self._folder / f"{number}.{name}" for name in ("out", "err", "counts"))
        one = Command([str(word) for word in argv], out, err, counts)
        self._by_id[number] = one
        order = {"id": number, "argv": one.argv, "out": str(out), "err": str(err), "counts": str(counts)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**order, "fault": fault, "places": places}).encode() + b"\n")
        self._process.stdin.flush()
        return one

    def run(self, *argv: object, **planted: Any) -> Command:
        """Start `ctr` and wait for its end."""
        one = self.start(*argv, **planted)
        one.wait()
        return one

    def close(self) -> None:
        for one in list(self._by_pid.values()):
            one.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def together(do: Callable[[Any], str | None], cases: Sequence[Any]) -> None:
    """Do something for every case, two at a time, and fail with all that was found wrong."""
    with ThreadPoolExecutor(2) as pool:
        wrong = [text for text in pool.map(do, cases) if text]
    assert not wrong, f"{len(wrong)} of {len(cases)}:\n" + "\n\n".join(wrong)


def until(true: Callable[[], Any], what: str, seconds: float = 60.0) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, f"never: {what}"
        time.sleep(0.005)


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(run / "status.json") or {}
    return found


def committed(run: Path) -> list[Path]:
    """Return the committed checkpoints, oldest first, after checking each by its manifest, without the engine."""
    folders = [path for path in (run / "checkpoints").glob("*-*") if not path.name.startswith(".")]
    for path in folders:
        files = json.loads((path / "manifest.json").read_bytes())["files"]
        assert sorted(files) == ["record.json", "tensors.safetensors"]
        for name, told in files.items():
            data = (path / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (told["bytes"], told["sha256"]), path / name
    return sorted(folders, key=lambda path: int(path.name.partition("-")[0]))


def standing(run: Path, but: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the events that count, without when they were written and what came from outside."""
    records = [record for record in read_events(run) if record["event"] not in (*OUTSIDE, *but)]
    return [{name: value for name, value in record.items() if name not in VOLATILE} for record in records]


def differences(left: Path, right: Path, but: Sequence[str] = ()) -> list[str]:
    """Say in what two finished runs differ, beyond time: weights, moments, memories, series, events, snapshots."""
    found = [f"{name}: {text}" for name, text in compare(left, right).items() if text != "equal"]
    one, other = standing(left, but), standing(right, but)
    if one != other:
        pair = next(((a, b) for a, b in itertools.zip_longest(one, other) if a != b), None)
        found.append(f"events: {pair}")
    for slug in sorted({path.name for run in (left, right) for path in (run / "snapshots").iterdir()}):
        try:
            mine, theirs = (load_tensors(run / "snapshots" / slug) for run in (left, right))
        except Exception as error:
            found.append(f"snapshot {slug}: {error}")
            continue
        if mine.keys() != theirs.keys() or any(not _equal(mine[name], theirs[name]) for name in mine):
            found.append(f"snapshot {slug} differs")
    if (left / "matrix.json").read_bytes() != (right / "matrix.json").read_bytes():
        found.append("matrix.json differs")
    about = [read_json(run / "provenance.json") or {} for run in (left, right)]
    found += [f"provenance {name} differs" for name in ("identity", "hashes") if about[0][name] != about[1][name]]
    found += [
        f"{run.name}: {status(run).get('status')}" for run in (left, right) if status(run)["status"] != "finished"
    ]
    found += [f"left behind: {path}" for path in right.rglob(".tmp-*")]
    found += [f"left behind: {path}" for path in [right / "lock"] if path.exists()]
    return found


def _equal(left: Any, right: Any) -> bool:
    return left.dtype == right.dtype and bool(left.numpy().tobytes() == right.numpy().tobytes())
