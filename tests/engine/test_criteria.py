"""Changes in per cent, bounds and trends, by numbers that a person can check."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ctr.engine.criteria import Estimate, Judged, asked, judge, together
from ctr.engine.errors import SpecError
from ctr.engine.outcome_names import reading_kinds, reading_place
from ctr.engine.relative import relative
from ctr.engine.spec import load_study
from ctr.engine.task import Metric
from ctr.engine.trend import judge_trends, spans_decades, trend

from .spec_fakes import STUDY, Fakes, Scale, study


# ---------------------------------------------------------------------------------------------------- per cent
def test_a_tenth_more_loss_is_ten_per_cent_worse_and_a_tenth_more_rank_ten_better() -> None:
    pairs = {1: (1.1, 1.0), 2: (2.2, 2.0)}
    assert relative({1: (1.1, 1.0)}, "higher").mean == pytest.approx(0.1)
    assert relative({1: (1.1, 1.0)}, "lower").mean == pytest.approx(-0.1)
    assert relative(pairs, "higher").reason == "no per cent: the baseline, 1.5 ± 0.71, is less than 3 sd away from zero"


def test_the_interval_is_that_of_the_log_ratios_and_turns_with_the_direction() -> None:
    # ln(a/b) is 0.1 and 0.3: mean 0.2, sd 0.1414, half a t interval with 1 degree of freedom 12.706 · 0.1
    pairs = {1: (math.exp(0.1), 1.0), 2: (1.1 * math.exp(0.3), 1.1)}
    found, turned = relative(pairs, "higher"), relative(pairs, "lower")
    assert found.mean == pytest.approx(math.expm1(0.2)) and found.interval is not None
    assert found.interval == pytest.approx((math.expm1(0.2 - 1.2706), math.expm1(0.2 + 1.2706)), rel=1e-3)
    assert turned.mean == pytest.approx(-math.expm1(0.2)) and turned.interval is not None
    assert turned.interval == pytest.approx((-found.interval[1], -found.interval[0]))


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        ({1: (-0.546, -0.370), 2: (-0.5, -0.4)}, "the baseline has -0.4, which is not above zero"),
        ({1: (-0.059, 0.001), 2: (0.1, 0.001)}, "the first arm has -0.059, which is not above zero"),
        ({1: (0.05, 0.001), 2: (0.05, 0.05), 3: (0.05, 0.02)}, "is less than 3 sd away from zero"),
        ({1: (1.0, 0.0)}, "the baseline has 0, which is not above zero"),
        ({}, "no complete pair of seeds"),
    ],
)
def test_no_per_cent_of_what_is_negative_or_near_zero(pairs: dict[int, tuple[float, float]], reason: str) -> None:
    found = relative(pairs, "higher")
    assert found.mean is found.interval is None and reason in found.reason


def test_equal_arms_have_changed_by_exactly_nothing() -> None:
    for better in ("higher", "lower"):
        found = relative({1: (2.0, 2.0), 2: (2.5, 2.5)}, better)  # type: ignore[arg-type]
        assert str(found.mean) == "0.0" and found.interval == (0.0, 0.0)


# ---------------------------------------------------------------------------------------------------- verdicts
WIDE, CLEAR = Estimate(4, 12.0, (8.0, 16.0), "%"), Estimate(4, 12.0, (11.0, 13.0), "%")


@pytest.mark.parametrize(
    ("found", "low", "high", "evidence", "verdict", "reason"),
    [
        (CLEAR, 10, math.inf, "interval", "pass", ""),
        (CLEAR, 11, 13, "interval", "pass", ""),  # a bound that is reached is kept
        (WIDE, 10, math.inf, "interval", "undecided", "the interval reaches across 10"),
        (WIDE, 10, math.inf, "mean", "pass", ""),
        (WIDE, 20, math.inf, "interval", "fail", "the whole interval lies below 20"),
        (WIDE, 13, math.inf, "mean", "fail", "the mean lies below 13"),
        (WIDE, -5, 5, "interval", "fail", "the whole interval lies above 5"),
        (WIDE, 9, 15, "interval", "undecided", "the interval reaches across 9 and 15"),
        (Estimate(1, 12.0, None, "%", "one pair"), 10, math.inf, "interval", "undecided", "n/a: no interval: one pair"),
        (Estimate(1, 12.0, None, "%", "one pair"), 10, math.inf, "mean", "pass", ""),
        (Estimate(reason="no per cent"), 10, math.inf, "mean", "undecided", "n/a: no per cent"),
    ],
)
def test_verdicts(found: Estimate, low: float, high: float, evidence: str, verdict: str, reason: str) -> None:
    assert judge(found, low, high, evidence) == Judged(verdict, reason)  # type: ignore[arg-type]


def test_one_failure_fails_a_rule_and_one_doubt_leaves_it_open() -> None:
    good, doubt, bad = Judged("pass"), Judged("undecided", "a"), Judged("fail", "b")
    assert together([good, doubt, bad]) == bad and together([good, doubt]) == doubt and together([good]) == good


def test_bounds_in_words() -> None:
    assert asked(10, math.inf, "%", True) == "at least +10 %" and asked(-10, math.inf, "", True) == "at least -10"
    assert asked(-2, 2, "pp", True) == "within ±2 pp" and asked(-math.inf, 3, "s", False) == "at most 3 s"
    assert asked(1, 3, "", False) == "from 1 to 3"


# ------------------------------------------------------------------------------------------------------ trends
def test_slopes_of_seeds_are_what_is_tested() -> None:
    # slopes 1 and 3: mean 2, sd √2, half an interval 12.706 · √2/√2
    found = trend([1, 2, 3], {1: [0, 1, 2], 2: [5, 8, 11]}, 1)
    assert found.slopes == pytest.approx((1, 3)) and found.mean == pytest.approx(2) and found.ranks == 1
    assert found.interval == pytest.approx((2 - 12.706, 2 + 12.706), rel=1e-4) and not found.logarithmic
    (judged,) = judge_trends([found])
    assert judged.said == "no trend can be claimed" and judged.reason == "the 95 % interval of the slope spans zero"


def test_a_loss_that_falls_with_the_dose_is_better_with_more() -> None:
    rows = {seed: [3 + seed, 2 + seed, 1 + seed + 0.01 * seed] for seed in range(1, 7)}
    clear, flat = judge_trends([trend([1, 10, 100], rows, -1), trend([1, 2], {1: [0.0, 1.0]}, 1)])
    assert clear.logarithmic and clear.mean == pytest.approx(0.9825) and clear.said == "more is better"
    assert clear.family == 1 and flat.said == "no trend can be claimed" and "one seed" in flat.reason
    (worse,) = judge_trends([trend([1, 10, 100], rows, 1)])
    assert worse.said == "more is worse" and worse.ranks == -1


def test_noise_that_shares_a_seed_does_not_pass_for_a_trend() -> None:
    """Six points of a seed are not six pairs: a level that differs by seed has no bearing on the slopes."""
    rows = {seed: [100.0 * seed + (1 if (seed + i) % 2 else -1) for i in range(6)] for seed in range(6)}
    (found,) = judge_trends([trend(list(range(1, 7)), rows, 1)])
    assert found.said == "no trend can be claimed" and found.mean == pytest.approx(0, abs=1e-12)


def test_what_has_no_trend() -> None:
    assert trend([1, 1], {1: [1, 2]}, 1).mean is None and trend([1, 2], {}, 1).mean is None
    assert trend([1, 2], {1: [3, 3], 2: [3, 3]}, 1).reason == "all seeds have the same slope"
    assert trend([1, 2], {1: [3, 3]}, 1).ranks is None
    assert trend([0.5, 5, 50], {1: [90.1, 90.1, 90.1], 2: [91, 91, 91]}, 1).slopes == (0, 0)
    assert spans_decades([0.1, 10]) and not spans_decades([1, 20]) and not spans_decades([0, 100])


# ------------------------------------------------------------------------------------------------------ the spec
def test_names_of_readings() -> None:
    assert reading_place("backward_transfer.A.after.B") == ("backward_transfer", "A", "B")
    assert reading_place("learning.a.b.after.c") == ("learning", "a.b", "c")
    assert reading_place("val.loss") is reading_place("x.after.y") is None
    assert {"value", "learning", "backward_transfer", "retention"} <= set(reading_kinds())


CRITERIA = """\
criteria:
  cheap: {metric: val.loss, worse_by_at_most: 10 %}
  good:
    contrast: treated - base
    metric: test.accuracy
    better_by: 0.5
    evidence: mean
    provided: [{metric: train.loss, within: 2}, {metric: learning.main.after.main, better_by: 0}]
  there: {arm: base, metric: value.main.after.main, at_most: 2, weights: last}
"""


def test_criteria_are_resolved_for_the_index(tmp_path: Path) -> None:
    found = study(tmp_path, STUDY + CRITERIA).index()["criteria"]
    assert [rule["name"] for rule in found] == ["cheap", "good", "there"]
    assert found[0]["contrasts"] == [["treated", "base"]] and found[0]["evidence"] == "interval"
    (cheap,) = found[0]["conditions"]
    assert (cheap["low"], cheap["high"], cheap["relative"], cheap["better"]) == (-0.1, None, True, "lower")
    first, second, third = found[1]["conditions"]
    assert (first["low"], first["unit"]) == (0.5, "%") and (second["low"], second["high"]) == (-2, 2)
    assert third["better"] == "higher" and found[2]["conditions"][0]["better"] == "lower"
    assert (found[2]["arm"], found[2]["weights"]) == ("base", "last")
    assert study(tmp_path, STUDY + CRITERIA).metrics["test.accuracy"] == {"unit": "%", "better": "higher"}


class Measures(Scale):
    metrics = {"rank": Metric("", "higher")}


def test_a_series_takes_its_direction_from_its_plugin(tmp_path: Path) -> None:
    fakes = Fakes()
    fakes.plugins = {**fakes.plugins, "scale": Measures}

    def load(rule: str) -> dict[str, object]:
        path = tmp_path / "x.yaml"
        path.write_text(STUDY.replace("base: {}", "base: {plugins: {scale: {by: 1}}}") + f"criteria: {{a: {rule}}}\n")
        found = load_study(path, (), fakes).criteria[0]["conditions"][0]
        assert isinstance(found, dict)
        return found

    assert load("{metric: scale.rank, better_by: 10 %}")["better"] == "higher"
    assert load("{metric: scale.rank.layer3, better_by: 1}")["better"] == "higher"
    assert load("{metric: scale.other, better: lower, within: 1}")["better"] == "lower"
    for rule, text in [
        (
            "{metric: scale.rank, better: lower, within: 1}",
            "contradicts plugin scale, which says that higher is better",
        ),
        ("{metric: scale.rang, within: 1}", "Did you mean scale.rank?; of another series of it"),
    ]:
        with pytest.raises(SpecError) as refused:
            load(rule)
        assert text in str(refused.value), str(refused.value)


def test_the_examples_of_the_documents_are_valid(tmp_path: Path) -> None:
    """The fenced blocks of docs/criteria.md, laid over a study of three tasks whose plugin measures."""
    text = (Path(__file__).parents[2] / "docs" / "criteria.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    fakes = Fakes()
    names = ("effective_rank", "isotropy", "active_fraction", "head_similarity")
    geometry = type("Geometry", (Scale,), {"metrics": {name: Metric() for name in names}})
    fakes.plugins = {**fakes.plugins, "geometry": geometry}
    tasks = "".join(f"  {name}: {{kind: pictures, data: {{source: noise, size: 5}}}}\n" for name in "ABC")
    base = STUDY.replace("task: {kind: pictures, data: {source: noise, size: 5}}\n", f"tasks:\n{tasks}")
    base = base.replace("  base: {}\n  treated: {plugins: {scale: {by: 1.1}}}\n", "  baseline: {}\n  gossip: {}\n")
    base += "phases: [{task: A}, {task: B}, {task: C}]\nplugins: {geometry: {by: 1}}\n"
    counts = []
    for block in blocks:
        (tmp_path / "x.yaml").write_text(base + block)
        counts.append(len(load_study(tmp_path / "x.yaml", (), fakes).criteria))
    assert counts == [1, 13]
