"""Studies end to end on digits: what is kept, resumed, retried, refused, and what reaches the report."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ctr.engine import study as studies
from ctr.engine.errors import FolderOwned, SpecError, UsageError
from ctr.engine.events_log import read_events
from ctr.engine.execute import execute
from ctr.engine.host import Registry, discover
from ctr.engine.order import Order
from ctr.engine.rundir import Status, request
from ctr.engine.series import read_series, series_index
from ctr.engine.spec import load_study

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out of the tests that do not look at it: drawing takes longer than training here."""
    if "report" not in request.node.name:
        monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_bytes())
    return found


def outcomes(result: studies.StudyResult) -> dict[str, str]:
    return {one.name: one.status for one in result.outcomes}


def test_a_study_trains_reports_and_is_kept_the_second_time(study: Write, tmp_path: Path) -> None:
    first = studies.run(study(), tmp_path / "runs")
    assert outcomes(first) == dict.fromkeys(["baseline-s1", "baseline-s2", "constant-s1", "constant-s2"], "finished")
    assert first.code == 0 and (first.folder / "report.html").is_file()
    page = (first.folder / "report.html").read_bytes()
    second = studies.run(study(), tmp_path / "runs")
    assert set(outcomes(second).values()) == {"kept"} and (second.folder / "report.html").read_bytes() == page
    more = studies.run(study({"seeds: [1, 2]": "seeds: [1, 2, 3]"}), tmp_path / "runs")
    assert outcomes(more)["baseline-s1"] == "kept" and outcomes(more)["constant-s3"] == "finished"


def test_arms_are_matched_by_construction(study: Write, tmp_path: Path) -> None:
    folder = studies.run(study(), tmp_path / "runs").folder
    hashes = {run: json.loads((folder / run / "provenance.json").read_bytes())["hashes"] for run in
              ("baseline-s1", "constant-s1", "baseline-s2")}  # fmt: skip
    assert hashes["baseline-s1"] == hashes["constant-s1"]
    assert hashes["baseline-s1"]["weights"] != hashes["baseline-s2"]["weights"]
    assert hashes["baseline-s1"]["data_order"] != hashes["baseline-s2"]["data_order"]
    assert hashes["baseline-s1"]["evaluation_items"] == hashes["baseline-s2"]["evaluation_items"]
    before = [read_series(folder / run, "train.loss")[1][:4].tolist() for run in ("baseline-s1", "constant-s1")]
    after = [read_series(folder / run, "train.loss")[1][4:].tolist() for run in ("baseline-s1", "constant-s1")]
    assert before[0] == before[1] and after[0] != after[1]  # the loss of step 3 is that before its update


def test_another_identity_is_refused_with_the_difference_and_moved_aside_when_asked(
    study: Write, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    studies.run(study(), runs, arms=["baseline"], seeds=[1])
    other = study({"base_lr: 0.05": "base_lr: 0.06"})
    with pytest.raises(FolderOwned, match=r"base_lr.*0.05.*0.06(.|\n)*--replace"):
        studies.run(other, runs, arms=["baseline"], seeds=[1])
    assert outcomes(studies.run(other, runs, arms=["baseline"], seeds=[1], replace=True)) == {"baseline-s1": "finished"}
    assert len(list((runs / "tried" / ".old").iterdir())) == 1


def test_a_failed_run_stops_nobody_and_is_retried(study: Write, tmp_path: Path) -> None:
    hot = {"scale: 1.5": "scale: 1.0e+30"}
    result = studies.run(study(hot), tmp_path / "runs")
    assert outcomes(result)["baseline-s2"] == "finished" and outcomes(result)["constant-s1"] == "failed"
    assert result.code == 5
    folder = result.folder / "constant-s1"
    assert status(folder)["status"] == "failed" and status(folder)["code"] == 5
    error = next(r for r in read_events(folder) if r["event"] == "error")
    assert error["kind"] == "GuardError" and "not finite" in error["text"]
    assert list((folder / "nan").iterdir())
    again = studies.run(study(hot), tmp_path / "runs")
    assert outcomes(again) == {**outcomes(result), "baseline-s1": "kept", "baseline-s2": "kept"}


def test_filters_name_what_exists(study: Write, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--arm basline: this study has baseline, constant. Did you mean baseline?"):
        studies.run(study(), tmp_path / "runs", arms=["basline"])
    with pytest.raises(UsageError, match="--seed 7: this study has 1, 2"):
        studies.run(study(), tmp_path / "runs", seeds=[7])
    with pytest.raises(SpecError):
        studies.run(study({"epochs: 3": "epochs: three"}), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


REPLAY = {"constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}":
          "constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}\n"
          "  replay: {plugins: {replay_rates: {arm: constant, seed: next}}}"}  # fmt: skip


def test_a_replay_comes_after_its_source_and_keeps_its_partner(study: Write, tmp_path: Path) -> None:
    result = studies.run(study(REPLAY), tmp_path / "runs", arms=["replay"], seeds=[1])
    assert outcomes(result) == {"constant-s2": "finished", "replay-s1": "finished"}
    index = json.loads((result.folder / "study.json").read_bytes())
    assert index["replays"]["replay-s2"] == {"replay_rates": {"arm": "constant", "seed": "next", "run": "constant-s1"}}
    more = studies.run(study({**REPLAY, "seeds: [1, 2]": "seeds: [1, 2, 3]"}), tmp_path / "runs", arms=["replay"])
    assert outcomes(more)["replay-s1"] == "kept"
    index = json.loads((result.folder / "study.json").read_bytes())
    assert index["replays"]["replay-s2"] == {
        "replay_rates": {"arm": "constant", "seed": "next", "run": "constant-s1"}
    }  # a new seed re-pairs nobody
    assert index["replays"]["replay-s3"] == {"replay_rates": {"arm": "constant", "seed": "next", "run": "constant-s1"}}


def test_a_replay_of_its_own_seed_is_the_run_itself(study: Write, tmp_path: Path) -> None:
    same = {k: v.replace("seed: next", "seed: same") for k, v in REPLAY.items()}
    result = studies.run(study(same), tmp_path / "runs", seeds=[1])
    digests = [last_digest(result.folder / run) for run in ("constant-s1", "replay-s1", "baseline-s1")]
    assert digests[0] == digests[1] != digests[2]


def test_parallel_equals_sequential_to_the_report(study: Write, tmp_path: Path) -> None:
    one = studies.run(study(REPLAY), tmp_path / "one")
    two = studies.run(study(REPLAY), tmp_path / "two", jobs=2)
    assert outcomes(one) == outcomes(two)
    for run in outcomes(one):
        for key, about in series_index(one.folder / run).items():
            if not about["volatile"]:
                name = f"{run}/series/{key}.f64"
                assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    assert one.report["contrasts"] == two.report["contrasts"]


def last_digest(folder: Path) -> str:
    return next(str(r["digest"]) for r in read_events(folder) if r["event"] == "snapshot" and r["slug"] == "last")


def test_what_is_installed_but_not_named_changes_no_bit(
    study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = {"  constant: {plugins: {constant_scale: {scale: 1.5, from_epoch: 1}}}\n": "  twin: {}\n",
            "constant - baseline": "twin - baseline"}  # fmt: skip
    all_there = studies.run(study(only), tmp_path / "a", seeds=[1]).folder
    bare = Registry(tasks=discover().tasks)
    monkeypatch.setattr(studies, "discover", lambda: bare)
    none_there = studies.run(study(only), tmp_path / "b", seeds=[1]).folder
    digests = [last_digest(folder / run) for folder in (all_there, none_there) for run in ("baseline-s1", "twin-s1")]
    assert len(set(digests)) == 1


def test_the_test_split_is_read_once_for_each_set_of_weights(study: Write, tmp_path: Path) -> None:
    folder = studies.run(study(), tmp_path / "runs", arms=["baseline"], seeds=[1]).folder / "baseline-s1"
    reads = [
        (r["weights"], r["step"]) for r in read_events(folder) if r["event"] == "evaluation" and r["split"] == "test"
    ]
    assert reads == [("selected", 9), ("last", 9)]


def test_a_resume_under_other_threads_is_warned_of_and_reported(study: Write, tmp_path: Path) -> None:
    registry, runs = discover(), tmp_path / "runs"
    spec = study({"seeds: [1, 2]": "seeds: [1]"})

    def interrupted(threads: int, at: int | None) -> Path:
        planned, _ = studies.plan(load_study(spec), runs / "tried", registry)
        p, stop = planned[0], threading.Event()
        order = Order(p.run, p.folder, p.identity, p.fingerprints, threads, {})
        execute(order, registry, stop, lambda step: stop.set() if step == at else None)
        return p.folder

    interrupted(1, 4)
    interrupted(1, 6)
    folder = interrupted(2, None)
    told = [r for r in read_events(folder) if r["event"] == "warning"]
    assert [(r["text"], r["differs"]) for r in told] == [
        ("resumed, but not bit-exactly: threads 1 → 2", {"threads": [1, 2]})
    ]
    result = studies.run(spec, runs, arms=["baseline"])
    assert outcomes(result) == {"baseline-s1": "kept"}
    assert result.report["exactness"] == "matched, not bit-exact (threads: 1, 2)"


LONG = {
    "seeds: [1, 2]": "seeds: [1]",
    "  baseline: {}\n": "  long: {train: {epochs: 5000}}\n  longer: {train: {epochs: 6000}}\n  baseline: {}\n",
}


@contextmanager
def once_live(folder: Path, names: Sequence[str], act: Callable[[Path], None]) -> Iterator[None]:
    """Do something to each run as soon as it trains."""
    over = threading.Event()

    def watch() -> None:
        left = [folder / name for name in names]
        while left and not over.wait(0.02):
            for path in list(left):
                found = Status.from_file(path / "status.json")
                if found and found.status == "live" and found.step:
                    act(path)
                    left.remove(path)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_request_to_stop_stops_that_run_alone(study: Write, tmp_path: Path, jobs: int) -> None:
    with once_live(tmp_path / "runs" / "tried", ["long-s1", "longer-s1"], lambda run: request(run, "stop", "a test")):
        result = studies.run(study(LONG), tmp_path / "runs", jobs=jobs)
    assert outcomes(result) == {
        "long-s1": "stopped", "longer-s1": "stopped", "baseline-s1": "finished", "constant-s1": "finished"
    }  # fmt: skip
    assert result.code == 130 and {one.code for one in result.outcomes} == {0, 130}
    assert status(result.folder / "long-s1")["status"] == "stopped"


def test_an_interruption_from_the_keyboard_stops_all(study: Write, tmp_path: Path) -> None:
    with once_live(tmp_path / "runs" / "tried", ["long-s1"], lambda run: os.kill(os.getpid(), signal.SIGINT)):
        result = studies.run(study(LONG), tmp_path / "runs")
    assert set(outcomes(result).values()) == {"stopped"} and result.code == 130
    assert status(result.folder / "long-s1")["status"] == "stopped"
    assert status(result.folder / "longer-s1")["status"] == "queued"
