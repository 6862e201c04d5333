"""Reading a value that stands until the next row, over several series at once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hold = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A number at every step: `values[i]` from `steps[i]` on, `before` until the first, the last one for ever."""

    before: float
    steps: Sequence[int] = ()
    values: Sequence[float] = ()

    def at(self, step: int) -> float:
        index = bisect_right(self.steps, step)
        return self.values[index - 1] if index else self.before


def merge(
    holds: Sequence[Hold],
    neutral: float,
    combine: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
) -> Timeline:
    """Return one timeline of several: at each step combine(… combine(neutral, first) …, last).

    A series counts as `neutral` before its first row. With one series and a neutral that changes no bit (1 for a
    product, infinity for a minimum) the values are the series' own, to the last bit; a product of several differs
    from multiplying the base rate by one after the other by a rounding.
    """
    if not holds:
        return Timeline(neutral)
    steps = np.unique(np.concatenate([at for at, _ in holds]))
    merged = np.full(len(steps), neutral)
    for at, values in holds:
        index = np.searchsorted(at, steps, side="right")
        merged = combine(merged, np.concatenate(([neutral], values))[index])
    return Timeline(neutral, steps.tolist(), merged.tolist())


def latest(rows: Sequence[tuple[tuple[int, int], int]], place: tuple[int, int]) -> int | None:
    """Return the value of the last row at or before `place`, both ordered as (phase, epoch); None where there is none.

    So a phase that goes on longer than its model keeps the model's last value of that phase.
    """
    index = bisect_right(rows, place, key=lambda row: row[0])
    return rows[index - 1][1] if index else None
