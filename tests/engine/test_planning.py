"""What a study does before it trains: whom a run reads, how many threads, what damaged files in its folder change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctr.engine import study as studies
from ctr.engine.errors import FolderOwned
from ctr.engine.order import Order, Outcome
from ctr.engine.rundir import RunDir, write_json

Write = Callable[..., Path]
Ends = dict[str, tuple[str, int]]
CONSTANT = "constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}"
REPLAY = {CONSTANT: f"{CONSTANT}\n  replay: {{plugins: {{replay_rates: {{arm: constant, seed: next}}}}}}"}
ALL = ["baseline-s1", "baseline-s2", "constant-s1", "constant-s2"]


@pytest.fixture(autouse=True)
def ends(monkeypatch: pytest.MonkeyPatch) -> Ends:
    """Write what a run leaves instead of training it; the test says how runs end that do not finish."""
    ends: Ends = {}

    def pretend(order: Order, registry: Any, stop: threading.Event) -> Outcome:
        here, name = RunDir(order.folder), order.run.name
        status, code = ends.get(name, ("finished", 0))
        write_json(here.provenance, {"identity": order.identity, "threads": order.threads})
        write_json(here.status, {"status": status, "code": code, "error": status if code else None})
        here.folder("checkpoints", "1-9").mkdir(parents=True, exist_ok=True)
        if status == "interrupts":
            stop.set()
        return Outcome(name, "stopped" if status == "interrupts" else status, code)

    monkeypatch.setattr("ctr.engine.execute.execute", pretend)
    monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})
    return ends


def outcomes(result: studies.StudyResult) -> dict[str, str]:
    return {one.name: one.status for one in result.outcomes}


def said(result: studies.StudyResult, name: str) -> Outcome:
    return next(one for one in result.outcomes if one.name == name)


def index(result: studies.StudyResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((result.folder / "study.json").read_bytes())
    return found


# ---------------------------------------------------------------------------------------------------- references
def test_another_request_is_not_answered_as_the_one_before(study: Write, tmp_path: Path) -> None:
    first = studies.run(study(REPLAY), tmp_path / "runs")
    before = {"arm": "constant", "seed": "next", "run": "constant-s2"}
    assert index(first)["replays"]["replay-s1"] == {"replay_rates": before}
    same = {old: new.replace("seed: next", "seed: same") for old, new in REPLAY.items()}
    with pytest.raises(FolderOwned, match=r"replay_rates.seed: 2 → 1(.|\n)*--replace"):
        studies.run(study(same), tmp_path / "runs")
    again = studies.run(study(same), tmp_path / "runs", replace=True)
    assert index(again)["replays"]["replay-s1"]["replay_rates"] == {**before, "seed": "same", "run": "constant-s1"}
    assert outcomes(again)["replay-s1"] == "finished" and outcomes(again)["constant-s1"] == "kept"


def test_a_reference_to_another_arm_reads_that_arm(study: Write, tmp_path: Path) -> None:
    studies.run(study(REPLAY), tmp_path / "runs")
    other = {old: new.replace("arm: constant", "arm: baseline") for old, new in REPLAY.items()}
    result = studies.run(study(other), tmp_path / "runs", replace=True)
    found = index(result)["replays"]["replay-s1"]["replay_rates"]
    assert found == {"arm": "baseline", "seed": "next", "run": "baseline-s2"}


@pytest.mark.parametrize("replays", [[1], {"replay-s1": "constant-s1"}, {"replay-s1": {"replay_rates": "constant-s1"}}])
def test_a_record_that_says_nothing_is_not_followed(study: Write, tmp_path: Path, replays: Any) -> None:
    first = studies.run(study(REPLAY), tmp_path / "runs")
    write_json(first.folder / "study.json", {**index(first), "replays": replays})
    assert set(outcomes(studies.run(study(REPLAY), tmp_path / "runs")).values()) == {"kept"}


# ------------------------------------------------------------------------------------------------------- threads
def test_another_thread_count_is_refused_while_finished_runs_exist(study: Write, tmp_path: Path, ends: Ends) -> None:
    studies.run(study(), tmp_path / "runs", arms=["baseline"])
    two = study({"threads: 1": "threads: 2"}, "two.yaml")
    text = r"finished with 1 threads, and train.threads asks for 2(.|\n)*set train.threads: 1, or"
    with pytest.raises(FolderOwned, match=text):
        studies.run(two, tmp_path / "runs", arms=["constant"])
    assert index(studies.run(study(), tmp_path / "runs"))["threads"] == 1
    ends.update(dict.fromkeys(ALL, ("failed", 5)))
    studies.run(study(), tmp_path / "other")
    assert index(studies.run(two, tmp_path / "other"))["threads"] == 2  # nothing finished that it would not match


@pytest.mark.parametrize(("status", "then"), [("finished", "kept"), ("stopped", "stopped")])
def test_a_lost_index_does_not_lose_the_thread_count(
    study: Write, tmp_path: Path, ends: Ends, status: str, then: str
) -> None:
    ends.update(dict.fromkeys(ALL, (status, 0)))
    folder = studies.run(study({"threads: 1": "threads: 7"}), tmp_path / "runs").folder
    (folder / "study.json").unlink()
    again = studies.run(study({"  threads: 1\n": ""}), tmp_path / "runs")
    assert index(again)["threads"] == 7 and set(outcomes(again).values()) == {then}


# -------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'"finished"', b'{"status": 7}', b"\xff"])
def test_a_damaged_status_means_not_finished(
    study: Write, tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = studies.run(study(), tmp_path / "runs").folder
    (folder / "constant-s1" / "status.json").write_bytes(data)
    again = studies.run(study(), tmp_path / "runs")
    assert outcomes(again) == {**dict.fromkeys(ALL, "kept"), "constant-s1": "finished"}
    assert "constant-s1/status.json: says nothing usable; the run counts as not finished" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"{", b"[1]"])
def test_a_damaged_index_is_written_anew(
    study: Write, tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = studies.run(study(), tmp_path / "runs").folder
    (folder / "study.json").write_bytes(data)
    again = studies.run(study(), tmp_path / "runs")
    assert set(outcomes(again).values()) == {"kept"} and index(again)["seeds"] == [1, 2]
    assert "study.json: holds no index of a study" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'{"identity": 3}'])
def test_checkpoints_of_an_unknown_run_fail_that_run_alone(study: Write, tmp_path: Path, data: bytes) -> None:
    folder = studies.run(study(), tmp_path / "runs", arms=["baseline"]).folder
    (folder / "baseline-s1" / "provenance.json").write_bytes(data)
    again = studies.run(study(), tmp_path / "runs")
    assert outcomes(again) == {**dict.fromkeys(ALL, "finished"), "baseline-s1": "failed", "baseline-s2": "kept"}
    assert again.code == 3 and "--replace moves the folder" in str(said(again, "baseline-s1").error)
    assert set(outcomes(studies.run(study(), tmp_path / "runs", replace=True)).values()) == {"kept", "finished"}


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_in_the_place_of_a_run_fails_that_run_alone(study: Write, tmp_path: Path, replace: bool) -> None:
    (tmp_path / "runs" / "tried").mkdir(parents=True)
    (tmp_path / "runs" / "tried" / "constant-s2").write_bytes(b"mine")
    result = studies.run(study(), tmp_path / "runs", replace=replace)
    assert outcomes(result) == {**dict.fromkeys(ALL, "finished"), "constant-s2": "failed"}
    assert result.code == 3 and "constant-s2: is no folder" in str(said(result, "constant-s2").error)
    assert (result.folder / "constant-s2").read_bytes() == b"mine"


def test_a_folder_that_takes_no_file_fails_that_run_alone(study: Write, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tried" / "constant-s2" / "spec.yaml").mkdir(parents=True)
    result = studies.run(study(), tmp_path / "runs")
    assert outcomes(result) == {**dict.fromkeys(ALL, "finished"), "constant-s2": "failed"}
    assert result.code == 1 and "spec.yaml: cannot be written" in str(said(result, "constant-s2").error)


# ---------------------------------------------------------------------------------------- what waits, is blocked
def test_an_interruption_leaves_how_waiting_runs_ended_before(study: Write, tmp_path: Path, ends: Ends) -> None:
    ends["constant-s1"] = ("failed", 5)
    studies.run(study(), tmp_path / "runs", seeds=[1])
    ends["baseline-s2"] = ("interrupts", 130)
    result = studies.run(study(), tmp_path / "runs")
    assert outcomes(result) == {
        "baseline-s1": "kept", "baseline-s2": "stopped", "constant-s1": "stopped", "constant-s2": "stopped",
    }  # fmt: skip
    told = {name: json.loads((result.folder / name / "status.json").read_bytes()) for name in ALL}
    assert (told["constant-s1"]["status"], told["constant-s1"]["error"]) == ("failed", "failed")
    assert told["constant-s2"]["status"] == "queued"


@pytest.mark.parametrize(("status", "code"), [("failed", 5), ("stopped", 130)])
def test_a_run_whose_source_did_not_finish_ends_as_that_did(
    study: Write, tmp_path: Path, ends: Ends, status: str, code: int
) -> None:
    ends["constant-s2"] = (status, code)
    result = studies.run(study(REPLAY), tmp_path / "runs")
    one = said(result, "replay-s1")
    assert (one.status, one.code) == (status, code) and one.error == "reads run constant-s2, which did not finish"
    told = json.loads((result.folder / "replay-s1" / "status.json").read_bytes())
    assert (told["status"], told["code"], told["error"]) == (status, code, one.error)
    assert outcomes(result)["replay-s2"] == "finished" and result.code == code
