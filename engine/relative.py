"""Changes in per cent, told only where a per cent means something."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .inference import mean_of, sd_of, t_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPREADS = 3.0  # a baseline nearer to zero than so many of its standard deviations has no per cent


@dataclass(frozen=True)
class Relative:
    """A change as a fraction, 0.1 for 10 %, turned so that positive is better; `reason` where there is none."""

    mean: float | None = None
    interval: tuple[float, float] | None = None
    reason: str = ""


def relative(pairs: Mapping[int, tuple[float, float]], better: Literal["higher", "lower"]) -> Relative:
    """Return ±(exp(mean of ln(a/b)) - 1) over seeds, minus where lower is better, with the t interval of the logs.

    `pairs[seed]` is (a, b), both finite. A ratio needs values above zero in both arms and a baseline well away from it:
    elsewhere a per cent turns its sign or explodes, so there is none, and the reason stands in its place.
    """
    table = np.array(list(pairs.values()), dtype=np.float64).reshape(-1, 2)
    if not len(table):
        return Relative(reason="no complete pair of seeds")
    a, b = table.T
    if reason := _near_zero(a, b):
        return Relative(reason=reason)
    logs = np.log(a) - np.log(b)
    if better == "higher":
        return Relative(math.expm1(mean_of(logs)), _bounds(logs, 1))
    return Relative(0.0 - math.expm1(mean_of(logs)), _bounds(logs, -1))


def _near_zero(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    for who, values in (("baseline", b), ("first arm", a)):
        if values.min() <= 0:
            return f"no per cent: the {who} has {values.min():.3g}, which is not above zero"
    mean, sd = mean_of(b), sd_of(b) or 0.0
    if mean < SPREADS * sd:
        return f"no per cent: the baseline, {mean:.3g} ± {sd:.2g}, is less than {SPREADS:g} sd away from zero"
    return ""


def _bounds(logs: NDArray[np.float64], sign: int) -> tuple[float, float] | None:
    found = t_interval(logs)
    if found is None:
        return (0.0, 0.0) if not logs.any() else None
    low, high = (sign * math.expm1(end) for end in found)
    return (low, high) if sign > 0 else (high, low)
