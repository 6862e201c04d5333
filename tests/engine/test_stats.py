"""The statistics against brute force, published numbers, tables, and simulation under no difference."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ctr.engine import stats
from ctr.engine.inference import mean_of, sd_of

PUBLISHED = {42: (90.58, 90.19), 137: (90.46, 90.03), 2024: (89.88, 89.87)}
differences = st.lists(st.integers(-1000, 1000), min_size=2, max_size=12).map(lambda xs: [x / 8 for x in xs])


def pairs(ds: list[float]) -> dict[int, tuple[float | None, float | None]]:
    return {seed: (d, 0.0) for seed, d in enumerate(ds)}


def hold(ds: list[float], better: stats.Better = "higher") -> stats.Paired:
    return stats.paired(pairs(ds), better)


def test_the_published_three_seeds_are_not_distinguishable_from_zero() -> None:
    result = stats.paired(PUBLISHED, "higher")
    assert result.mean == pytest.approx(0.277, abs=5e-4)
    assert result.sd == pytest.approx(0.232, abs=5e-4)
    assert result.t == pytest.approx(2.07, abs=5e-3)
    assert result.t_p == pytest.approx(0.17, abs=5e-3)
    assert result.interval == pytest.approx((-0.30, 0.85), abs=5e-3)
    assert (result.wins, result.ties, result.losses) == (3, 0, 0)
    assert result.sign_p == result.attainable_p == 0.25
    assert result.attainable == "n = 3 cannot reach 0.05, 6 seeds can"
    assert result.verdict == "no difference"
    spoken = stats.sentence(result, "phase-aware", "conventional", "test.accuracy", "%")
    assert spoken.startswith(
        "No difference can be claimed between phase-aware and conventional on test.accuracy: +0.277 pp"
    )


@pytest.mark.parametrize(
    "ds", [[1.0], [1.0, -2.0], [0.0, 0.0, 3.0], [0.1, 0.2, 0.3, -0.6], [5, -1, 2, 2, -2, 1, 1, 0, 3.5]]
)
def test_sign_flip_equals_brute_force_in_exact_fractions(ds: list[float]) -> None:
    exact = [Fraction(str(d)) for d in ds]
    sums = [
        abs(sum(s * d for s, d in zip(signs, exact, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(ds))
    ]
    brute = sum(s >= abs(sum(exact)) for s in sums) / len(sums)
    flip = stats.signflip(np.array(ds))
    assert flip.p == brute and flip.exact


def test_sign_flip_sees_a_tie_that_rounding_hides() -> None:
    ds = [0.1, 0.2, -0.3]  # 0.1 + 0.2 is not 0.3 in floats: the observed sum is 5.6e-17, its mirror image as large
    assert stats.signflip(np.array(ds)).p == 1.0
    accuracy = [90.3 - 90.2, 90.2 - 90.1, 90.1 - 90.3 + 0.1]
    assert stats.signflip(np.array(accuracy)).p == stats.signflip(np.array([1.0, 1.0, -1.0])).p == 1.0


def test_sign_flip_at_twenty_pairs_is_exact_and_above_is_drawn() -> None:
    ones = np.ones(20)
    assert stats.signflip(ones) == stats.SignFlip(2.0**-19, True, 2.0**-19)
    drawn = stats.signflip(np.ones(21))
    assert not drawn.exact and drawn.resolution == 1e-5 and drawn.p == pytest.approx(1e-5)
    mixed = np.array([1.0] * 20 + [-1.0] * 10)  # 30 coin throws, 20 or more on one side: 0.0987
    tail = 2 * sum(math.comb(30, k) for k in range(20, 31)) / 2**30
    assert stats.signflip(mixed).p == pytest.approx(tail, abs=4 * math.sqrt(tail / 99_999))


@given(differences, st.randoms(use_true_random=False), st.sampled_from([0.01, 3.0, 100.0, 1e-6]))
@settings(max_examples=60, deadline=None)
def test_order_sign_and_unit_change_no_test(ds: list[float], random: object, unit: float) -> None:
    assume(any(ds))
    base, shuffled = hold(ds), list(ds)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again, mirrored, scaled = hold(shuffled), hold([-d for d in ds]), hold([d * unit for d in ds])
    assert base.sign_p == again.sign_p == mirrored.sign_p == scaled.sign_p
    assert base.t_p == again.t_p == mirrored.t_p
    assert (base.t_p is None) == (scaled.t_p is None)
    if base.t_p is not None and base.t_p > 1e-12:
        assert scaled.t_p == pytest.approx(base.t_p, rel=1e-6)
    swap = {"improves": "worse", "worse": "improves"}
    assert mirrored.verdict == swap.get(base.verdict, base.verdict)
    assert (mirrored.wins, mirrored.losses) == (base.losses, base.wins)
    if base.interval and mirrored.interval:
        assert mirrored.interval == (-base.interval[1], -base.interval[0])


def test_lower_is_better_turns_the_difference_around() -> None:
    lower = stats.paired({1: (0.3, 0.5), 2: (0.2, 0.4), 3: (0.1, 0.35)}, "lower")
    assert lower.wins == 3 and lower.mean == pytest.approx(0.65 / 3)


def test_the_interval_and_p_agree_with_the_t_table() -> None:
    d = np.array([1.0, 2.0, 3.0, 4.0, 5.0])  # mean 3, sd 1.5811, t(.975, 4) = 2.776445
    assert stats.t_interval(d) == pytest.approx((3 - 2.776445 * 0.7071068, 3 + 2.776445 * 0.7071068), abs=1e-5)
    t, p = stats.t_test(d)
    assert t == pytest.approx(4.242641) and p == pytest.approx(0.013236, abs=1e-6)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_needed_agree_with_published_power_tables(effect: float, seeds: int) -> None:
    base = np.array([-1.0, 1.0] * 50) / math.sqrt(100 / 99)
    assert stats.seeds_needed(base + effect) == seeds
    assert stats.power(seeds, effect) >= 0.8 > stats.power(seeds - 1, effect)


def test_a_larger_effect_never_needs_more_seeds() -> None:
    base = np.array([-1.0, 1.0] * 3) / math.sqrt(6 / 5)
    needed = [stats.seeds_needed(base + effect) for effect in np.geomspace(0.05, 500, 200)]
    assert None not in needed and needed == sorted(needed, key=lambda n: -(n or 0)) and needed[-1] == 2
    assert stats.seeds_needed(base + 4.2) == 3


def test_power_agrees_with_simulation() -> None:
    draws = np.random.default_rng(1).normal(0.7, 1, size=(4000, 8))
    t = draws.mean(1) * math.sqrt(8) / draws.std(1, ddof=1)
    assert stats.power(8, 0.7) == pytest.approx(float((np.abs(t) > 2.364624).mean()), abs=4 * math.sqrt(0.25 / 4000))


def test_seeds_needed_say_so_when_there_is_no_answer() -> None:
    assert hold([1.0, -1.0]).seeds_note == "cannot say: the mean is zero"
    assert hold([1.0, 1.0]).seeds_note == "cannot say: no spread"
    assert hold([1.0, -0.9999] * 6).seeds_note == "more than 10000 seeds"
    assert hold([1.0, -1.0]).seeds_needed is None


def test_holm_by_hand_and_its_order() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.6, 0.6]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_holm_can_take_a_verdict_away_and_identical_contrasts_do_not_count() -> None:
    weak = hold([0.9, 1.4, 0.2, 1.0, 0.1, 0.6])
    assert weak.t_p is not None and 0.0125 < weak.t_p < 0.025 and weak.verdict == "improves"
    same, two = hold([0.0] * 6), stats.judge([weak, weak])
    assert [r.verdict for r in two] == ["improves", "improves"]
    assert [r.family for r in stats.judge([weak, same, same, same])] == [1, 0, 0, 0]
    noise = hold([1.0, -1.0, 0.5, -0.6, 0.2, -0.3])
    four = stats.judge([weak, noise, noise, noise])
    assert four[0].verdict == "no difference" and "Holm" in four[0].reason and four[0].holm_p == weak.t_p * 4


def test_identical_runs_have_no_test() -> None:
    result = hold([0.0, 0.0, 0.0])
    assert (result.verdict, result.t_p, result.sign_p, result.interval) == ("identical", None, None, None)
    assert result.ties == 3 and "exactly zero" in result.reason
    assert (
        stats.sentence(result, "a", "b", "val.loss")
        == "a and b are identical on val.loss: all 3 differences are exactly zero."
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, 1e300])
def test_a_pair_without_a_finite_value_is_dropped_and_named(bad: float | None) -> None:
    result = stats.paired({7: (1.0, 0.5), 8: (bad, 0.5), 9: (2.0, 1.0)}, "higher", ("controller", "baseline"))
    assert result.seeds == (7, 9) and result.n == 2
    ((seed, why),) = result.dropped
    assert seed == 8 and why.startswith("controller ") and ("has no value" if bad is None else str(bad)) in why


def test_none_one_and_two_pairs() -> None:
    none, one, two = hold([]), hold([0.5]), hold([0.5, 0.7])
    assert none.verdict == "cannot say" and none.mean is None
    assert (
        one.verdict == "cannot say"
        and one.mean == 0.5
        and one.interval is None
        and one.t_p is None
        and one.sign_p == 1.0
    )
    assert two.interval is not None and two.sign_p == 0.5 and two.effect is None
    assert "no complete pair" in stats.sentence(none, "a", "b", "m")
    assert hold([0.0]).reason == "1 difference is exactly zero"


def test_equal_differences_claim_nothing() -> None:
    result = hold([0.30000000000000004 - 0.1, 0.2, 0.2])  # equal but for rounding: t would be about 1e16
    assert result.verdict == "no difference" and result.t_p is None and "equal" in result.reason


def test_ties_limit_what_can_be_attained() -> None:
    result = hold([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert result.attainable_p == 0.5 == result.sign_p
    assert result.attainable == "2 of 7 pairs differ: 2 cannot reach 0.05, 6 differing pairs can"
    assert stats.attainable_text(6) == "n = 6 can reach p = 0.031"


def test_hedges_factor_is_the_published_one() -> None:
    d = np.array([-1.0, 1.0] * 5) + 0.5
    assert stats.effect_size(d) == pytest.approx(mean_of(d) / (sd_of(d) or 0) * 0.9139, abs=1e-4)  # J(9)
    assert stats.effect_size(d[:2]) is None


def test_the_bootstrap_starts_at_ten_and_mirrors_exactly() -> None:
    d = np.random.default_rng(3).gamma(2.0, size=12) - 1
    low, high = stats.bootstrap(d) or (0.0, 0.0)
    assert stats.bootstrap(d[:9]) is None
    assert stats.bootstrap(-d) == pytest.approx((-high, -low), rel=1e-9)
    assert stats.bootstrap(d[::-1]) == (low, high)
    assert low < d.mean() < high and hold(d.tolist()).bootstrap_kind == "BCa"


def test_the_bootstrap_leans_the_way_a_reference_implementation_does() -> None:
    d = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.4, 2.2, 4.0])
    reference = (0.55, 2.13)  # scipy.stats.bootstrap(method="BCa", n_resamples=200_000), two seeds
    assert stats.bootstrap(d) == pytest.approx(reference, abs=0.04)


def _bounds(rate: float, n: int) -> tuple[float, float]:
    half = 3.9 * math.sqrt(rate * (1 - rate) / n)
    return rate - half, rate + half


@pytest.mark.parametrize("n", [3, 6, 12])
def test_no_difference_is_claimed_as_often_as_promised(n: int) -> None:
    """Of 600 null experiments about 5 % reject by t; the exact test at most 5 %; 95 % of the intervals hold zero."""
    rng = np.random.default_rng(n)
    results = [hold(rng.normal(size=n).tolist()) for _ in range(600)]
    low, high = _bounds(0.05, 600)
    rejected = sum((r.t_p or 1) < 0.05 for r in results) / 600
    assert low <= rejected <= high
    assert sum((r.sign_p or 1) < 0.05 for r in results) / 600 <= high
    covered = sum(r.interval is not None and r.interval[0] <= 0 <= r.interval[1] for r in results) / 600
    assert covered == pytest.approx(1 - rejected)
    assert rejected == sum(r.verdict in ("improves", "worse") for r in results) / 600
    if n == 12:  # BCa is known to be narrow at this size: about 92 %
        boots = [stats.bootstrap(np.array(r.differences)) or (1.0, 0.0) for r in results[:250]]
        assert 0.86 <= sum(a <= 0 <= b for a, b in boots) / 250 <= 0.98


def test_holm_keeps_the_family_error_rate() -> None:
    rng = np.random.default_rng(11)
    families = [stats.judge([hold(rng.normal(size=6).tolist()) for _ in range(4)]) for _ in range(300)]
    wrong = sum(any(r.verdict in ("improves", "worse") for r in family) for family in families) / 300
    assert wrong <= _bounds(0.05, 300)[1]
    raw = sum(any((r.t_p or 1) < 0.05 for r in family) for family in families) / 300
    assert raw > 0.10  # without Holm about 19 %: the test above could fail


def test_stats_load_neither_torch_nor_scipy() -> None:
    code = "import sys, ctr.engine.stats; print([m for m in ('torch', 'scipy', 'matplotlib') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
