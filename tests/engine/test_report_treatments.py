"""Geometry against loss, doses and criteria, over folders that were never trained."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.engine.report import build_report, render_tables
from ctr.engine.rundir import write_json
from ctr.engine.series import SeriesWriter

from .report_folders import STEPS, Built

RANK = "geometry.effective_rank"
PNG = b"\x89PNG"


@pytest.fixture(autouse=True)
def plates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing where the figures are not what is tested."""
    if "drawn" not in request.fixturenames:
        for name in ("figures.panels", "figure_pairs.differences", "figure_doses.dose_response",
                     "figure_tradeoffs.against_loss"):  # fmt: skip
            monkeypatch.setattr(f"ctr.engine.{name}", lambda *what: PNG)


@pytest.fixture
def drawn() -> None:
    """Asks for real figures."""


@pytest.fixture
def study(tmp_path: Path) -> Built:
    return Built(tmp_path / "study", arms=("baseline", "gossip"), contrasts=(("gossip", "baseline"),))


def measured(
    study: Built, arm: str, seed: int, values: Sequence[float], loss: float, better: Any = "higher", **more: Any
) -> Path:
    """Add a run of six epochs whose plugin logged `values` after its last epochs, and whose last val loss is `loss`."""
    folder = study.run(arm, seed, 90.0, val=lambda e: loss + 0.1 * (6 - e), **more)
    series = SeriesWriter(folder)
    series.declare(RANK, better=better)
    series.append(RANK, [(6 - len(values) + 1 + i) * STEPS for i in range(len(values))], values)
    series.declare("geometry.share.task")
    series.append("geometry.share.task", [STEPS], [1.0])
    series.flush()
    series.close()
    return folder


def spoken(report: dict[str, Any]) -> str:
    out = StringIO()
    Console(file=out, width=400).print(render_tables(report))
    return out.getvalue()


def rule(name: str, *conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    about = {"contrasts": [["gossip", "baseline"]], "arm": "", "evidence": "interval", "weights": "last"}
    return {"name": name, **about, **more, "conditions": list(conditions)}


def condition(metric: str, low: float | None, relative: bool = False, high: float | None = None) -> dict[str, Any]:
    return {"metric": metric, "low": low, "high": high, "relative": relative, "unit": "", "better": "higher"}


# ------------------------------------------------------------------------------------------ geometry against loss
def fill(study: Built, gains: Sequence[float] = (1.0, 1.2, 1.1), costs: Sequence[float] = (0.05, 0.04, 0.06)) -> None:
    for seed, (gain, cost) in enumerate(zip(gains, costs, strict=True), 1):
        measured(study, "baseline", seed, [9.0, 10.0 + seed / 100], 2.0)
        measured(study, "gossip", seed, [0.0, 10.0 + seed / 100 + gain], 2.0 + cost)


def test_a_metric_moves_beside_its_cost_in_loss(study: Built) -> None:
    fill(study)
    (row,) = build_report(study.close())["tradeoffs"]
    assert row["metric"] == RANK and row["mean"] == pytest.approx(1.1) and row["verdict"] == "improves"
    # sd 0.1 over 3 seeds: half an interval 4.303 · 0.1/√3
    assert row["interval"] == pytest.approx([1.1 - 0.2484, 1.1 + 0.2484], rel=1e-3) and row["family"] == 1
    assert row["loss"]["metric"] == "val.loss" and row["loss"]["mean"] == pytest.approx(-0.05)
    assert row["loss"]["relative"]["mean"] == pytest.approx(1 - (2.05 * 2.04 * 2.06) ** (1 / 3) / 2)
    logs = [math.log((10 + s / 100 + g) / (10 + s / 100)) for s, g in zip((1, 2, 3), (1.0, 1.2, 1.1), strict=True)]
    assert row["relative"]["mean"] == pytest.approx(math.expm1(sum(logs) / 3))
    text = (
        f"gossip against baseline: {RANK} moves for the better (+1.1, +11 %), while val.loss changes by -0.05, -2.5 %"
    )
    for sink in ("report.md", "report.html", "report.json"):
        assert "Geometry against loss" in (study.path / sink).read_text() or sink == "report.json"
    assert text in spoken(json.loads((study.path / "report.json").read_text()))


def test_a_lower_is_better_metric_is_turned_and_a_negative_baseline_has_no_per_cent(study: Built) -> None:
    for seed in (1, 2):
        measured(study, "baseline", seed, [-1.0], 2.0, "lower")
        measured(study, "gossip", seed, [-1.5 - seed / 10], 2.0, "lower")
    (row,) = build_report(study.close())["tradeoffs"]
    assert row["mean"] == pytest.approx(0.65) and row["relative"]["mean"] is None
    assert row["relative"]["reason"] == "no per cent: the baseline has -1, which is not above zero"
    assert "n/a: no per cent: the baseline has -1" in (study.path / "report.html").read_text()
    assert row["loss"]["verdict"] == "identical"


def test_what_has_no_direction_or_no_value_is_left_out_or_dropped(study: Built) -> None:
    fill(study)
    measured(study, "baseline", 4, [float("nan")], 2.0)
    measured(study, "gossip", 4, [11.0], 2.0)
    study.run("baseline", 5, 90.0)
    measured(study, "gossip", 5, [11.0], 2.0)
    (row,) = build_report(study.close())["tradeoffs"]
    assert row["n"] == 3 and row["dropped"] == [[4, "baseline is nan"], [5, "baseline has no value"]]


def test_a_study_without_plugin_metrics_or_sweeps_says_nothing_of_them(study: Built) -> None:
    study.run("baseline", 1, 90.0)
    study.run("gossip", 1, 91.0)
    report = build_report(study.close())
    assert report["tradeoffs"] == report["doses"] == report["criteria"] == []
    assert "Geometry against loss" not in (study.path / "report.md").read_text()


# ---------------------------------------------------------------------------------------------------- criteria
def test_a_gain_that_costs_too_much_fails_on_what_it_was_provided_on(study: Built) -> None:
    fill(study, costs=(0.4, 0.41, 0.42))
    cheap = condition("val.loss", -0.1, True)
    index = [
        rule("moves", condition(RANK, 0.05, True)),
        rule("pays", condition(RANK, 0.05, True), cheap),
        rule("more", condition(RANK, 1.0), evidence="interval"),
        rule("mean", condition(RANK, 1.0), evidence="mean"),
        rule("kept", condition("val.loss", None, high=2.2), contrasts=[], arm="baseline", evidence="mean"),
    ]
    report = build_report(study.close(criteria=index))
    moves, pays, more, mean, kept = report["criteria"]
    assert moves["verdict"] == "pass" and moves["conditions"][0]["asked"] == "at least +5 %"
    assert pays["verdict"] == "fail" and pays["reason"] == "val.loss: the whole interval lies below -10"
    assert pays["conditions"][1]["mean"] == pytest.approx(-20.5, rel=0.01)
    assert more["verdict"] == "undecided" and more["reason"] == f"{RANK}: the interval reaches across 1"
    assert mean["verdict"] == "pass" and kept["verdict"] == "pass" and kept["conditions"][0]["mean"] == 2.0
    said = spoken(report)
    assert "✗ pays, gossip − baseline: fails: val.loss changes by -20.5 %" in said and "✓ moves" in said
    for sink in ("report.md", "report.html"):
        text = (study.path / sink).read_text()
        assert "the whole interval lies below" in text and "Criteria" in text


def test_a_series_is_read_at_the_weights_that_are_meant(study: Built) -> None:
    def best_at(epoch: int) -> Any:
        return lambda e: 1.0 + abs(e - epoch)

    for seed in (1, 2):
        for arm, values in (("baseline", [10.0, 20.0]), ("gossip", [11.0 + seed / 10, 30.0])):
            folder = study.run(arm, seed, 90.0, val=best_at(5))
            series = SeriesWriter(folder)
            series.declare(RANK, better="higher")
            series.append(RANK, [5 * STEPS, 6 * STEPS], values)
            series.flush()
            series.close()
    index = [rule(w, condition(RANK, 0.0), weights=w, evidence="mean") for w in ("selected", "last")]
    selected, last = build_report(study.close(criteria=index))["criteria"]
    assert selected["conditions"][0]["mean"] == pytest.approx(1.15)
    assert last["conditions"][0]["mean"] == 10 and last["conditions"][0]["interval"] is None


def test_readings_of_the_matrix_are_judged_and_what_is_undefined_says_why(study: Built) -> None:
    for seed in (1, 2, 3):
        for arm, lost in (("baseline", 1.0), ("gossip", 0.5 + seed / 100)):
            folder = study.run(arm, seed, 90.0, spec="phases: [{name: A, task: A}, {name: B, task: B}]\n")
            rows = [("start", 4.0, 4.0), ("A", 1.0, 3.5), ("B", 1.0 + lost, 1.0)]
            cells = [{"label": name, "values": {"A": a, "B": b}} for name, a, b in rows]
            write_json(
                folder / "matrix.json", {"tasks": ["A", "B"], "metric": "loss", "better": "lower", "rows": cells}
            )
    index = [
        rule("kept", condition("backward_transfer.A.after.B", 0.4), condition("learning.B.after.B", -0.1, True)),
        rule("share", condition("backward_transfer.A.after.B", 0.1, True)),
        rule("value", condition("value.A.after.B", 0.4), evidence="mean"),
        rule("gone", condition("retention.A.after.C", 0.0)),
        rule("other", condition("geometry.rank", 0.0)),
    ]
    kept, share, value, gone, other = build_report(study.close(criteria=index))["criteria"]
    assert kept["verdict"] == "pass" and kept["conditions"][0]["mean"] == pytest.approx(0.48)
    assert kept["conditions"][1]["interval"] == [0.0, 0.0]  # equal at every seed: known exactly
    assert share["verdict"] == "undecided" and "the baseline has -1, which is not above zero" in share["reason"]
    assert value["verdict"] == "pass" and value["conditions"][0]["mean"] == pytest.approx(
        0.48
    )  # a lower loss is better
    for row in (gone, other):
        assert row["verdict"] == "undecided" and "gossip has no value, baseline has no value" in row["reason"]


@pytest.mark.parametrize(
    "criteria",
    [
        3,
        [3],
        [{}],
        [{"name": 1, "contrasts": [[1, 2]], "conditions": {}}],
        [{"name": "a", "arm": "gossip", "conditions": [{"metric": 3, "low": "x"}]}],
        [{"name": "\x1b[31m", "arm": "gossip", "conditions": []}],
    ],
)
def test_a_broken_index_of_criteria_stops_no_report(study: Built, criteria: Any) -> None:
    fill(study)
    build_report(study.close(criteria=criteria))


# ------------------------------------------------------------------------------------------------------- doses
def sweep(study: Built, key: str, values: Sequence[Any], **others: Any) -> list[dict[str, Any]]:
    named = [{"name": f"p{i}", "values": {key: value, **others}} for i, value in enumerate(values)]
    return [{"name": "", "values": {}}, *named]


def test_an_outcome_against_a_swept_value(study: Built) -> None:
    for seed in (1, 2, 3):
        study.run("baseline", seed, 80.0)
        for i, gain in enumerate((0.0, 2.0, 4.0)):
            study.run("gossip", seed, 80.0 + gain + seed * i / 10, point=f"p{i}")
    study.points = ("", "p0", "p1", "p2")
    report = build_report(study.close(points=sweep(study, "plugins.geometry.gossip.weight", [1, 10, 100])))
    (row,) = report["doses"]
    assert [p["value"] for p in row["points"]] == [1, 10, 100] and row["reference"] == "baseline"
    assert [p["against"]["mean"] for p in row["points"]] == pytest.approx([0, 2.2, 4.4])
    # slopes per decade: 2 + seed/10, so 2.1, 2.2, 2.3; half an interval 4.303 · 0.1/√3
    assert row["trend"]["slopes"] == pytest.approx([2.1, 2.2, 2.3]) and row["trend"]["logarithmic"]
    assert row["trend"]["interval"] == pytest.approx([2.2 - 0.2484, 2.2 + 0.2484], rel=1e-3)
    assert row["trend"]["said"] == "more is better" and row["trend"]["ranks"] == 1
    assert "more is better: slope +2.2 pp per decade" in spoken(report)
    assert "Outcomes against plugins.geometry.gossip.weight" in (study.path / "report.html").read_text()
    assert (study.path / "figures" / "dose-plugins.geometry.gossip.weight.png").read_bytes() == PNG


def test_several_keys_fix_each_other_and_names_have_no_trend(study: Built) -> None:
    points = [
        {"name": f"p{i}{w}", "values": {"plugins.geometry.tau": tau, "model.kind": w}}
        for i, tau in enumerate((0.5, 0.9))
        for w in ("a", "b")
    ]
    for seed in (1, 2):
        study.run("baseline", seed, 80.0)
        for i, point in enumerate(points):
            study.run("gossip", seed, 80.0 + i + seed * i / 10, point=str(point["name"]))
    report = build_report(study.close(points=[{"name": "", "values": {}}, *points]))
    rows = {(row["key"], tuple(map(tuple, row["others"]))): row for row in report["doses"]}
    assert set(rows) == {
        ("model.kind", (("plugins.geometry.tau", "0.5"),)), ("model.kind", (("plugins.geometry.tau", "0.9"),)),
        ("plugins.geometry.tau", (("model.kind", "a"),)), ("plugins.geometry.tau", (("model.kind", "b"),)),
    }  # fmt: skip
    named = rows["model.kind", (("plugins.geometry.tau", "0.5"),)]
    assert named["trend"]["mean"] is None and "no numbers" in named["sentence"]
    numeric = rows["plugins.geometry.tau", (("model.kind", "a"),)]
    assert numeric["trend"]["mean"] == pytest.approx((2.2 + 2.4) / 2 / 0.4) and not numeric["trend"]["logarithmic"]


def test_a_seed_that_lacks_a_point_has_no_slope(study: Built) -> None:
    for seed in (1, 2, 3):
        for i in range(3):
            status = "failed" if (seed, i) == (3, 1) else "finished"
            study.run("gossip", seed, 80.0 + i + seed * i / 10, point=f"p{i}", status=status)
    report = build_report(study.close(points=sweep(study, "train.optimizer.base_lr", [1, 2, 3])))
    (row,) = report["doses"]
    assert row["trend"]["seeds"] == [1, 2] and row["points"][1]["n"] == 2
    assert row["points"][0]["against"]["mean"] is None  # the baseline has no run


# ------------------------------------------------------------------------------------------------------ figures
def test_figures_are_drawn_and_drawn_again_the_same(drawn: None, study: Built) -> None:
    for seed in (1, 2):
        measured(study, "baseline", seed, [10.0], 2.0)
        for i in range(3):
            measured(study, "gossip", seed, [11.0 + i + seed / 10], 2.1 + i / 10 + seed / 100, point=f"p{i}")
    folder = study.close(points=sweep(study, "plugins.geometry.gossip.weight", [0.5, 5, "max"]))
    (folder / "figures").mkdir()
    (folder / "figures" / "dose-old.png").write_bytes(b"of an earlier report")
    build_report(folder)
    names = ("against-loss.png", "dose-plugins.geometry.gossip.weight.png")
    first = [(folder / "figures" / name).read_bytes() for name in names]
    assert all(data[:4] == PNG and len(data) > 10_000 for data in first)
    build_report(folder)
    assert [(folder / "figures" / name).read_bytes() for name in names] == first
    assert not (folder / "figures" / "dose-old.png").exists()
