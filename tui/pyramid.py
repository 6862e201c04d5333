"""A series of any length, cut down to the few hundred columns of a chart without losing a spike or a gap."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FAN = 64
RAW = 1 << 16  # rows that a view may hold before coarser levels are used


class Columns(NamedTuple):
    """What a series does in each column between `n + 1` edges: extremes, holes, and the line's height at the edges."""

    low: Floats  # (n,) NaN where no row lies
    high: Floats  # (n,)
    bad: NDArray[np.bool_]  # (n,) a value that is not finite lies here
    edge: Floats  # (n + 1,) NaN where the line has a gap


class Pyramid:
    """Rows (step, value) with minima and maxima over blocks of 64, 4096, ... rows, extended as the file grows."""

    def __init__(self) -> None:
        self.version = 0
        self.clear()

    def clear(self) -> None:
        self.size = 0
        self._steps: Ints = np.empty(0, np.int64)
        self._values: Floats = np.empty(0, np.float64)
        self._levels: list[_Level] = []
        self._sums: tuple[int, Floats, Ints] | None = None
        self._sorted = True
        self.version += 1

    @property
    def steps(self) -> Ints:
        return self._steps[: self.size]

    @property
    def values(self) -> Floats:
        return self._values[: self.size]

    def extend(self, steps: Ints, values: Floats) -> None:
        """Take new rows. Steps that go backwards (a damaged file) are put in order, the later row winning."""
        if not len(steps):
            return
        rising = bool(np.all(steps[1:] > steps[:-1])) and (not self.size or steps[0] > self._steps[self.size - 1])
        self._append(steps, values)
        if not rising:
            self._put_in_order()
        self._raise_levels()
        self._sums = None
        self.version += 1

    def _append(self, steps: Ints, values: Floats) -> None:
        end = self.size + len(steps)
        if not self.size:  # the first rows, often all of them, are taken as they are; they are only ever read
            self._steps, self._values, self.size = steps, values, end
            return
        if end > len(self._steps):
            room = max(end, len(self._steps) * 3 // 2, 1024)
            self._steps = _grown(self._steps, self.size, room)
            self._values = _grown(self._values, self.size, room)
        self._steps[self.size : end] = steps
        self._values[self.size : end] = values
        self.size = end

    def _put_in_order(self) -> None:
        order = np.argsort(self.steps, kind="stable")
        steps, values = self.steps[order], self.values[order]
        last = np.append(steps[1:] != steps[:-1], True)
        self._steps, self._values = steps[last], values[last]
        self.size = len(self._steps)
        self._levels = []

    def _raise_levels(self) -> None:
        below: _Level | None = None
        k, size = 0, self.size // FAN
        while size:
            if k == len(self._levels):
                self._levels.append(_Level())
            level = self._levels[k]
            start = level.size
            if below is None:
                rows = _finite(self._values[start * FAN : size * FAN]).reshape(-1, FAN)
                level.extend(_fmin(rows), _fmax(rows), np.asarray(np.isnan(rows).any(axis=1)))
            else:
                cut = slice(start * FAN, size * FAN)
                shape = (-1, FAN)
                level.extend(
                    _fmin(below.low[cut].reshape(shape)),
                    _fmax(below.high[cut].reshape(shape)),
                    np.asarray(below.bad[cut].reshape(shape).any(axis=1)),
                )
            below, k, size = level, k + 1, size // FAN

    def at(self, step: float) -> tuple[int, float] | None:
        """Return the last row at or before `step`."""
        if not self.size:
            return None
        k = int(np.searchsorted(self.steps, step, side="right")) - 1
        return (int(self._steps[k]), float(self._values[k])) if k >= 0 else None

    def nearest(self, step: float) -> tuple[int, float] | None:
        """Return the row whose step is closest to `step`."""
        if not self.size:
            return None
        k = int(np.clip(np.searchsorted(self.steps, step), 1, self.size - 1)) if self.size > 1 else 0
        if k and step - self._steps[k - 1] <= self._steps[k] - step:
            k -= 1
        return int(self._steps[k]), float(self._values[k])

    def columns(self, edges: Floats, *, hold: bool = False, log: bool = False, until: float | None = None) -> Columns:
        """Cut the series at `edges` (steps, rising). `until` is how far a held value stands beyond its last row."""
        first = np.searchsorted(self.steps, edges)
        low, high, bad = self._extremes(first)
        edge = self._at_edges(edges, hold=hold, log=log, until=until)
        if log:
            low, high = _log(low), _log(high)
        return Columns(low, high, bad, edge)

    def _extremes(self, first: NDArray[np.intp]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        start, stop = int(first[0]), int(first[-1])
        if stop - start <= RAW or not self._levels:
            rows = _finite(self._values[start:stop])
            return _by_column(rows, rows, np.isnan(rows), first - start)
        per_column = (stop - start) / max(len(first) - 1, 1)
        k = 0
        while k + 1 < len(self._levels) and per_column > 8 * FAN ** (k + 2):
            k += 1
        level = self._levels[k]
        block = FAN ** (k + 1)
        cut = np.clip(first // block, 0, level.size)
        begin = int(cut[0])
        low, high, bad = level.low[begin:], level.high[begin:], level.bad[begin:]
        tail = self._tail(level.size * block) if stop == self.size else None
        if tail is not None:
            low, high, bad = np.append(low, tail[0]), np.append(high, tail[1]), np.append(bad, tail[2])
            cut = np.where(first >= self.size, level.size + 1, cut)
        return _by_column(low, high, bad, cut - begin)

    def _tail(self, start: int) -> tuple[float, float, bool] | None:
        rows = _finite(self._values[start : self.size])
        if not len(rows):
            return None
        return float(np.fmin.reduce(rows)), float(np.fmax.reduce(rows)), bool(np.isnan(rows).any())

    def _at_edges(self, edges: Floats, *, hold: bool, log: bool, until: float | None) -> Floats:
        if not self.size:
            return np.full(len(edges), np.nan)
        after = np.searchsorted(self.steps, edges, side="right")
        left = np.clip(after - 1, 0, self.size - 1)
        right = np.clip(after, 0, self.size - 1)
        a, b = _finite(self._values[left]), _finite(self._values[right])
        if log:
            a, b = _log(a), _log(b)
        if hold:
            end = self._steps[self.size - 1] if until is None else until
            y = np.where(edges <= end, a, np.nan)
        else:
            x0, x1 = self._steps[left].astype(np.float64), self._steps[right].astype(np.float64)
            share = np.divide(edges - x0, x1 - x0, out=np.zeros(len(edges)), where=x1 > x0)
            y = a * (1 - share) + b * share  # never larger than either, so it cannot overflow
            y[(after >= self.size) & (edges > self._steps[self.size - 1])] = np.nan
            exact = edges == x0
            y[exact] = a[exact]
        y[after == 0] = np.nan
        return y

    def smooth(self, at: Floats, window: int) -> Floats:
        """Return the mean over the `window` rows around each step in `at`; holes are left out, not carried on."""
        if not self.size:
            return np.full(len(at), np.nan)
        if self._sums is None or self._sums[0] != self.size:
            rows = _finite(self.values)
            good = ~np.isnan(rows)
            total = np.concatenate([[0.0], np.cumsum(np.where(good, rows, 0.0))])
            self._sums = (self.size, total, np.concatenate([[0], np.cumsum(good)]))
        _, total, count = self._sums
        middle = np.searchsorted(self.steps, at)
        a, b = np.clip(middle - window // 2, 0, self.size), np.clip(middle + (window + 1) // 2, 0, self.size)
        n = count[b] - count[a]
        mean = np.divide(total[b] - total[a], n, out=np.full(len(at), np.nan), where=n > 0)
        mean[(at < self._steps[0]) | (at > self._steps[self.size - 1])] = np.nan
        return np.asarray(mean, np.float64)


class _Level:
    """One level of blocks: smallest, largest, and whether a value that is not finite lies in the block."""

    def __init__(self) -> None:
        self.low: Floats = np.empty(0)
        self.high: Floats = np.empty(0)
        self.bad: NDArray[np.bool_] = np.empty(0, np.bool_)

    @property
    def size(self) -> int:
        return len(self.low)

    def extend(self, low: Floats, high: Floats, bad: NDArray[np.bool_]) -> None:
        if len(low):
            self.low, self.high = np.concatenate([self.low, low]), np.concatenate([self.high, high])
            self.bad = np.concatenate([self.bad, bad])


Array = TypeVar("Array", Ints, Floats)


def _grown(old: Array, size: int, room: int) -> Array:
    new = np.empty(room, old.dtype)
    new[:size] = old[:size]
    return new


def _finite(values: Floats) -> Floats:
    """Return `values` with infinities turned into NaN: a chart has no place for either."""
    bad = np.isinf(values)
    return np.asarray(np.where(bad, np.nan, values), np.float64) if bad.any() else values


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(values > 0, np.log10(values), np.nan), np.float64)


def _fmin(rows: Floats) -> Floats:
    return np.asarray(np.fmin.reduce(rows, axis=1), np.float64)


def _fmax(rows: Floats) -> Floats:
    return np.asarray(np.fmax.reduce(rows, axis=1), np.float64)


def _by_column(
    low: Floats, high: Floats, bad: NDArray[np.bool_], cut: NDArray[np.intp]
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Reduce rows between neighbouring cuts; an empty column gives NaN."""
    begin, end = cut[:-1], cut[1:]
    full = end > begin
    n = len(begin)
    lows, highs, bads = np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.bool_)
    if full.any():
        at, stop = begin[full], int(end[-1])
        lows[full] = np.fmin.reduceat(low[:stop], at)
        highs[full] = np.fmax.reduceat(high[:stop], at)
        bads[full] = np.logical_or.reduceat(bad[:stop], at)
    return lows, highs, bads
