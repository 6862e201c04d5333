"""Whether an outcome goes with a dose: one line through each seed's points, then a t interval over the seeds' slopes.

Seeds are what is independent here, not points: a seed's points share its weights, its data order and its items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .inference import ALPHA, has_spread, holm, mean_of, t_interval, t_test

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECADES_FROM = 20.0  # doses that span more than this many times are looked at in decades


@dataclass(frozen=True)
class Trend:
    """The mean slope over seeds, of the outcome turned so that positive is better, per unit or per decade of the dose.

    `ranks` is the mean over seeds of Spearman's rank correlation, which no monotone change of the dose moves.
    """

    seeds: tuple[int, ...] = ()
    slopes: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None
    t_p: float | None = None
    holm_p: float | None = None
    family: int = 0
    ranks: float | None = None
    logarithmic: bool = False
    said: str = ""
    reason: str = ""


def spans_decades(doses: Sequence[float]) -> bool:
    """Say whether doses belong on a log axis: all positive, and the largest over 20 times the smallest."""
    return min(doses) > 0 and max(doses) > DECADES_FROM * min(doses)


def trend(doses: Sequence[float], by_seed: Mapping[int, Sequence[float]], sign: int) -> Trend:
    """Fit outcome = c + slope·dose for each seed that has a value at every dose; `sign` turns outcomes for the better.

    Doses on a log axis enter as log10. The slope assumes that the effect is straight in the dose as drawn: one that
    rises and falls again may have none.
    """
    x = np.array(doses, dtype=np.float64)
    logarithmic = spans_decades(doses)
    x = np.log10(x) if logarithmic else x
    seeds = tuple(sorted(by_seed))
    if len(set(doses)) < 2 or not seeds:
        return Trend(logarithmic=logarithmic, reason="no seed has a value at every dose")
    table = sign * np.array([by_seed[seed] for seed in seeds], dtype=np.float64)
    table -= table[:, :1].copy()  # a level has no slope, not even by rounding
    centred = x - x.mean()
    slopes = table @ centred / float(centred @ centred)
    ranks = [_rank_correlation(x, row) for row in table]
    known = [r for r in ranks if r is not None]
    found = Trend(
        seeds,
        tuple(slopes.tolist()),
        mean_of(slopes),
        t_interval(slopes),
        ranks=mean_of(np.array(known)) if known else None,
        logarithmic=logarithmic,
    )
    if not has_spread(slopes):
        lacking = "one seed has no spread to judge by" if len(seeds) == 1 else "all seeds have the same slope"
        return replace(found, reason=lacking)
    return replace(found, t_p=t_test(slopes)[1])


def _rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None where one side does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else None


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    below = (values[:, None] > values[None, :]).sum(axis=1)
    equal = (values[:, None] == values[None, :]).sum(axis=1)
    return np.asarray(below + (equal - 1) / 2, dtype=np.float64)


def judge_trends(found: Sequence[Trend]) -> list[Trend]:
    """Say of each trend what can be claimed, with Holm over all that were tested."""
    adjusted = iter(holm([p for one in found if (p := one.t_p) is not None]))
    family = sum(one.t_p is not None for one in found)
    judged = []
    for one in found:
        if one.t_p is None:
            judged.append(replace(one, said="no trend can be claimed"))
            continue
        p = next(adjusted)
        low, high = one.interval or (0.0, 0.0)
        clear = p < ALPHA and (low > 0 or high < 0)
        why = "" if clear else "the 95 % interval of the slope spans zero"
        why = why if clear or low <= 0 <= high else f"the Holm-adjusted p is not below {ALPHA}"
        said = ("more is better" if low > 0 else "more is worse") if clear else "no trend can be claimed"
        judged.append(replace(one, holm_p=p, family=family, said=said, reason=why))
    return judged
