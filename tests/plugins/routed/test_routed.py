"""The plugin in whole runs: what it records, that it changes nothing, and what is refused before anything trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ctr.engine import panels
from ctr.engine.cli import app
from ctr.engine.errors import DataError, UsageError, VerificationError
from ctr.engine.events_log import read_events
from ctr.engine.report import build_report
from ctr.engine.report_panels import Records
from ctr.engine.report_read import read_study
from ctr.engine.series import read_series
from ctr.plugins.routed.command import try_routes
from ctr.plugins.routed.finished import open_run
from ctr.plugins.routed.panel import sections
from ctr.plugins.routed.route import parse
from ctr.plugins.routed.scoring import halves
from ctr.plugins.routed.settings import RoutedConfig
from tests.plugins.test_compose import trained

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
MORE = ", adapter: continued"
PHASES = ("task: A", f"task: B{MORE}", f"task: C{MORE}")
METHODS = """\
          fixed: {kind: route, route: A+0.9B+0.25C}
          grid: {kind: grid, space: factor, weights: {B: [0.9, 1], C: [0, 0.5, 1]}, keep_learning: 0.5, tolerance: 0.5}
          oracle: {kind: greedy, by: block, start: A+0.9B, scales: [0, 0.5, 1]}
          twice: {kind: coordinate, by: module, vary: [B, C], scales: [0, 1], passes: 2}
          slope: {kind: gradient, by: block, vary: [A, B, C], steps: 4}
          tensors: {kind: gradient, space: factor, by: tensor, steps: 3}
          by_prompt: {kind: contextual, candidates: [A, A+B, A+B+C], prefix: 4}
"""
NAMES = ["sequential", "fixed", "grid", "oracle", "twice", "slope", "tensors", "by_prompt"]


def routed(methods: str = METHODS, more: str = "") -> dict[str, str]:
    plugin = f"  baseline:\n    plugins:\n      routed:\n        methods:\n{methods}{more}"
    return {"  baseline: {}\n": plugin}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"), *PHASES, rows=100)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("routed"), *PHASES, replaced=routed(), rows=100)


def records(run: Path, name: str) -> list[dict[str, Any]]:
    return [r["data"] for r in read_events(run) if r["event"] == "record" and r["name"] == name]


def test_every_method_is_recorded_with_what_it_did(run: Path) -> None:
    found = {one["method"]: one for one in records(run, "route")}
    assert list(found) == NAMES
    assert found["sequential"]["gains"] == {"A": 0, "B": 0, "C": 0} and found["sequential"]["objective"] == 0
    assert found["fixed"]["route"] == "A+0.9B+0.25C" and found["grid"]["candidates"] == 6
    for one in found.values():
        if one["kind"] != "contextual":
            gains = one["gains"]
            assert one["objective"] == pytest.approx(2 * gains["A"] + 1.25 * gains["B"] + gains["C"])
            assert parse(one["route"]).phases
    assert set(found["oracle"]["weights"]["C"]) <= {"", "block.0", "block.1"}
    (about,) = records(run, "routes")
    assert about["tasks"] == ["A", "B", "C"] and list(about["rows"]) == ["start", "A", "B", "C"]
    assert set(about["alone"]) == {"A", "B", "C"} and about["items"]["A"] == {"selection": 4, "report": 5}


def test_numbers_that_criteria_may_name(run: Path) -> None:
    found = {one["method"]: one for one in records(run, "route")}
    for name in NAMES[1:]:
        steps, values = read_series(run, f"routed.gain.{name}.A")
        assert steps.tolist() == [12] and values.tolist() == [found[name]["gains"]["A"]]
    index = json.loads((run / "series.json").read_text())
    assert '"routed.gain.fixed.A"' in json.dumps(index) and '"better": "higher"' in json.dumps(index)
    assert read_series(run, "routed.oracle_gap.fixed")[1][0] >= 0


def test_losses_are_those_of_writing_the_weights(run: Path, plain: Path) -> None:
    """The straightforward way: the composed factors written into the adapter in place, and the half scored."""
    found = {one["method"]: one for one in records(run, "route")}
    opened = open_run(plain)
    pairs = opened.snapshots.compose(parse(found["grid"]["route"]), "factor").pairs
    with torch.no_grad():
        for factor in opened.adapter.factors:
            factor.a.copy_(pairs[factor.name].a)
            factor.b.copy_(pairs[factor.name].b)
    for task, one in opened.about.tasks.items():
        if task in "ABC":
            items = halves(task, "val", len(opened.evaluate[task].items("val")))["report"]
            assert one.evaluate(opened.model, "val", items).mean() == found["grid"]["losses"][task], "to the bit"


def test_the_last_state_scores_what_the_run_s_own_matrix_says(run: Path, plain: Path) -> None:
    opened = open_run(plain)
    matrix = json.loads((run / "matrix.json").read_text())
    whole = {row["label"]: row["values"] for row in matrix["rows"]}
    (about,) = records(run, "routes")
    last = opened.snapshots.compose(opened.snapshots.sequential(), "effective")
    for task in "ABC":
        both = opened.evaluate[task]([last], "val")[0]
        assert both.mean() == pytest.approx(whole["C"][task], rel=1e-12)
        cut = len(both.ids) // 2
        report = both.loss_sum[cut:].sum() / both.count[cut:].sum()
        assert about["rows"]["C"][task] == pytest.approx(report, rel=1e-6)


def test_a_finished_run_gives_what_the_plugin_gave(run: Path, plain: Path) -> None:
    methods = {
        "fixed": {"kind": "route", "route": "A+0.9B+0.25C"},
        "oracle": {"kind": "greedy", "by": "block", "start": "A+0.9B", "scales": [0, 0.5, 1]},
        "slope": {"kind": "gradient", "by": "block", "vary": ["A", "B", "C"], "steps": 4},
    }
    again = {one["method"]: one for one in try_routes(plain, {"methods": methods})["routes"]}
    then = {one["method"]: one for one in records(run, "route")}
    for name in methods:
        for key in ("route", "losses", "objective", "chosen_by"):
            assert again[name][key] == then[name][key], (name, key)


def test_begun_above_what_is_shared_a_search_finds_the_same(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"methods": {"o": {"kind": "coordinate", "by": "module", "scales": [0, 0.5, 1], "passes": 2}}}
    quick = try_routes(plain, settings)["routes"][1]
    monkeypatch.setattr("ctr.plugins.routed.scoring.Scorer.rise", lambda *_: None)
    slow = try_routes(plain, settings)["routes"][1]
    for key in ("route", "losses", "objective", "chosen_by", "candidates"):
        assert quick[key] == slow[key], key
    assert quick["passes"] < 0.9 * slow["passes"]


def test_what_cannot_act_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    cases = [
        (PHASES, "          x: {kind: route, route: A+D}\n", "", "no phase D trained the adapter"),
        (PHASES, "          x: {kind: grid, weights: {Q: [1]}}\n", "", "no phase Q trains the adapter"),
        (PHASES, "          x: {kind: route, route: 'A+B[block.9=1]'}\n", "", "block.9: this adapter has block.0"),
        (PHASES, "          x: {kind: greedy, by: tensor}\n", "", "by: tensor parts A from B"),
        (PHASES, "          x: {kind: route, route: A}\n", "        split: calibration\n", "task A has no calibration"),
        (PHASES, "          x: {kind: route, route: A}\n", "        objective: best\n", "'best' is neither frontier"),
        (("task: A", "task: B"), "          x: {kind: route, space: factor, route: A}\n", "", "with a fresh one"),
        (("task: A",), "          x: {kind: route, route: A}\n", "", "and 1 of this run's trains one"),
    ]  # fmt: skip
    for i, (phases, method, more, text) in enumerate(cases):
        folder = tmp_path / str(i)
        folder.mkdir()
        with pytest.raises(AssertionError) as error:
            trained(folder, *phases, replaced=routed(method, more))
        assert text in str(error.value), text
        assert not list(folder.glob("runs/*/*/checkpoints/*"))


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ({"kind": "route", "route": "A+A"}, "phase A is named twice"),
        ({"kind": "grid", "weights": {"B": [0.1] * 200, "C": [0.1] * 200}}, "40,000 combinations; at most 20,000"),
        ({"kind": "gradient", "least": 1, "most": 1}, "no weight lies between"),
        ({"kind": "contextual", "candidates": ["A"]}, "at least 2"),
        ({"kind": "best"}, "does not match any of the expected tags"),
        ({"kind": "greedy", "scales": [float("nan")]}, "finite"),
    ],
)
def test_settings_that_mean_nothing(method: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RoutedConfig.model_validate({"methods": {"x": method}})


@pytest.mark.parametrize("name", ["sequential", "a.b", "../x", "x\x1b[2J", ""])
def test_names_of_methods(name: str) -> None:
    with pytest.raises(ValueError, match="as the name of a method"):
        RoutedConfig.model_validate({"methods": {name: {"kind": "route", "route": "A"}}})


def test_a_split_too_small_to_halve() -> None:
    assert halves("A", "val", 5) == {"selection": [0, 1], "report": [2, 3, 4]}
    with pytest.raises(DataError, match=r"split val of task A has 3 items, too few to halve.*data.val_fraction"):
        halves("A", "val", 3)


def test_a_run_that_is_not_over_or_was_changed_is_refused(plain: Path, tmp_path: Path) -> None:
    settings = {"methods": {"x": {"kind": "route", "route": "A"}}}
    with pytest.raises(UsageError, match="no folder of a run"):
        try_routes(tmp_path, settings)
    copy = Path(shutil.copytree(plain, tmp_path / plain.name))
    status = json.loads((copy / "status.json").read_text())
    (copy / "status.json").write_text(json.dumps({**status, "status": "live"}))
    with pytest.raises(UsageError, match="only a finished one has its last state"):
        try_routes(copy, settings)
    (copy / "status.json").write_text(json.dumps(status))
    file = copy / "adapters" / "B" / "adapter_model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 64
    file.write_bytes(raw)
    with pytest.raises((DataError, VerificationError), match="adapters/B"):
        try_routes(copy, settings)


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run = trained(tmp_path, "task: A", f"task: B{MORE}")
    settings = {"methods": {"x": {"kind": "route", "route": "A"}}}
    assert try_routes(run, settings)["routes"]
    with (tmp_path / "b.txt").open("a") as file:
        file.write("\nash birch")
    with pytest.raises(DataError, match="B.* is no longer what the run read"):
        try_routes(run, settings)


def test_the_command(plain: Path) -> None:
    ran = CliRunner().invoke(
        app, ["routes", str(plain), "--route", "A+0.9B", "--grid", "C=0,0.5", "--search", "oracle"]
    )
    assert ran.exit_code == 0, ran.output
    assert "route-1" in ran.stdout and "grid" in ran.stdout and "oracle" in ran.stdout and "kept" in ran.stdout
    ran = CliRunner().invoke(app, ["routes", str(plain), "--route", "A", "--json"])
    assert json.loads(ran.stdout)["routes"][1]["route"] == "A"
    for words, text in [
        ([], "nothing to try"), (["--grid", "B"], "is no phase with weights"), (["--search", "best"], "there are"),
        (["--route", "A+Z"], "no phase Z"), (["--route", "A", "--space", "dense"], "space"),
    ]:  # fmt: skip
        ran = CliRunner().invoke(app, ["routes", str(plain), *words])
        assert ran.exit_code == 2 or isinstance(ran.exception, UsageError), words
        assert text in ran.output + str(ran.exception)


def test_the_panel_and_the_report_tell_of_routes(run: Path) -> None:
    found = read_study(run.parent)
    made = sections(Records(found.runs[0]))
    titles = [section.title for section in made]
    assert titles[0].startswith("Routes") and "Weights of oracle" in titles and "Choices of by_prompt" in titles
    table = made[0].body
    assert isinstance(table, panels.Table) and [row[0] for row in table.rows] == NAMES
    report = build_report(run.parent)
    gains = {(r["method"], r["quantity"]): r for r in report["route_gains"] if r["against"] == "sequential"}
    assert gains["fixed", "gain of A"]["n"] == 1 and ("by_prompt", "learning kept") not in gains
    assert {row["method"] for row in report["routes"]} == set(NAMES[1:])
    assert {row["method"] for row in report["route_gains"] if row["against"] == "fixed"} == set(NAMES[2:])
    assert report["route_prompts"][0]["chance"] == pytest.approx(1 / 3)
    text = (run.parent / "report.md").read_text()
    assert "## Differences of routes" in text and "## Adapters by tasks" in text
    assert any(figure["kind"] == "routes" for figure in report["figures"])
    assert (run.parent / "figures" / "routes-0.png").read_bytes()[:4] == b"\x89PNG"


def test_a_panel_bears_whatever_a_record_holds() -> None:
    class Held:
        name, spec = "x", {}
        events = [
            {"event": "record", "name": "route", "data": {"gains": {"A": "x"}, "weights": 3, "accuracy": {"A": None}}},
            {"event": "record", "name": "routes", "data": {"alone": {"A": 1, "B": {"A": []}}}},
            {"event": "record", "name": "route", "data": 7},
        ]

        def series(self, key: str) -> Any:
            return np.zeros(0), np.zeros(0)

    assert [s.title for s in sections(Held())]  # type: ignore[arg-type]


def test_choosing_by_prompt_is_judged_on_the_rest_alone(plain: Path) -> None:
    opened = open_run(plain)
    evaluate = opened.evaluate["A"]
    whole = opened.snapshots.compose(parse("A+B"), "effective")
    items = list(range(8))
    early, late = evaluate.parts(whole, "val", items, 3)
    both = evaluate([whole], "val", items)[0]
    np.testing.assert_allclose(early.loss_sum + late.loss_sum, both.loss_sum, rtol=1e-9)
    assert (early.count + late.count == both.count).all() and early.count.max() == 3
    settings = {"methods": {"x": {"kind": "contextual", "candidates": ["A", "A+B+C"], "prefix": 3}}}
    (one,) = [r for r in try_routes(plain, settings)["routes"] if r["method"] == "x"]
    assert one["oracle_gap"] >= 0
    for task in "ABC":
        assert one["best"][task] <= one["losses"][task] <= max(one["uniform"][task] * 2, one["losses"][task])
        assert sum(one["chosen"][task]) == 5 and 0 <= one["accuracy"][task] <= 1
    far = {"methods": {"x": {"kind": "contextual", "candidates": ["A", "A+B"], "prefix": 999}}}
    with pytest.raises(DataError, match="no item of task A is longer than the 999 tokens"):
        try_routes(plain, far)
