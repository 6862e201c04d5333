"""What a chart is to show, in data coordinates; nothing here knows a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .pyramid import Floats, Pyramid


class Axis(NamedTuple):
    """The horizontal axis: its name, and how its positions turn into steps. Steps themselves need no knots."""

    name: str = "step"
    knots: tuple[Floats, Floats] | None = None  # (steps, positions), both rising

    def steps(self, x: Floats) -> Floats:
        """Return the steps at positions `x`; beyond the knots the last slope goes on."""
        return x if self.knots is None else _interpolate(x, self.knots[1], self.knots[0])

    def position(self, step: float) -> float:
        if self.knots is None:
            return float(step)
        return float(_interpolate(np.array([step], np.float64), self.knots[0], self.knots[1])[0])


def _interpolate(x: Floats, xs: Floats, ys: Floats) -> Floats:
    y = np.interp(x, xs, ys)
    if len(xs) > 1:
        for beyond, a, b in ((x > xs[-1], -1, -2), (x < xs[0], 0, 1)):
            slope = (ys[a] - ys[b]) / (xs[a] - xs[b])
            y = np.where(beyond, ys[a] + (x - xs[a]) * slope, y)
    return np.asarray(y, np.float64)


def axis_from(name: str, steps: Floats, positions: Floats, most: int = 2048) -> Axis:
    """Make an axis from a series of positions; rows that do not rise are left out."""
    good = np.isfinite(positions) & np.isfinite(steps)
    s, x = steps[good].astype(np.float64), positions[good]
    if len(s) > most:
        pick = np.unique(np.linspace(0, len(s) - 1, most).astype(np.intp))
        s, x = s[pick], x[pick]
    if len(x):
        rising = np.append(True, x[1:] > np.maximum.accumulate(x)[:-1])
        s, x = s[rising], x[rising]
    return Axis(name, (s, x)) if len(s) > 1 else Axis()


class Line(NamedTuple):
    """One series on one axis."""

    label: str  # printable
    colour: int  # place in the palette
    data: Pyramid
    hold: bool = False
    until: float | None = None  # a held value stands up to this step
    smooth: int = 0  # rows; 0 draws the series as it is
    axis: Axis | None = None  # when the line has its own way from positions to steps (runs overlaid on epochs)


class Band(NamedTuple):
    """A mean with an interval around it, already in positions of the axis."""

    label: str
    colour: int
    x: Floats
    mean: Floats
    low: Floats
    high: Floats


class Shade(NamedTuple):
    """A stretch of the axis in one state of one owner, such as a regime."""

    start: float
    end: float
    name: str  # printable
    colour: int


class Mark(NamedTuple):
    """A moment at which something was decided."""

    x: float
    name: str
    sign: str = "▲"


class Level(NamedTuple):
    """A threshold, drawn as a flat line."""

    y: float
    name: str


class Picture(NamedTuple):
    """All that one chart shows."""

    title: str = ""
    axis: Axis = Axis()
    lines: Sequence[Line] = ()
    bands: Sequence[Band] = ()
    shades: Sequence[Shade] = ()
    marks: Sequence[Mark] = ()
    levels: Sequence[Level] = ()
    log: bool = False
    span: tuple[float, float] | None = None  # what to show of the axis, whatever the lines cover
    note: str = "no rows yet"  # what stands there while nothing can be drawn

    def extent(self) -> tuple[float, float]:
        """Return the positions of the first and the last row of anything shown."""
        if self.span is not None:
            return self.span
        ends: list[float] = []
        for line in self.lines:
            if line.data.size:
                axis = line.axis or self.axis
                last = float(line.data.steps[-1])
                if line.hold and line.until is not None:
                    last = max(last, line.until)
                ends += [axis.position(float(line.data.steps[0])), axis.position(last)]
        for band in self.bands:
            if len(band.x):
                ends += [float(band.x[0]), float(band.x[-1])]
        good = [e for e in ends if np.isfinite(e)]
        return (min(good), max(good)) if good else (0.0, 1.0)
