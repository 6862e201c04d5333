"""What keys and clicks do."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.pilot import Pilot

from ctr.engine.rundir import pending
from ctr.tui.app import Viewer
from ctr.tui.bindings import HELP_ORDER, KEYS, TITLES
from ctr.tui.screens.compare import CompareScreen
from ctr.tui.screens.confirm import Confirm
from ctr.tui.screens.help import HelpScreen, keys
from ctr.tui.screens.picker import Picker
from ctr.tui.screens.run import RunScreen
from ctr.tui.screens.runs import RunsScreen
from ctr.tui.screens.study import StudyScreen
from ctr.tui.widgets.chart import LEFT, Chart
from ctr.tui.widgets.charts import Charts
from ctr.tui.widgets.run_table import RunTable

from .driving import drive, press, screen_text, settle
from .fake_runs import FakeRun, study


@pytest.fixture
def root(tmp_path: Path) -> Path:
    study(tmp_path / "runs", seeds=(42, 137, 7), interval=3600.0)
    return tmp_path / "runs"


def current(app: Viewer) -> str:
    row = app.screen.query_one(RunTable).current
    return "/".join(part for part in row.key if part) if row else ""


def test_the_cursor_follows_the_newest_live_run_until_somebody_moves(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        assert current(app).endswith("controller-s7")
        newer = FakeRun(root / "quickstart", "constant", 7, started=2e9, interval=3600.0)
        newer.write_status("live")
        await settle(app, pilot, 6)
        assert current(app).endswith("constant-s7")
        await press(app, pilot, "up")
        newest = FakeRun(root / "quickstart", "other", 7, started=3e9, interval=3600.0)
        newest.write_status("live")
        await settle(app, pilot, 6)
        assert not current(app).endswith("other-s7")
        await press(app, pilot, "f")
        await settle(app, pilot, 6)
        assert current(app).endswith("other-s7")

    drive(root, script)


def test_filter_shows_only_rows_that_hold_every_word_and_escape_shows_all(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        every = len(table.rows)
        await press(app, pilot, "slash", *"s42 finished", "enter")
        assert {r.run.facts.seed for r in table.rows if r.run} == {42} and len(table.rows) == 1 + 3 + 3
        await press(app, pilot, "slash", "escape")
        assert len(table.rows) == every

    drive(root, script)


def test_sorting_by_a_column_lists_runs_flat_and_back(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        for _ in range(20):
            if table.sort == "loss":
                break
            await press(app, pilot, "s")
        losses = [r.run.facts.train_loss for r in table.rows if r.run and r.run.facts.train_loss is not None]
        assert losses == sorted(losses) and not any(r.kind == "arm" for r in table.rows)
        await press(app, pilot, "S")
        losses = [r.run.facts.train_loss for r in table.rows if r.run and r.run.facts.train_loss is not None]
        assert losses == sorted(losses, reverse=True)

    drive(root, script)


def test_a_click_on_a_head_sorts_and_a_second_click_on_a_row_opens_it(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        await pilot.click(RunTable, offset=(screen_text(app).splitlines()[1].index("val"), 0))
        await settle(app, pilot)
        assert table.sort == "val"
        place = 2 if table.cursor != 2 else 3
        await pilot.click(RunTable, offset=(4, place + 1))
        assert isinstance(app.screen, RunsScreen) and table.cursor == place
        await pilot.click(RunTable, offset=(4, place + 1))
        await settle(app, pilot)
        assert isinstance(app.screen, RunScreen)

    drive(root, script)


def test_folding_hides_and_unfolding_shows(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        every = len(table.rows)
        await press(app, pilot, "home", "left")
        assert len(table.rows) == 1
        await press(app, pilot, "right")
        assert len(table.rows) == every

    drive(root, script)


def test_the_cursor_of_a_chart_reads_exact_values_into_the_panels(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter")
        assert isinstance(app.screen, RunScreen)
        await press(app, pilot, "home", *["right"] * 3)
        step = app.screen.step_at_cursor()
        value = app.screen.store.data("train.loss").nearest(step)
        assert value is not None and f"{value[1]:.4g}" in screen_text(app)
        assert f"step {round(step)}" in screen_text(app)
        await press(app, pilot, "end")
        assert app.screen.charts.cursor is None

    drive(root, script)


def test_zoom_is_shared_by_all_charts_and_undone_by_r(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter", *["left"] * 20, "plus", "plus")
        shown = [c for c in app.screen.query(Chart) if c.display]
        assert len({c.view for c in shown}) == 1 and shown[0].zoomed
        width = shown[0].view[1] - shown[0].view[0]
        assert width < 80
        await press(app, pilot, "r")
        assert shown[0].view[1] - shown[0].view[0] > 140

    drive(root, script)


def test_a_tick_after_the_last_screen_is_gone_is_none(root: Path) -> None:
    """A busy machine may let the clock strike between the end of the screens and its own."""

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        standing = app._screen_stack[:]
        app._screen_stack.clear()
        try:
            app._look()
        finally:
            app._screen_stack[:] = standing

    drive(root, script)


def test_a_click_sets_the_cursor_of_all_charts(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter")
        charts = app.screen.query_one(Charts)
        chart = charts.widgets[0]
        await pilot.click(chart, offset=(LEFT + 20, chart.margin_top + 4))
        await settle(app, pilot)
        assert charts.cursor is not None and 20 < charts.cursor < 80
        assert {each.cursor for each in charts.widgets} == {charts.cursor}

    drive(root, script)


def test_series_are_chosen_for_a_chart_charts_added_and_removed(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter")
        charts = app.screen.query_one(Charts)
        many = len(charts.series)
        await press(app, pilot, "n")
        assert isinstance(app.screen, Picker)
        await press(app, pilot, "slash", *"items", "down", "space", "enter")
        assert charts.series[-1] == ["train.items"] and len(charts.series) == many + 1
        await press(app, pilot, "x")
        assert len(charts.series) == many
        await press(app, pilot, "e", "escape")
        assert len(charts.series) == many

    drive(root, script)


@pytest.mark.parametrize(("key", "what"), [("p", "pause"), ("K", "checkpoint"), ("X", "stop")])
def test_control_asks_first_and_then_writes_a_request(root: Path, key: str, what: str) -> None:
    run = root / "quickstart" / "controller-s7"

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter", key)
        assert isinstance(app.screen, Confirm)
        await press(app, pilot, "enter")  # the focus is on no
        assert pending(run) == []
        await press(app, pilot, key, "y")
        assert [r.what for r in pending(run)] == [what]

    drive(root, script)


def test_a_paused_run_is_asked_to_resume_and_a_finished_one_for_nothing(root: Path) -> None:
    run = root / "quickstart" / "controller-s7"
    status = (run / "status.json").read_text().replace('"live"', '"paused"')
    (run / "status.json").write_text(status)

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        table = app.screen.query_one(RunTable)
        table.go_to(("quickstart", "controller", "controller-s7"), True)
        await press(app, pilot, "enter", "p", "y")
        assert [r.what for r in pending(run)] == ["resume"]
        await press(app, pilot, "escape")
        table.go_to(("quickstart", "baseline", "baseline-s42"), True)
        await press(app, pilot, "enter", "X")
        assert isinstance(app.screen, RunScreen)

    drive(root, script)


def test_the_answer_of_a_run_stands_among_its_decisions(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter", "3")
        from ctr.engine.events_log import EventLog

        EventLog(root / "quickstart" / "controller-s7").write("control", 150, request="pause", who="ada@lab")
        await settle(app, pilot)
        assert "obeys the request to pause" in screen_text(app) and "ada@lab" in screen_text(app)

    drive(root, script)


def test_study_compare_and_back(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "v")
        assert isinstance(app.screen, StudyScreen)
        assert "controller − baseline" in screen_text(app)
        await press(app, pilot, "o")
        assert "val.accuracy" in screen_text(app)
        await press(app, pilot, "c")
        assert isinstance(app.screen, CompareScreen)
        assert "plugins.phase_controller.rule" in screen_text(app)
        await press(app, pilot, "escape", "escape", "escape")
        assert isinstance(app.screen, RunsScreen)

    drive(root, script)


def test_picked_runs_of_any_arm_are_compared(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "home", "down", "down", "space", "space", "c")
        assert isinstance(app.screen, CompareScreen) and len(app.screen.chosen) == 2
        await press(app, pilot, "a", "y", "w", "d")
        assert "specs are equal" in screen_text(app) or "spec differs" in screen_text(app)

    drive(root, script)


def test_every_key_of_the_table_is_in_help_and_every_action_exists() -> None:
    text = keys().plain
    places = {
        "app": Viewer,
        "runs": RunsScreen,
        "run": RunScreen,
        "chart": Chart,
        "study": StudyScreen,
        "compare": CompareScreen,
    }
    for key in KEYS:
        assert key.text in text
        name = key.action.split("(")[0]
        assert hasattr(places[key.place], f"action_{name}"), key
    assert set(places) == set(HELP_ORDER) == set(TITLES)


def test_help_themes_and_the_palette_open_and_close(root: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "question_mark")
        assert isinstance(app.screen, HelpScreen)
        await press(app, pilot, "escape")
        before = app.theme
        await press(app, pilot, "t")
        assert app.theme != before
        await press(app, pilot, "ctrl+p")
        await pilot.press(*"study quick")
        await pilot.pause(0.6)
        await pilot.press("enter")
        await settle(app, pilot, 4)
        assert isinstance(app.screen, StudyScreen)

    drive(root, script)


def test_without_colour_lines_are_told_apart_by_their_pattern(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter")
        assert app.no_color and "╍╍ val.loss" in screen_text(app)

    drive(root, script)


@pytest.mark.parametrize("theme", ["ctr-light", "ctr-contrast", "textual-ansi", "nord"])
def test_every_screen_opens_in_any_theme(root: Path, theme: str) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "enter", "v", "c", "escape", "escape")

    drive(root, script, (90, 30), theme)


def test_an_empty_and_a_missing_root_open(tmp_path: Path) -> None:
    async def script(app: Viewer, pilot: Pilot[None]) -> None:
        await press(app, pilot, "down", "enter", "v", "c", "space", "left", "s")
        assert isinstance(app.screen, RunsScreen)

    (tmp_path / "empty").mkdir()
    drive(tmp_path / "empty", script)
    drive(tmp_path / "never", script)
