"""Named rules that a study passes or fails: a number with its interval, held against a bound.

Every number comes with the 95 % t interval over seeds. Asked for `interval`, a bound holds when the whole interval
keeps to it, fails when the whole interval breaks it, and is undecided otherwise; asked for `mean`, the mean decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Evidence = Literal["interval", "mean"]
Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A number over seeds; `reason` says why there is none, or why it has no interval. `unit` may be `%`."""

    n: int = 0
    mean: float | None = None
    interval: tuple[float, float] | None = None
    unit: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """What became of one bound: a verdict, and in words why it is no pass."""

    verdict: Verdict
    reason: str = ""


def judge(found: Estimate, low: float, high: float, evidence: Evidence) -> Judged:
    """Hold an estimate against `low` ≤ number ≤ `high`; infinite where there is no bound."""
    if found.mean is None:
        return Judged("undecided", f"n/a: {found.reason or 'no value'}")
    if evidence == "mean":
        side = _beside((found.mean, found.mean), low, high)
        return Judged("fail", f"the mean lies {side}") if side else Judged("pass")
    if found.interval is None:
        return Judged("undecided", f"n/a: no interval: {found.reason or 'one seed has no spread'}")
    if found.interval[0] >= low and found.interval[1] <= high:
        return Judged("pass")
    if side := _beside(found.interval, low, high):
        return Judged("fail", f"the whole interval lies {side}")
    crossed = [bound for bound in (low, high) if found.interval[0] < bound < found.interval[1]]
    return Judged("undecided", f"the interval reaches across {' and '.join(f'{bound:.4g}' for bound in crossed)}")


def _beside(interval: tuple[float, float], low: float, high: float) -> str:
    """Say on which side of the bounds a whole interval lies; nothing where it reaches into them."""
    if interval[1] < low:
        return f"below {low:.4g}"
    return f"above {high:.4g}" if interval[0] > high else ""


def together(parts: Sequence[Judged]) -> Judged:
    """Return the verdict over a rule and what it is provided on: one failure fails it, one doubt leaves it open."""
    for verdict in ("fail", "undecided"):
        for part in parts:
            if part.verdict == verdict:
                return part
    return Judged("pass")


def scaled(found: Estimate, factor: float, unit: str) -> Estimate:
    """Return an estimate in another unit."""
    ends = None if found.interval is None else (found.interval[0] * factor, found.interval[1] * factor)
    return Estimate(found.n, None if found.mean is None else found.mean * factor, ends, unit, found.reason)


def asked(low: float, high: float, unit: str, change: bool) -> str:
    """Say a bound in words: `at least +10 %`."""
    sign, tail = "+" if change else "", f" {unit}" if unit else ""
    if math.isfinite(low) and math.isfinite(high):
        return f"within ±{high:.4g}{tail}" if low == -high else f"from {low:{sign}.4g} to {high:{sign}.4g}{tail}"
    return f"at least {low:{sign}.4g}{tail}" if math.isfinite(low) else f"at most {high:{sign}.4g}{tail}"
