"""What a chart puts on the screen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from textual import events
from textual.screen import Screen

from ctr.tui.app import Viewer
from ctr.tui.curves import value_at
from ctr.tui.picture import Axis, Band, Level, Line, Mark, Picture, Shade, axis_from
from ctr.tui.pyramid import Pyramid
from ctr.tui.widgets.chart import Chart


def series(values: list[float], steps: list[int] | None = None) -> Pyramid:
    data = Pyramid()
    data.extend(np.array(steps if steps is not None else range(len(values)), np.int64), np.array(values, np.float64))
    return data


def drawn(*pictures: Picture, do: Callable[[Chart], None] | None = None, size: tuple[int, int] = (60, 16)) -> list[str]:
    """Show pictures one after the other, and return the lines of text of the last."""

    async def session() -> list[str]:
        app, chart = Viewer(Path("nowhere")), Chart()
        async with app.run_test(size=size) as pilot:
            await app.push_screen(Screen())
            await app.screen.mount(chart)
            await pilot.pause()
            for picture in pictures:
                chart.look_at(None)
                chart.show(picture)
                await pilot.pause()
                if do:
                    do(chart)
                    await pilot.pause()
            return [s.text for s in app.screen._compositor.render_strips(app.size)]

    return asyncio.run(session())


def dots(lines: list[str]) -> int:
    return sum("\u2801" <= c <= "\u28ff" for line in lines for c in line)


def test_values_that_are_not_numbers_are_a_gap_with_a_mark() -> None:
    values = [1.0] * 20 + [np.nan] * 10 + [2.0] * 19 + [np.inf]
    lines = drawn(Picture(lines=[Line("loss", 0, series(values))]))
    bottom = lines[13][10:]
    assert "×" in bottom and bottom.rstrip().endswith("×")
    middle = [line[10 + 22 : 10 + 28] for line in lines[1:13]]
    assert not any("\u2801" <= c <= "\u28ff" for part in middle for c in part)


ODD = ([], [5.0], [3.0] * 50, [np.nan] * 5, [0.0, 1e308, -1e308], [1e-320, 2e-320], [1e300, 1e300 * (1 + 1e-15)])


@pytest.mark.parametrize("size", [(60, 16), (20, 5), (9, 3)])
def test_any_series_draws_without_fuss_however_far_one_zooms(size: tuple[int, int]) -> None:
    def fumble(chart: Chart) -> None:
        for factor in (*[3.0] * 40, *[-0.9] * 40, 0.5):
            chart.action_zoom(factor)
            chart.action_zoom(factor, True)
            chart._render_plot()
        chart.action_cursor(-1)
        chart.action_pan(5.0, 5.0)
        chart.action_cursor_end("first")

    pictures = [Picture(lines=[Line("x", 0, series(values))], log=log) for values in ODD for log in (False, True)]
    assert len(drawn(*pictures, do=fumble, size=size)) == size[1]


def test_an_empty_chart_says_so() -> None:
    assert any("no rows yet" in line for line in drawn(Picture(lines=[Line("x", 0, Pyramid())])))


def test_names_are_drawn_as_they_are_and_never_read_as_markup() -> None:
    name = "[@click=app.quit]x[/] [red]y[/]"
    shade = Shade(0, 40, "[/]", 1)
    picture = Picture(
        lines=[Line(name, 0, series([0.0, 40.0], [0, 40]))], shades=[shade], levels=[Level(20.0, "[b]lv")]
    )
    text = "\n".join(drawn(picture, size=(90, 16)))
    assert name in text and "[/]" in text and "[b]lv" in text


def test_wide_characters_take_two_cells_and_shift_nothing() -> None:
    lines = drawn(Picture(lines=[Line("損失 loss", 0, series([0.0, 1.0]))]))
    assert "損失 loss 1" in lines[0]


def test_marks_stand_on_the_axis_where_they_belong() -> None:
    lines = drawn(Picture(lines=[Line("x", 0, series([0.0, 1.0], [0, 100]))], marks=[Mark(50.0, "m")]))
    assert abs(lines[14].index("▲") - (9 + 1 + 50 / 2)) <= 1


def test_a_band_shows_its_mean_and_its_area() -> None:
    x = np.arange(10.0)
    thin = drawn(Picture(bands=[Band("b", 0, x, x * 0 + 5, x * 0 + 5, x * 0 + 5)]))
    wide = drawn(Picture(bands=[Band("b", 0, x, x * 0 + 5, x * 0, x * 0 + 10)]))
    assert dots(wide) > 3 * dots(thin) > 0


def test_the_value_at_the_cursor_is_the_row_itself() -> None:
    data = series([1.0, 2.0, 4.0], [0, 10, 20])
    point, hold = Line("p", 0, data), Line("h", 0, data, hold=True)
    assert [value_at(point, Axis(), x) for x in (None, 4.0, 6.0, 14.0)] == [4.0, 1.0, 2.0, 2.0]
    assert [value_at(hold, Axis(), x) for x in (None, 9.9, 10.0, 19.0)] == [4.0, 1.0, 2.0, 2.0]
    epochs = axis_from("epoch", np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0]))
    assert value_at(point, epochs, 1.1) == 2.0


def test_an_axis_of_positions_that_fall_back_keeps_to_what_rises() -> None:
    axis = axis_from("seconds", np.arange(5.0), np.array([0.0, 5.0, 3.0, np.nan, 9.0]))
    assert axis.position(0) == 0.0 and axis.position(4) == 9.0
    assert axis.steps(np.array([0.0, 5.0, 9.0])).tolist() == [0.0, 1.0, 4.0]
    assert axis_from("x", np.array([1.0]), np.array([1.0])).name == "step"


def test_a_chart_may_be_shown_a_picture_before_it_is_composed() -> None:
    """Many labels ask for a higher legend, which the library would give to parts that do not exist yet."""
    lines = [Line(f"a label of some length {k}", k, series([0.0, 1.0])) for k in range(6)]

    async def session() -> None:
        app = Viewer(Path("nowhere"))
        async with app.run_test(size=(100, 30)) as pilot:
            for _ in range(5):
                await app.push_screen(Screen())
                chart = Chart()
                app.screen.mount(chart)
                for _ in range(30):
                    chart.margin_top = 1
                    chart.show(Picture(lines=lines))
                    chart.margin_top = 3
                    await asyncio.sleep(0)
            await pilot.pause()

    asyncio.run(session())


def test_the_pointer_zooms_and_pans_the_part_it_is_over() -> None:
    """Over the plot both ways, over an axis along it, over the legend not at all; a click puts the cursor there."""

    async def session() -> None:
        app, chart = Viewer(Path("nowhere")), Chart()
        async with app.run_test(size=(60, 16)) as pilot:
            await app.push_screen(Screen())
            await app.screen.mount(chart)
            await pilot.pause()
            chart.show(Picture(lines=[Line("loss", 0, series([float(k) for k in range(101)]))]))
            await pilot.pause()

            def limits() -> list[tuple[float, float]]:
                return [(chart._x_min, chart._x_max), (chart._y_min, chart._y_max)]

            for place, changes in (((30, 7), (1, 1)), ((30, 15), (1, 0)), ((3, 7), (0, 1)), ((30, 0), (0, 0))):
                before = limits()
                await pilot._post_mouse_events([events.MouseScrollDown], chart, offset=place, button=0)
                await pilot.pause()
                assert [a != b for a, b in zip(before, limits(), strict=True)] == [bool(c) for c in changes], place
            chart.action_reset_scales()
            await pilot.pause()
            assert await pilot.click(chart, offset=(9 + 1 + 25, 7))
            assert chart.cursor is not None and abs(chart.cursor - 50.0) <= 2.0
            assert await pilot.click(chart, offset=(3, 7))  # the margin has no place on the axis
            assert abs(chart.cursor - 50.0) <= 2.0

    asyncio.run(session())
