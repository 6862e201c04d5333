"""The mathematics of paired differences: intervals, tests, effect size and power. No state, no files, no torch.

`d` is a float64 array of n paired differences throughout, one per seed, oriented so that positive is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALPHA = 0.05
POWER = 0.80
EXACT_PAIRS = 20
FLIPS = 99_999
RESAMPLES = 10_000
BOOTSTRAP_PAIRS = 10
MOST_SEEDS = 10_000
_TIE = 1e-9


@dataclass(frozen=True)
class SignFlip:
    """A two-sided sign-flip p. `resolution` is the smallest step that p can move by."""

    p: float
    exact: bool
    resolution: float


def mean_of(d: NDArray[np.float64]) -> float:
    """Return the mean of an exactly rounded sum, which no order of seeds changes."""
    return math.fsum(d) / len(d)


def sd_of(d: NDArray[np.float64]) -> float | None:
    """Return the standard deviation with divisor n − 1; None for one pair."""
    if len(d) < 2:
        return None
    mean = mean_of(d)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in d.tolist()) / (len(d) - 1))


def has_spread(d: NDArray[np.float64]) -> bool:
    """Say whether the differences vary by more than rounding; a t-test on rounding noise claims anything.

    Below 1e-140 squares underflow, so that counts as none too.
    """
    return len(d) > 1 and float(np.ptp(d)) > max(_TIE * float(np.abs(d).max()), 1e-140)


def t_interval(d: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Return mean ± t(level, n−1)·sd/√n; None without a spread. Assumes differences that are roughly normal."""
    from scipy.special import stdtrit

    if not has_spread(d):
        return None
    mean, half = mean_of(d), float(stdtrit(len(d) - 1, 0.5 + level / 2)) * (sd_of(d) or 0.0) / math.sqrt(len(d))
    return mean - half, mean + half


def t_test(d: NDArray[np.float64]) -> tuple[float, float]:
    """Return t = mean·√n/sd and its two-sided p with n − 1 degrees of freedom; needs a spread."""
    from scipy.special import stdtr

    t = mean_of(d) * math.sqrt(len(d)) / (sd_of(d) or math.nan)
    return t, float(2 * stdtr(len(d) - 1, -abs(t)))


def signflip(d: NDArray[np.float64]) -> SignFlip:
    """Return the two-sided sign-flip p: the share of sign patterns whose |Σ ±d| reaches the observed |Σ d|.

    All 2ⁿ patterns up to n = 20, then 99,999 seeded draws with p = (1 + hits)/(1 + draws). Sums within 1e-9 of Σ|d|
    count as equal: rounding (under 1e-12 of it for any metric worth comparing) can then neither break nor make a tie,
    so that order, sign and unit change nothing, and what little it could add makes p larger. Assumes differences that
    are symmetric about zero when the arms do not differ.
    """
    size = np.sort(np.abs(d))
    total = math.fsum(size)
    reach = abs(math.fsum(d)) - _TIE * total
    if len(d) <= EXACT_PAIRS:
        sums = np.array(size[:1])  # the first sign is fixed: a pattern and its mirror image reach equally far
        for x in size[1:]:
            sums = np.concatenate([sums + x, sums - x])
        return (
            SignFlip(float((np.abs(sums) >= reach).mean()), True, 1 / len(sums)) if len(d) else SignFlip(1.0, True, 1.0)
        )
    rng = np.random.default_rng(20)
    hits = 0
    for start in range(0, FLIPS, 4096):
        signs = rng.integers(0, 2, size=(min(4096, FLIPS - start), len(d)), dtype=np.int8)
        hits += int((np.abs(2 * (signs @ size) - total) >= reach).sum())
    return SignFlip((1 + hits) / (1 + FLIPS), False, 1 / (1 + FLIPS))


def attainable(n: int) -> float:
    """Return the smallest two-sided sign-flip p that n differing pairs can reach: 2/2ⁿ, or one draw above n = 20."""
    return 1.0 if n < 1 else 2.0 ** (1 - n) if n <= EXACT_PAIRS else 1 / (1 + FLIPS)


def attainable_text(n: int, differing: int | None = None) -> str:
    """Say what the sign-flip test can reach with n pairs, of which `differing` are not ties; stated before Holm."""
    m = n if differing is None else differing
    enough = next(k for k in range(1, EXACT_PAIRS) if attainable(k) < ALPHA)
    who = f"n = {n}" if m == n else f"{m} of {n} pairs differ: {m}"
    if attainable(m) < ALPHA:
        return f"{who} can reach p = {attainable(m):.2g}"
    return f"{who} cannot reach {ALPHA}, {enough} {'seeds' if m == n else 'differing pairs'} can"


def bootstrap(d: NDArray[np.float64], level: float = 0.95) -> tuple[float, float] | None:
    """Return the BCa bootstrap interval of the mean (Efron 1987) from 10,000 seeded resamples; None below n = 10.

    Resamples come in mirrored halves over the sorted differences, so swapping the arms mirrors the interval exactly
    and the order of the seeds changes nothing.
    """
    from scipy.special import ndtr, ndtri

    n = len(d)
    if n < BOOTSTRAP_PAIRS or not has_spread(d):
        return None
    ranked = np.sort(d)
    half = np.random.default_rng(10).integers(0, n, size=(RESAMPLES // 2, n))
    means = np.sort(ranked[np.concatenate([half, n - 1 - half])].mean(axis=1))
    mean = float(ranked.mean())
    below = float((means < mean).mean() + (means == mean).mean() / 2)
    bias = float(ndtri(min(max(below, 1 / RESAMPLES), 1 - 1 / RESAMPLES)))
    pull = ranked - mean  # what each pair adds to the jackknife, up to the factor 1/(n−1), which cancels
    pull = pull / np.abs(pull).max()  # no unit may under- or overflow in the cubes
    skew = float((pull**3).sum()) / (6 * float((pull**2).sum()) ** 1.5)
    bound = bias + ndtri(np.array([0.5 - level / 2, 0.5 + level / 2]))
    low, high = np.quantile(means, ndtr(bias + bound / (1 - skew * bound)))
    return float(low), float(high)


def effect_size(d: NDArray[np.float64]) -> float | None:
    """Return Hedges' g_z: mean/sd times Γ(m/2) / (√(m/2)·Γ((m−1)/2)) with m = n − 1; None below n = 3.

    The factor removes the upward bias of Cohen's d_z, the standardised mean of paired differences.
    """
    from scipy.special import gammaln

    if len(d) < 3 or not has_spread(d):
        return None
    m = len(d) - 1
    return mean_of(d) / (sd_of(d) or math.nan) * math.exp(gammaln(m / 2) - gammaln((m - 1) / 2)) / math.sqrt(m / 2)


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p: the running maximum of (m − rank)·p over ascending p, at most 1."""
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = highest
    return adjusted


def power(n: int, effect: float) -> float:
    """Return the power of the two-sided paired t-test at 0.05 with n pairs and a true mean/sd of `effect`.

    Noncentral t with n − 1 degrees of freedom and noncentrality effect·√n, both tails. scipy gives NaN for some tails
    that are too small for it (the near one only where the noncentrality is 30 beyond the edge); these count as 0.
    """
    from scipy.special import nctdtr, stdtrit

    edge, shift = float(stdtrit(n - 1, 1 - ALPHA / 2)), abs(effect) * math.sqrt(n)
    near, far = (0.0 if math.isnan(tail) else tail for tail in nctdtr(n - 1, shift, np.array([edge, -edge])).tolist())
    return 1 - near + far


def seeds_needed(d: NDArray[np.float64]) -> int | None:
    """Return the fewest pairs with 80 % power at 0.05, if the true effect were the measured one, before Holm.

    None where the question has no answer: without a spread, with a mean of zero, or beyond 10,000 seeds.
    """
    if not has_spread(d) or mean_of(d) == 0:
        return None
    effect = mean_of(d) / (sd_of(d) or math.nan)
    high = 2
    while power(high, effect) < POWER:
        high *= 2
        if high > 2 * MOST_SEEDS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect) >= POWER else (middle, high)
    return high if high <= MOST_SEEDS else None
