"""The gate's verdicts on scripted numbers, replayed from a run's log, and what lies in its snapshots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ctr.engine.checkpoint import digest, load_tensors
from ctr.engine.errors import GuardError
from ctr.engine.events_log import read_events
from ctr.engine.testing import finish, make
from ctr.plugins.checkpoint_gate import CheckpointGate
from ctr.plugins.checkpoint_gate.verdict import Gate, Rule, State, advance, begin, bound

torch.set_num_threads(1)


def slots(rule: Rule, rows: list[tuple[float | None, float | None]], state: State | None = None) -> list[int | None]:
    """Return the slot that each (guard, loss) takes."""
    found = []
    state = state or State()
    for guard, loss in rows:
        state = advance(state, {"val.guard": guard, "val.loss": loss}, rule)
        assert state.verdict is not None
        found.append(state.verdict.slot)
    return found


def rule(threshold: float = 1.0, relative_to: str = "none", lower: bool = True, **more: Any) -> Rule:
    return Rule([Gate("val.guard", lower, threshold, relative_to)], "val.loss", **more)


def test_the_best_is_kept_among_those_that_pass() -> None:
    assert slots(rule(), [(0.5, 3.0), (1.5, 1.0), (1.0, 2.0), (0.9, 2.0), (0.2, 2.5)]) == [0, None, 0, None, None]


def test_higher_is_better_where_it_is_said() -> None:
    assert slots(rule(0.7, lower=False), [(0.6, 1.0), (0.7, 2.0), (0.9, 3.0)]) == [None, 0, None]
    ranked = Rule([Gate("val.guard", True, 1.0)], "val.loss", lower=False)
    assert slots(ranked, [(0.0, 1.0), (0.0, 2.0), (0.0, 1.5)]) == [0, 0, None]


def test_a_missing_value_never_passes_and_breaks_the_row() -> None:
    rows = [(0.5, 3.0), (None, 1.0), (0.5, 2.0), (0.5, 1.5), (math.nan, 0.1), (0.5, None)]
    assert slots(rule(consecutive=2), rows) == [None, None, None, 0, None, None]


def test_a_selection_metric_that_is_missing_ranks_nothing() -> None:
    assert slots(rule(), [(0.5, None), (0.5, math.inf), (0.5, 9.0)]) == [None, None, 0]


def test_the_baseline_is_what_stood_before_training() -> None:
    start = begin({"val.guard": 2.0, "val.loss": 9.0})
    assert bound(Gate("val.guard", True, 0.25, "baseline"), start) == 2.25
    assert bound(Gate("val.guard", False, 0.25, "baseline"), start) == 1.75
    assert slots(rule(0.25, "baseline"), [(2.3, 1.0), (2.25, 2.0)], start) == [None, 0]
    assert slots(rule(0.25, "baseline"), [(0.0, 1.0)], begin({"val.guard": math.nan})) == [None]


def test_the_best_so_far_includes_now() -> None:
    assert slots(rule(0.1, "best"), [(2.0, 3.0), (1.0, 2.0), (1.05, 1.0), (1.2, 0.5)]) == [0, 0, 0, None]


def test_a_margin_and_more_places() -> None:
    assert slots(rule(min_delta=0.5), [(0.0, 3.0), (0.0, 2.5), (0.0, 2.4)]) == [0, None, 0]
    assert slots(rule(keep=2), [(0.0, 3.0), (0.0, 5.0), (0.0, 4.0), (0.0, 6.0), (0.0, 1.0)]) == [0, 1, 1, None, 1]


def test_every_gate_must_pass() -> None:
    both = Rule([Gate("val.guard", True, 1.0), Gate("val.loss", True, 2.0)], "val.loss")
    assert slots(both, [(0.5, 2.5), (1.5, 1.5), (0.5, 1.5)]) == [None, None, 0]


# ------------------------------------------------------------------------------------------------------- in a run
def run(folder: Path, **settings: Any) -> Any:
    config = CheckpointGate.Config.model_validate(settings)
    return finish(make(folder, {"checkpoint_gate": CheckpointGate(config, None)}, epochs=5))


def told(folder: Path, name: str) -> list[str]:
    return [r["why"] for r in read_events(folder) if r["event"] == "mark" and r["name"] == name]


def test_every_decision_of_a_run_can_be_given_again_from_its_log(tmp_path: Path) -> None:
    gates = [{"metric": "val.loss", "threshold": 0.02, "relative_to": "best"}]
    kernel = run(tmp_path, gates=gates, select={"metric": "train.loss"})
    plugin = kernel.host.plugins["checkpoint_gate"]
    state = State()
    decisions = [json.loads(why) for why in told(tmp_path, "decision")]
    for said in decisions:
        state = advance(state, said["values"], plugin.rule)
        verdict = state.verdict
        assert verdict is not None
        assert (verdict.passed, verdict.slot, verdict.replaced, list(verdict.bounds), verdict.why) == (
            said["passed"], said["slot"], said["replaced"], said["bounds"], said["why"],
        )  # fmt: skip
    assert len(decisions) == 5 and state.kept == plugin.memory.kept


def test_what_lies_in_the_snapshot_is_the_last_that_the_log_says_was_kept(tmp_path: Path) -> None:
    run(tmp_path, gates=[{"metric": "val.loss", "threshold": 10.0}])
    saved = [r for r in read_events(tmp_path) if r["event"] == "snapshot" and r["slug"] == "gated-0"]
    kept = [json.loads(why)["epoch"] for why in told(tmp_path, "decision") if json.loads(why)["slot"] is not None]
    assert saved and len(saved) == len(kept)
    assert digest(load_tensors(tmp_path / "snapshots" / "gated-0")) == saved[-1]["digest"]
    assert told(tmp_path, "kept")[0].startswith("val.loss: gated-0 (")


NEVER = [{"metric": "val.loss", "threshold": -1.0}]


@pytest.mark.parametrize(("on_none", "stands"), [("last", "snapshots/last"), ("best_ungated", "snapshots/ungated")])
def test_where_none_passed_the_log_says_what_stands(on_none: str, stands: str, tmp_path: Path) -> None:
    run(tmp_path, gates=NEVER, on_none=on_none)
    assert told(tmp_path, "none-passed") == [f"no snapshot passed the gates; {stands} is what stands"]
    assert (tmp_path / stands).is_dir() and not (tmp_path / "snapshots" / "gated-0").exists()


def test_where_none_passed_the_run_can_be_made_to_fail(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="no snapshot passed the gates, and on_none is fail"):
        run(tmp_path, gates=NEVER, on_none="fail")


@pytest.mark.parametrize("metric", ["test.loss", "loss", "val.", "other.loss"])
def test_what_cannot_be_read_is_refused(metric: str) -> None:
    with pytest.raises(ValidationError, match="test split decides nothing|must be a metric on a split"):
        CheckpointGate.Config.model_validate({"gates": [{"metric": metric, "threshold": 1.0}]})


def test_settings_that_cannot_act_are_refused_before_the_run() -> None:
    def phase(name: str, plugins: str = "all") -> Any:
        return SimpleNamespace(name=name, plugins=plugins)

    def misfit(run: list[Any], **settings: Any) -> str:
        config = CheckpointGate.Config.model_validate({"gates": NEVER, **settings})
        return str(CheckpointGate.misfit(config, SimpleNamespace(phases=run), None))

    baseline = [{"metric": "val.loss", "threshold": 0.1, "relative_to": "baseline"}]
    assert misfit([phase("A")]) == "None" and misfit([phase("A")], gates=baseline) == "None"
    assert "phases names C, and this run has A, B" in misfit([phase("A"), phase("B")], phases=["C"])
    assert "no plugin is asked" in misfit([phase("A"), phase("B", "none")])
    assert "measured before phase A, not before phase B" in misfit([phase("A"), phase("B")], gates=baseline)
    assert misfit([phase("base", "none"), phase("B")], gates=baseline) == "None"
