"""Lines and bands cut to the columns of a view, and their exact values at a position."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .picture import Axis, Band, Line
from .pyramid import Columns, Floats


class Curve(NamedTuple):
    """A line or band, cut to the columns of the view."""

    item: Line | Band
    columns: Columns
    smooth: Columns | None = None


def value_at(item: Line | Band, axis: Axis, x: float | None) -> float | None:
    """Return the exact value of a line at a position: the row standing there (hold) or the closest one."""
    if isinstance(item, Band):
        if not len(item.x):
            return None
        k = len(item.x) - 1 if x is None else int(np.abs(item.x - x).argmin())
        return float(item.mean[k])
    if not item.data.size:
        return None
    if x is None:
        return float(item.data.values[-1])
    step = float((item.axis or axis).steps(np.array([x]))[0])
    row = item.data.at(step) if item.hold else item.data.nearest(step)
    return row[1] if row else None


def cut_line(line: Line, axis: Axis, x: Floats, log: bool) -> Curve:
    edges = np.maximum.accumulate((line.axis or axis).steps(x))
    columns = line.data.columns(edges, hold=line.hold, log=log, until=line.until)
    if line.smooth < 2 or line.hold or line.data.size < 3:
        return Curve(line, columns)
    with np.errstate(all="ignore"):
        y = line.data.smooth(edges, line.smooth)
        y = np.where(y > 0, np.log10(y), np.nan) if log else y
    nothing = np.full(len(edges) - 1, np.nan)
    return Curve(line, columns, Columns(nothing, nothing, np.zeros(len(nothing), np.bool_), y))


def cut_band(band: Band, x: Floats, log: bool) -> Curve:
    def at(y: Floats) -> Floats:
        if not len(band.x):
            return np.full(len(x), np.nan)
        with np.errstate(all="ignore"):
            y = np.where(y > 0, np.log10(y), np.nan) if log else y
        return np.asarray(np.interp(x, band.x, y, left=np.nan, right=np.nan), np.float64)

    low, mean, high = at(band.low), at(band.mean), at(band.high)
    none = np.zeros(len(x) - 1, np.bool_)
    line = Columns(np.full(len(none), np.nan), np.full(len(none), np.nan), none, mean)
    return Curve(band, Columns(np.fmin(low[:-1], low[1:]), np.fmax(high[:-1], high[1:]), none, mean), line)


def least_of(best: np.ufunc, *parts: Floats) -> float:
    joined = np.concatenate(parts)
    return float(best.reduce(joined)) if len(joined) else math.nan


def wider(low: float, high: float, least: float) -> tuple[float, float]:
    """Return limits that are apart, in order, and whose difference is a number."""
    low, high = max(low, -1e307), min(high, 1e307)
    if not high - low >= least:
        middle = (low + high) / 2
        low, high = middle - max(least, abs(middle) * 1e-9) / 2, middle + max(least, abs(middle) * 1e-9) / 2
    return low, high
