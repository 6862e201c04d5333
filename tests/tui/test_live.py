"""Following a run that another process is writing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from textual.pilot import Pilot

from ctr.tui.app import Viewer
from ctr.tui.follow import RunStore
from ctr.tui.history import line
from ctr.tui.screens.run import RunScreen
from ctr.tui.widgets import preview

from .driving import drive, press, screen_text, settle
from .fake_runs import FakeRun

WRITER = """
import importlib.util, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("fake_runs", sys.argv[1])
fake_runs = importlib.util.module_from_spec(spec)
sys.modules["fake_runs"] = fake_runs
spec.loader.exec_module(fake_runs)
run = fake_runs.FakeRun(Path(sys.argv[2]), "controller", 1, epochs=6, per_epoch=20, started=time.time())
while run.step < run.total:
    run.advance(2)
    run.write_status("live")
    time.sleep(0.03)
run.finish()
"""


@pytest.fixture
def writer(tmp_path: Path) -> subprocess.Popen[bytes]:
    script = Path(__file__).with_name("fake_runs.py")
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(script), str(tmp_path / "runs" / "demo")])
    yield process
    process.kill()
    process.wait()


async def until(what: object, seconds: float = 60.0) -> None:
    assert callable(what)
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"never came: {what()}"
        await asyncio.sleep(0.05)


def test_a_run_is_followed_from_its_first_step_to_its_end(tmp_path: Path, writer: subprocess.Popen[bytes]) -> None:
    """Nothing is driven but keys: the viewer's own clock finds the run, opens it, and shows that it has finished."""
    seen: list[int] = []

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await until(lambda: app.catalog.newest_live() is not None)
        await until(lambda: "live" in screen_text(app))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen))
        screen = app.screen
        assert isinstance(screen, RunScreen)

        def grown() -> bool:
            seen.append(screen.store.newest())
            return seen[-1] == 120 and screen.run.facts.status == "finished"

        await until(grown)
        await until(lambda: "✔ finished" in screen_text(app) and "S3_POLISH" in screen_text(app))
        assert len({d.step for d in screen.store.history.decisions}) == 4

    drive(tmp_path / "runs", script)
    assert seen == sorted(seen) and len(set(seen)) > 2, "it came in pieces, never backwards"
    assert writer.wait(10) == 0


def test_a_torn_last_line_and_a_torn_last_row_mean_not_yet(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "demo")
    run.advance(3)
    store = RunStore(run.path)
    store.want(["train.loss"])
    store.catch_up()
    records, rows = len(store.history.records), store.data("train.loss").size
    events, series = run.path / "events.jsonl", run.path / "series" / "train.loss.f64"
    with events.open("ab") as a, series.open("ab") as b:
        a.write(b'{"seq":99,"time":1.0,"event":"warning","st')
        b.write(b"\x03\x00\x00")
    store.catch_up()
    assert (len(store.history.records), store.data("train.loss").size) == (records, rows)
    with events.open("ab") as a, series.open("ab") as b:
        a.write(b'ep":3,"owner":"x","text":"whole"}\n')
        b.write(b"\x00" * 5 + b"\x00" * 8)
    store.catch_up()
    assert (len(store.history.records), store.data("train.loss").size) == (records + 1, rows + 1)
    assert line(store.history.records[-1])[2] == "warning"


def test_a_series_cut_by_a_resume_starts_over(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "demo")
    run.advance(10)
    store = RunStore(run.path)
    store.want(["train.loss"])
    store.catch_up()
    path = run.path / "series" / "train.loss.f64"
    path.write_bytes(path.read_bytes()[: 16 * 4])
    store.catch_up()
    assert store.data("train.loss").steps.tolist() == [0, 1, 2, 3]


def test_only_what_is_on_the_screen_is_read(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "demo")
    run.advance(10)
    store = RunStore(run.path)
    store.catch_up()
    assert store.series == {} and "train.loss" in store.index
    store.want(["train.loss"])
    store.catch_up()
    assert list(store.series) == ["train.loss"]


def test_a_slice_is_bounded_by_records(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "demo")
    for k in range(500):
        run.log.write("warning", 0, owner="x", text=str(k))
    store = RunStore(run.path)
    store.poll(5.0, records=100)
    assert len(store.history.records) == 100


def test_idle_looks_draw_nothing(tmp_path: Path) -> None:
    run = FakeRun(tmp_path / "runs" / "demo", interval=3600.0)
    run.advance(30)
    run.write_status("live")
    drawn: list[float] = []

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter")
        await settle(app, pilot)
        assert isinstance(app.screen, RunScreen)
        before = app.screen._drawn
        for _ in range(5):
            app._look()
        await pilot.pause(1.2)
        drawn.extend([before, app.screen._drawn])

    drive(tmp_path / "runs", script)
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("wait", [0.15, 1e9], ids=["rested", "just moved"])
def test_the_preview_of_a_run_that_has_just_begun_shows_nothing_of_the_run_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float
) -> None:
    study = tmp_path / "runs" / "demo"
    old = FakeRun(study, "controller", 1, interval=3600.0, started=1000.0)
    old.advance(30)
    old.write_status("live")
    old.series.flush()
    seen: list[str] = []

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await settle(app, pilot, 4)
        seen.append(screen_text(app))
        monkeypatch.setattr(preview, "WAIT", wait)  # how long the cursor must rest before a run is read
        old.finish()
        new = FakeRun(study, "controller", 2, interval=3600.0, started=2000.0)
        await settle(app, pilot, 4)
        row = app.screen.query_one("#preview", preview.Preview)._row
        assert row is not None and row.run is not None and row.run.path == new.path
        seen.append(screen_text(app))
        new.close()

    drive(tmp_path / "runs", script)
    before, begun = seen
    assert "━━ train.loss" in before and "┤" in before, before
    assert "━━" not in begun.split("seed 2")[-1] and "┤" not in begun, begun
    assert ("no rows yet" in begun) == (wait < 1.0)
