"""What the paired seeds of two arms say: the difference, its interval, two tests, and how many seeds are still needed.

Every difference is oriented by the metric's `better`, so that positive is better. An arm improves on another when the
95 % t interval lies above zero and the Holm-adjusted t-test p is below 0.05; nothing else may use that word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .inference import (
    ALPHA,
    MOST_SEEDS,
    SignFlip,
    attainable,
    attainable_text,
    bootstrap,
    effect_size,
    has_spread,
    holm,
    mean_of,
    power,
    sd_of,
    seeds_needed,
    signflip,
    t_interval,
    t_test,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Better = Literal["higher", "lower"]
Verdict = Literal["improves", "worse", "no difference", "identical", "cannot say"]
LARGEST = 1e100  # squares and sums of anything up to here are finite
Pairs = Mapping[int, tuple[float | None, float | None]]

__all__ = [
    "Paired",
    "SignFlip",
    "attainable",
    "attainable_text",
    "bootstrap",
    "difference_unit",
    "effect_size",
    "holm",
    "judge",
    "paired",
    "power",
    "seeds_needed",
    "sentence",
    "signflip",
    "t_interval",
    "t_test",
]


@dataclass(frozen=True)
class Paired:
    """What the pairs of one contrast say about one metric; None stands where a figure has no meaning."""

    n: int
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    dropped: tuple[tuple[int, str], ...]
    wins: int
    ties: int
    losses: int
    mean: float | None = None
    sd: float | None = None
    interval: tuple[float, float] | None = None
    t: float | None = None
    t_p: float | None = None
    holm_p: float | None = None
    family: int = 0
    sign_p: float | None = None
    sign_exact: bool = True
    sign_resolution: float | None = None
    attainable_p: float | None = None
    attainable: str = ""
    bootstrap: tuple[float, float] | None = None
    bootstrap_kind: str = ""
    effect: float | None = None
    seeds_needed: int | None = None
    seeds_note: str = ""
    verdict: Verdict = "cannot say"
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return every figure by name, as the report's JSON holds it."""
        return asdict(self)


def paired(pairs: Pairs, better: Better, names: tuple[str, str] = ("first", "second")) -> Paired:
    """Hold arm a against arm b, seed by seed; a pair that lacks a finite value (up to 1e100) is dropped and named.

    `pairs[seed]` is (value of a, value of b). The difference is a − b where higher is better, b − a where lower is.
    """
    kept, dropped = _complete(pairs, better, names)
    seeds, d = tuple(kept), np.array(list(kept.values()), dtype=np.float64)
    n = len(d)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    result = Paired(n, seeds, tuple(kept.values()), dropped, wins, n - wins - losses, losses)
    if n == 0:
        return replace(result, reason="no complete pair of seeds")
    result = replace(result, mean=mean_of(d), sd=sd_of(d))
    if not d.any():
        every = {1: "1 difference is", 2: "both differences are"}.get(n, f"all {n} differences are")
        text = f"{every} exactly zero"
        return replace(result, verdict="identical", reason=text)
    return _tested(result, d)


def _complete(
    pairs: Pairs, better: Better, names: tuple[str, str]
) -> tuple[dict[int, float], tuple[tuple[int, str], ...]]:
    """Split pairs into differences by seed and dropped seeds with the reason."""
    kept: dict[int, float] = {}
    dropped: list[tuple[int, str]] = []
    for seed in sorted(pairs):
        a, b = pairs[seed]
        wrong = [f"{name} {_lacking(value)}" for name, value in zip(names, (a, b), strict=True) if _lacking(value)]
        if wrong or a is None or b is None:
            dropped.append((seed, ", ".join(wrong)))
        else:
            kept[seed] = float(a) - float(b) if better == "higher" else float(b) - float(a)
    return kept, tuple(dropped)


def _lacking(value: float | None) -> str:
    if value is None:
        return "has no value"
    return "" if abs(value) <= LARGEST else f"is {float(value)}"


def _tested(result: Paired, d: NDArray[np.float64]) -> Paired:
    """Add everything that needs two pairs or a spread, and the verdict before Holm (a family of one)."""
    flip, needed, differing = signflip(d), seeds_needed(d), int(np.count_nonzero(d))
    result = replace(
        result,
        interval=t_interval(d),
        sign_p=flip.p,
        sign_exact=flip.exact,
        sign_resolution=flip.resolution,
        attainable_p=attainable(differing),
        attainable=attainable_text(len(d), differing),
        bootstrap=bootstrap(d),
        effect=effect_size(d),
        seeds_needed=needed,
        seeds_note=_seeds_note(d, needed),
    )
    if result.bootstrap:
        result = replace(result, bootstrap_kind="BCa")
    if len(d) < 2:
        return replace(result, reason="one pair has no spread to judge by; two or more seeds are needed")
    if not has_spread(d):
        text = f"all {len(d)} differences are equal, so there is no spread to judge by"
        return replace(result, verdict="no difference", reason=text)
    t, p = t_test(d)
    return _judged(replace(result, t=t, t_p=p), p, 1)


def judge(results: Sequence[Paired]) -> list[Paired]:
    """Return the contrasts of one metric with Holm over those that were tested, and the verdict that follows.

    Identical contrasts, and those without a test, have no place in the family.
    """
    tested = [i for i, result in enumerate(results) if result.t_p is not None]
    adjusted = holm([p for result in results if (p := result.t_p) is not None])
    judged = list(results)
    for i, p in zip(tested, adjusted, strict=True):
        judged[i] = _judged(results[i], p, len(tested))
    return judged


def _judged(result: Paired, holm_p: float, family: int) -> Paired:
    low, high = result.interval or (-math.inf, math.inf)
    clear = holm_p < ALPHA
    verdict: Verdict = "improves" if clear and low > 0 else "worse" if clear and high < 0 else "no difference"
    reason = ""
    if verdict == "no difference":
        reason = "the 95 % interval spans zero" if low <= 0 <= high else f"the Holm-adjusted p is not below {ALPHA}"
    return replace(result, holm_p=holm_p, family=family, verdict=verdict, reason=reason)


def _seeds_note(d: NDArray[np.float64], needed: int | None) -> str:
    if needed is not None:
        return f"{needed} seeds for 80 % power, if the true effect is the measured one"
    if not has_spread(d):
        return "cannot say: no spread"
    return "cannot say: the mean is zero" if mean_of(d) == 0 else f"more than {MOST_SEEDS} seeds"


def sentence(result: Paired, a: str, b: str, metric: str, unit: str = "") -> str:
    """Speak the verdict of `a - b` on a metric, with the figures that carry it."""
    if result.verdict == "identical":
        return f"{a} and {b} are identical on {metric}: {result.reason}."
    if result.mean is None:
        return f"Nothing can be said about {a} and {b} on {metric}: {result.reason}."
    shown = f"{result.mean:+.3g}{unit and ' ' + difference_unit(unit)}"
    if result.interval:
        shown += f", 95 % interval [{result.interval[0]:+.3g}, {result.interval[1]:+.3g}]"
    shown += f", n = {result.n}"
    if result.holm_p is not None:
        shown += f", p = {result.holm_p:.2g}{' after Holm over ' + str(result.family) if result.family > 1 else ''}"
    if result.verdict == "improves":
        return f"{a} improves {metric} over {b}: {shown}."
    if result.verdict == "worse":
        return f"{a} is worse than {b} on {metric}: {shown}."
    if result.verdict == "cannot say":
        return f"Nothing can be said about {a} and {b} on {metric}: {shown}; {result.reason}."
    return f"No difference can be claimed between {a} and {b} on {metric}: {shown}; {result.reason}."


def difference_unit(unit: str) -> str:
    """Name the unit of a difference: percentages differ by percentage points."""
    return "pp" if unit == "%" else unit
