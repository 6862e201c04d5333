"""An arm without each of its plugins, and with each alone: which arms are made, and what is not trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctr.engine.ablate import ablation, prepare
from ctr.engine.cli import app
from ctr.engine.errors import UsageError
from ctr.engine.spec import load_study
from ctr.engine.study import run

CONSTANT = "constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}"
TWO = "both: {plugins: {constant_scale: {scale: 1.5}, random_regimes: {first: 1, last: 3, factors: [1, 2, 1, 1]}}}"
THREE = TWO.replace("constant_scale", "checkpoint_gate: {gates: [{metric: val.loss, threshold: 9}]}, constant_scale")
READS = "both: {plugins: {constant_scale: {scale: 1.5}, replay_rates: {arm: baseline}}}"
NAMED = {"constant - baseline": "both - baseline"}


def test_three_plugins_give_eight_arms_and_seven_contrasts(study: Any) -> None:
    made = ablation(load_study(study({CONSTANT: THREE, **NAMED})))
    assert made.plugins == ("checkpoint_gate", "constant_scale", "random_regimes") and made.same == {}
    kept = {
        name: sorted(plugin for plugin, config in arm.get("plugins", {}).items() if config is not None)
        for name, arm in made.source["arms"].items()
    }
    assert kept == {
        "both": ["checkpoint_gate", "constant_scale", "random_regimes"],
        "both-without-checkpoint_gate": ["constant_scale", "random_regimes"],
        "both-without-constant_scale": ["checkpoint_gate", "random_regimes"],
        "both-without-random_regimes": ["checkpoint_gate", "constant_scale"],
        "both-only-checkpoint_gate": ["checkpoint_gate"],
        "both-only-constant_scale": ["constant_scale"],
        "both-only-random_regimes": ["random_regimes"],
        "both-none": [],
    }
    assert made.source["compare"]["contrasts"] == [
        *(f"both - both-without-{name}" for name in made.plugins),
        *(f"both-only-{name} - both-none" for name in made.plugins),
        "both - both-none",
    ]


def test_plugins_of_the_whole_study_are_left_out_too_and_the_result_is_a_valid_study(
    study: Any, tmp_path: Path
) -> None:
    shared = {"arms:\n": "plugins: {constant_scale: {scale: 1.5}}\narms:\n", CONSTANT: TWO, **NAMED}
    made = ablation(load_study(study(shared)))
    again = load_study(prepare(made, tmp_path / "runs"))
    plugins = {one.arm: sorted(one.plugins) for one in again.treatments}
    assert plugins == {
        "both": ["constant_scale", "random_regimes"],
        "both-without-constant_scale": ["random_regimes"],
        "both-without-random_regimes": ["constant_scale"],
        "both-none": [],
    }


def test_of_two_plugins_leaving_one_out_is_having_the_other_alone(study: Any) -> None:
    made = ablation(load_study(study({CONSTANT: TWO, **NAMED})))
    assert made.same == {
        "both-only-constant_scale": "both-without-random_regimes",
        "both-only-random_regimes": "both-without-constant_scale",
    }


def test_an_arm_that_a_plugin_reads_comes_along(study: Any, tmp_path: Path) -> None:
    made = ablation(load_study(study({CONSTANT: READS, **NAMED})))
    assert "baseline" in made.source["arms"]
    assert len(load_study(prepare(made, tmp_path / "runs")).runs()) == 2 * 5


@pytest.mark.parametrize(
    ("replaced", "arm", "text"),
    [
        ({}, None, "no arm of this study has two plugins"),
        ({}, "constant", "arm constant has one plugin, constant_scale; .* needs two or more"),
        ({}, "baseline", "arm baseline has no plugin"),
        ({}, "constent", "no arm constent; arms: baseline, constant. Did you mean constant?"),
        ({"study: tried": f"study: {'x' * 60}", CONSTANT: TWO, **NAMED}, None, "give the study or the arm a shorter"),
    ],
)
def test_what_cannot_be_ablated_is_said(replaced: dict[str, str], arm: str | None, text: str, study: Any) -> None:
    with pytest.raises(UsageError, match=text):
        ablation(load_study(study(replaced)), arm)


def test_what_exists_is_taken_over_and_gives_one_paired_table(
    study: Any, tmp_path: Path, updates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for drawing in ("_figures", "_differences", "_matrices"):
        monkeypatch.setattr(f"ctr.engine.report.{drawing}", lambda what: iter(()))
    path = study({CONSTANT: TWO, **NAMED, "[1, 2]": "[1]"})
    run(path, tmp_path / "runs")
    before = len(updates)
    done = CliRunner().invoke(app, ["ablate", str(path), "--runs", str(tmp_path / "runs"), "--json"])
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(updates) - before == before  # two of four arms were trained, as two were before
    assert len(report["contrasts"]) == 5 and {row["n"] for row in report["contrasts"]} == {1}
    assert "both-s1 was taken from tried/both-s1" in report["ablation"]["notes"]
    assert "both-none-s1 was taken from tried/baseline-s1" in report["ablation"]["notes"]
    copied = tmp_path / "runs" / "tried-ablate-both" / "both-none-s1"
    assert "arm: both-none" in (copied / "spec.yaml").read_text()
    assert json.loads((copied / "provenance.json").read_text())["taken_from"] == "tried/baseline-s1"
    again = CliRunner().invoke(app, ["ablate", str(path), "--runs", str(tmp_path / "runs")])
    assert again.exit_code == 0 and len(updates) == 2 * before
    assert "both-only-constant_scale is both-without-random_regimes: the same plugins, trained once" in again.stdout
