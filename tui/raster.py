"""Columns of a series to Braille dots: two columns and four rows of dots in a character cell."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .pyramid import Columns, Floats

Bits = NDArray[np.uint8]
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint8)


def rows_of(y: Floats, bottom: float, top: float, rows: int) -> Floats:
    """Return the dot row, counted from above, of each height in `y`; NaN stays NaN."""
    return (top - y) / (top - bottom) * rows - 0.5


def line(columns: Columns, bottom: float, top: float, rows: int) -> NDArray[np.bool_]:
    """Return dots (rows, n): in each column the stretch that the line covers, joined to its neighbours."""
    parts = np.vstack([columns.low, columns.high, columns.edge[:-1], columns.edge[1:]])
    return fill(np.fmin.reduce(parts), np.fmax.reduce(parts), bottom, top, rows)


def fill(low: Floats, high: Floats, bottom: float, top: float, rows: int) -> NDArray[np.bool_]:
    """Return dots (rows, n) between `low` and `high` in each column; NaN draws nothing."""
    first = np.round(rows_of(high, bottom, top, rows))
    last = np.round(rows_of(low, bottom, top, rows))
    inside = (last >= -0.5) & (first <= rows - 0.5)  # False for NaN
    at = np.arange(rows)[:, None]
    return np.asarray(inside & (at >= np.maximum(first, 0)) & (at <= np.minimum(last, rows - 1)), np.bool_)


def dashed(dots: NDArray[np.bool_], pattern: int) -> NDArray[np.bool_]:
    """Thin a line by column so that several can be told apart without colour; pattern 0 is solid."""
    if not pattern:
        return dots
    on, off = ((8, 3), (3, 3), (1, 2), (10, 2))[(pattern - 1) % 4]
    keep = np.arange(dots.shape[1]) % (on + off) < on
    return dots & keep


def cells(dots: NDArray[np.bool_]) -> Bits:
    """Pack dots (4 h, 2 w) into the Braille bits of cells (h, w)."""
    h, w = dots.shape[0] // 4, dots.shape[1] // 2
    return np.asarray(np.einsum("hrwc,rc->hw", dots.reshape(h, 4, w, 2).astype(np.uint8), _DOTS), np.uint8)
