"""Whatever a run folder holds, the viewer shows what it can and raises nothing."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from ctr.engine import panels
from ctr.plugins.phase_controller import panel
from ctr.tui import frame, pictures, readings, texts
from ctr.tui.app import Viewer
from ctr.tui.follow import RunStore
from ctr.tui.widgets.panes import source_lines

from .driving import drive, press, settle
from .fake_runs import FakeRun, index

FILES = ("status.json", "spec.yaml", "provenance.json", "series.json", "matrix.json", "events.jsonl")
DEEP = b"[" * 100_000 + b"]" * 100_000
WRONG = (
    b"",
    b"null",
    b"[]",
    b"7",
    b'"text"',
    b"{}",
    b"\xff\xfe\x00",
    b"\x00" * 4096,
    b'{"status": 7, "step": "many", "val": [1], "epoch": -3, "total": 0, "heartbeat": "soon", "host": {}}',
    b'{"status": "live", "step": 1e400, "total": -1, "eta_seconds": -5, "val": {"loss": {}}, "heartbeat": 1e300}',
    b'{"tasks": "main", "rows": {"label": 3}}',
    b'{"tasks": ["a"], "rows": [{"label": "a", "values": {"a": "nan", "b": 1}}, 5, {"label": 3}]}',
    b'{"train.loss": 5, "../../etc/passwd": {}, "x/y": {"kind": "hold"}, "": {}, "a.why": {"labels": 7}}',
    b'{"event": "epoch", "seq": 0, "time": 0, "step": 1, "train": 5, "evaluations": [1], "advice": {"why": 3}}\n' * 3,
    b'{"event": "state", "seq": 0, "time": 0, "step": -5, "owner": {}, "name": [], "value": null}\n',
    b'{"event": ["mark"], "seq": "x"}\n{"event": "mark"}\n[1]\n{"seq": 1e99, "event": "level", "value": "high"}\n',
    DEEP,
    b'{"a":' * 50_000,
    b'{"event": "warning", "seq": 0, "time": 0, "step": 0, "text": "' + b"x" * 10_000_000 + b'"}\n',
    b"x" * 10_000_000,
)


def everything(root: Path) -> None:
    """Read all that the screens read, and make all the text and pictures they show."""
    frame.full(root)
    frame.short(root)
    frame.as_json(root)
    for run in sorted(root.glob("*/*")):
        if not run.is_dir():
            continue
        store = RunStore(run)
        store.poll(1.0)
        store.want([*store.keys()[:50], "train.loss", "train.epoch"])
        store.catch_up()
        need = readings.keys(store.keys())
        texts.rate_panel(readings.rates(store, need, 10.0), {}, True)
        texts.loss_panel(readings.loss(store, need, 10.0), {}, True)
        texts.decision_lines(store.history.decisions[:200], {}, True, 80)
        for record in store.history.records[:200]:
            texts.event_line(record, True)
        for axis in ("step", "epoch", "seconds"):
            pictures.standard(store, store.keys()[:20], axis=axis, log=True, smooth=10).extent()
        for line in source_lines(run / "spec.yaml")[:300]:
            texts.yaml_line(line, True)
        store.facts()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "runs"
    index(root / "demo", ["baseline", "controller"], [1])
    for arm in ("baseline", "controller"):
        FakeRun(root / "demo", arm, 1, epochs=3, per_epoch=8).finish()
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "runs")
    return tmp_path / "runs"


def files(root: Path) -> Iterator[Path]:
    run = root / "demo" / "controller-s1"
    yield from (run / name for name in FILES)
    yield from sorted((run / "series").iterdir())
    yield root / "demo" / "study.json"


def test_the_untouched_folder_is_read_to_the_end(root: Path) -> None:
    everything(root)
    assert "controller" in frame.full(root) and '"verdict"' in frame.as_json(root)


def test_a_file_cut_at_every_64th_byte_is_shown_as_far_as_it_goes(root: Path) -> None:
    for path in files(root):
        content = path.read_bytes()
        for size in range(0, len(content), 64 if path.suffix != ".f64" else 192):
            path.write_bytes(content[:size])
            everything(root)
        path.write_bytes(content)


def test_a_file_of_random_bytes_is_shown_as_nothing(root: Path) -> None:
    dice = random.Random(5)
    for path in files(root):
        content = path.read_bytes()
        for size in (1, 16, 333, 5000):
            path.write_bytes(dice.randbytes(size))
            everything(root)
        path.write_bytes(content)


def test_flipped_bytes_in_any_file_raise_nothing(root: Path) -> None:
    dice = random.Random(7)
    for path in files(root):
        content = path.read_bytes()
        for _ in range(6):
            broken = bytearray(content)
            for _ in range(8):
                broken[dice.randrange(len(broken))] = dice.randrange(256)
            path.write_bytes(bytes(broken))
            everything(root)
        path.write_bytes(content)


@pytest.mark.parametrize("content", WRONG, ids=lambda c: c[:24].decode("latin-1"))
def test_wrong_types_deep_nesting_and_giant_lines_raise_nothing(root: Path, content: bytes) -> None:
    for path in files(root):
        if path.suffix == ".f64" and len(content) > 5000:
            continue
        before = path.read_bytes()
        path.write_bytes(content)
        everything(root)
        path.write_bytes(before)


def test_a_missing_file_at_a_time_and_folders_in_place_of_files(root: Path) -> None:
    for path in files(root):
        content = path.read_bytes()
        path.unlink()
        everything(root)
        path.mkdir()
        everything(root)
        path.rmdir()
        path.write_bytes(content)


def test_steps_that_go_backwards_and_values_that_are_no_numbers_are_drawn(root: Path) -> None:
    import numpy as np

    path = root / "demo" / "controller-s1" / "series" / "train.loss.f64"
    rows = np.frombuffer(path.read_bytes(), np.dtype([("step", "<i8"), ("value", "<f8")])).copy()
    rows["step"] = rows["step"][::-1]
    rows["value"][::3] = np.nan
    rows["value"][1::3] = np.inf
    rows["step"][0], rows["step"][1] = -(2**62), 2**62
    path.write_bytes(rows.tobytes())
    everything(root)

    async def look(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "down", "down", "down", "down", "enter", "y", "plus", "plus", "left", "a", "w", "r")

    drive(root, look, (100, 30))


def test_the_screens_stay_up_while_files_break_under_them(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The open run loses, regains and garbles its files, and vanishes; every tab and screen is drawn all the while."""
    monkeypatch.setattr(panels, "installed", lambda: {"phase_controller": panel.sections})
    shown: list[str] = []

    async def walk(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "down", "down", "down", "down", "enter")
        for k, content in enumerate(WRONG[:16]):
            await pilot.press(str(k % 8 + 1))
            for path in list(files(root)):
                before = path.read_bytes()
                path.write_bytes(content)
                app._look()
                path.write_bytes(before)
            await settle(app, pilot)
        await press(app, pilot, "1")
        shutil.rmtree(root / "demo" / "controller-s1")
        await settle(app, pilot, 4)
        shown.append(str(app.screen.query_one("#head").render()))
        await press(app, pilot, "v", "c", "escape", "escape", "escape")
        shutil.rmtree(root)
        await settle(app, pilot, 4)
        await press(app, pilot, "down", "enter", "escape")

    drive(root, walk, (110, 36))
    assert "gone" in shown[0]
