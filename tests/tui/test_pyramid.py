"""What a chart keeps of a series: every spike, every gap, and numbers that a person can check."""

from __future__ import annotations

import numpy as np
import pytest

from ctr.tui import raster, ticks
from ctr.tui.pyramid import RAW, Pyramid


def made(values: list[float] | np.ndarray, steps: np.ndarray | None = None) -> Pyramid:
    pyramid = Pyramid()
    array = np.asarray(values, np.float64)
    pyramid.extend(np.arange(len(array)) if steps is None else steps, array)
    return pyramid


def edges(first: float, last: float, columns: int) -> np.ndarray:
    return np.linspace(first, last, columns + 1)


@pytest.mark.parametrize("place", [0, 1, 63, 64, 4095, 4096, 150_001, 299_999])
@pytest.mark.parametrize("columns", [7, 100, 640])
def test_a_single_spike_among_300000_rows_stays_visible(place: int, columns: int) -> None:
    values = np.zeros(300_000)
    values[place] = 9.0
    found = made(values).columns(edges(0, 300_000, columns))
    assert np.nanmax(found.high) == 9.0
    column = int(np.nanargmax(found.high))
    assert abs(column - place / 300_000 * columns) <= 1.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_value_among_many_is_marked_and_never_an_extreme(bad: float) -> None:
    values = np.ones(RAW * 2)
    values[70_000] = bad
    found = made(values).columns(edges(0, len(values), 200))
    assert found.bad.sum() == 1
    assert np.nanmax(found.high) == 1.0 and np.nanmin(found.low) == 1.0


def test_a_gap_is_not_drawn_over() -> None:
    found = made([0.0, 1.0, np.nan, 3.0, 4.0]).columns(edges(0, 4, 40))
    dots = raster.line(found, 0, 4, 40)
    assert dots[:, :10].any(axis=0).all() and dots[:, 31:].any(axis=0).all()
    assert not dots[:, 11:29].any()


def test_growing_in_pieces_gives_the_same_columns_as_reading_at_once() -> None:
    values = np.random.default_rng(1).normal(size=200_000)
    whole, pieces = made(values), Pyramid()
    for start in range(0, 200_000, 777):
        part = values[start : start + 777]
        pieces.extend(np.arange(start, start + len(part)), part)
    cut = edges(-10, 250_000, 333)
    for a, b in zip(whole.columns(cut), pieces.columns(cut), strict=True):
        np.testing.assert_array_equal(a, b)


def test_coarse_levels_agree_with_the_rows_themselves() -> None:
    values = np.random.default_rng(2).normal(size=1 << 18)
    pyramid = made(values)
    cut = np.arange(0, (1 << 18) + 1, 1 << 14, dtype=np.float64)
    found = pyramid.columns(cut)
    np.testing.assert_array_equal(found.high, values.reshape(16, -1).max(axis=1))
    np.testing.assert_array_equal(found.low, values.reshape(16, -1).min(axis=1))


def test_a_line_between_two_rows_is_straight_and_a_held_value_is_flat() -> None:
    two = made([0.0, 10.0], np.array([0, 10]))
    np.testing.assert_allclose(two.columns(edges(0, 10, 10)).edge, np.arange(11.0))
    held = two.columns(edges(0, 20, 4), hold=True, until=15.0)
    np.testing.assert_array_equal(held.edge, [0.0, 0.0, 10.0, 10.0, np.nan])


def test_on_a_logarithmic_height_what_is_not_positive_is_a_gap() -> None:
    found = made([1.0, 10.0, 0.0, -5.0, 100.0]).columns(np.arange(-0.5, 5.0), log=True)
    np.testing.assert_allclose(found.high, [0.0, 1.0, np.nan, np.nan, 2.0])


def test_the_smooth_line_is_the_mean_of_the_rows_around_and_skips_holes() -> None:
    series = made([1.0, 2.0, 3.0, np.nan, 5.0])
    np.testing.assert_allclose(series.smooth(np.array([1.0, 3.0]), 3), [2.0, 4.0])


def test_rows_out_of_order_are_put_in_order_and_the_later_of_two_wins() -> None:
    series = made([3.0, 1.0, 7.0], np.array([2, 0, 2]))
    assert series.steps.tolist() == [0, 2] and series.values.tolist() == [1.0, 7.0]


def test_empty_single_and_constant_series_have_columns() -> None:
    for series in (Pyramid(), made([5.0]), made([2.0] * 10), made([np.nan])):
        found = series.columns(edges(0, 10, 20))
        assert len(found.low) == 20 and len(found.edge) == 21
        raster.cells(raster.line(found, 1.9, 2.1, 40))


def test_the_row_at_and_nearest_a_step() -> None:
    series = made([1.0, 2.0, 3.0], np.array([0, 10, 20]))
    assert series.at(9.9) == (0, 1.0) and series.at(10) == (10, 2.0) and series.at(-1) is None
    assert series.nearest(14) == (10, 2.0) and series.nearest(16) == (20, 3.0) and series.nearest(-5) == (0, 1.0)


def test_dots_are_packed_into_braille() -> None:
    dots = np.zeros((4, 4), bool)
    dots[0, 0] = dots[3, 1] = dots[1, 2] = True
    assert [chr(0x2800 + b) for b in raster.cells(dots)[0].tolist()] == ["⢁", "⠂"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.01235"),
        (12.5, "12.5"),
        (1.2e-5, "1.2e-5"),
        (0, "0"),
        (float("nan"), "NaN"),
        (None, "–"),
        (float("-inf"), "-inf"),
        (1e12, "1e12"),
        (True, "–"),
        (96.58, "96.58"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_written_short(value: object, text: str) -> None:
    assert ticks.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5s"), (65, "1m 05s"), (3700, "1h 01m"), (90000, "1d 1h"), (-9, "0s"), (None, "–")]
)
def test_times_are_written_in_two_units(seconds: object, text: str) -> None:
    assert ticks.span(seconds) == text


@pytest.mark.parametrize("limits", [(0, 1), (-3e-9, 5e-9), (1e15, 1e15 + 8), (0, 1e300), (5, 5), (0, float("inf"))])
def test_ticks_lie_within_their_limits_and_can_be_told_apart(limits: tuple[float, float]) -> None:
    at = ticks.nice(*limits, 6)
    assert len(at) <= 7 and all(limits[0] - 1e-6 * abs(limits[0]) <= t <= limits[1] * (1 + 1e-9) for t in at)
    assert len(ticks.labels(at)) == len(at)
