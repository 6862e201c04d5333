"""Runs that begin from the end of phases that another run trained: equal to the bit, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctr.engine.cli import app
from ctr.engine.execute import execute
from ctr.engine.host import Host, discover
from ctr.engine.lock import Lock
from ctr.engine.report_read import read_study
from ctr.engine.report_runs import cached
from ctr.engine.rundir import request, studies, write_json
from ctr.engine.verify import order_of

from .phase_studies import (
    CONTROLLER,
    OFF,
    A,
    B,
    C,
    assert_equal,
    entries,
    keys,
    order,
    records,
    taken,
    told,
    train,
    write,
)

pytestmark = pytest.mark.usefixtures("no_drawing")


# ---------------------------------------------------------------------------------------------------- taking over
def test_a_further_study_trains_only_what_is_new_and_ends_where_it_would_without_the_cache(
    tmp_path: Path, updates: list[str]
) -> None:
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"one": [A, B, C]}), runs)
    assert updates == ["A", "A", "B", "B", "C", "C"] and set(entries(runs)) == {"A", "AB", "ABC"}
    other = "{task: B, name: D, adapter: continued, train: {epochs: 2}}"
    second = write(tmp_path, "second", {"other": [A, B, other]})
    updates.clear()
    folder = train(second, runs)
    assert updates == ["D"] * 4
    (record,) = records(folder / "other-s1", "cached")
    assert record["run"] == "first/one-s1" and record["phases"] == ["A", "B"]
    about = json.loads((folder / "other-s1" / "provenance.json").read_bytes())
    assert about["cached"]["key"] == record["key"] == about["phase_keys"][1]
    assert records(folder / "other-s1", "start")[0]["study"] == "second"
    assert_equal(folder / "other-s1", train(second, tmp_path / "plain", OFF) / "other-s1")
    assert not (tmp_path / "plain" / ".cache").exists()
    (line,) = cached(read_study(folder))
    assert line.startswith("phases A, B of run other-s1 were taken from first/one-s1 (")


def test_a_run_may_end_where_another_goes_on_and_go_on_where_another_ended(tmp_path: Path, updates: list[str]) -> None:
    runs = tmp_path / "runs"
    long, short = write(tmp_path, "long", {"a": [A, B, C]}), write(tmp_path, "short", {"a": [A, B]})
    train(long, runs)
    updates.clear()
    folder = train(short, runs)
    assert updates == [] and taken(folder / "a-s1") == ["A", "B"]
    assert_equal(folder / "a-s1", train(short, tmp_path / "plain", OFF) / "a-s1")
    train(short, tmp_path / "third")
    updates.clear()
    folder = train(long, tmp_path / "third")
    assert updates == ["C", "C"]
    assert_equal(folder / "a-s1", train(long, tmp_path / "plain", OFF) / "a-s1")


def test_what_selects_matters_at_the_end_alone(tmp_path: Path, updates: list[str]) -> None:
    runs, by = tmp_path / "runs", "compare.select.on=val.accuracy"
    path = write(tmp_path, "first", {"a": [A, B]})
    train(path, runs)
    updates.clear()
    other = write(tmp_path, "second", {"a": [A, B]})
    folder = train(other, runs, by)
    assert updates == ["B", "B"] and taken(folder / "a-s1") == ["A"]
    plain = train(other, tmp_path / "plain", OFF, by)
    chosen = [one for one in told(plain / "a-s1") if one["event"] != "snapshot" or one["step"] > 2]
    assert told(folder / "a-s1") == chosen  # what the first selected in A is no record of this run


def test_arms_share_what_no_plugin_is_asked_in(
    tmp_path: Path, updates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Host, "restore")  # the memory of another arm's plugins is none of ours
    base = "{task: A, name: base, plugins: none, seed: 3}"
    arms = {"controller": [base, B], "patient": [base, B], "plain": [base, B]}
    more = {"controller": CONTROLLER, "patient": CONTROLLER.replace("patience: 1", "patience: 3")}
    path = write(tmp_path, "arms", arms, more)
    folder = train(path, tmp_path / "runs")
    assert updates == ["base", "base"] + ["B"] * 6
    plain = train(path, tmp_path / "plain", OFF)
    for arm in arms:
        assert_equal(folder / f"{arm}-s1", plain / f"{arm}-s1")
    (line,) = cached(read_study(folder))
    assert line.startswith("phase base of 2 runs was taken from arms/controller-s1 (")


LANGUAGE = """\
study: lm
seeds: [0, 1]
model: {kind: tiny, width: 16, layers: 1, heads: 2, kv_heads: 1, init_seed: 0}
adapter: {kind: lora, rank: 2, alpha: 4, dropout: 0.05}
tasks:
  base: {kind: causal_lm, data: {source: generated, family: conflict2, part: a, entities: 64}}
phases:
  - {task: base, trains: all, plugins: none, seed: 0}
  - {task: base, name: adapt}
train: {epochs: 1, epoch_batches: 2, micro_batch: 4, threads: 1, optimizer: {kind: adamw, base_lr: 3e-3}}
arms:
  plain: {}
  wide: {adapter: {rank: 4}, plugins: {geometry: {}}}
compare: {on: [test.loss]}
"""


def test_a_base_is_trained_once_for_all_seeds_and_adapters_that_begin_with_it(
    tmp_path: Path, updates: list[str]
) -> None:
    path = tmp_path / "lm.yaml"
    path.write_text(LANGUAGE, encoding="utf-8")
    folder = train(path, tmp_path / "runs")
    assert updates == ["base", "base"] + ["adapt"] * 8
    plain = train(path, tmp_path / "plain", OFF)
    for run in ("plain-s1", "wide-s0", "wide-s1"):
        assert taken(folder / run) == ["base"]
        assert_equal(folder / run, plain / run)


def test_a_run_that_took_over_and_was_interrupted_resumes_as_any_other(tmp_path: Path, updates: list[str]) -> None:
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"a": [A, B]}), runs)
    path = write(tmp_path, "second", {"a": [A, "{task: B, name: D}", C]})
    one, stop = order(path, runs), threading.Event()
    updates.clear()
    outcome = execute(one, discover(), stop, lambda step: stop.set() if step == 3 else None)
    assert outcome.status == "stopped" and updates == ["D"]
    train(path, runs)
    assert updates == ["D", "D", "C", "C"] and set(entries(runs)) == {"A", "AB", "AD", "ADC"}
    assert_equal(one.folder, train(path, tmp_path / "plain", OFF) / "a-s1")


def test_runs_of_one_phase_and_verification_leave_the_cache_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "short", {"a": [A]})
    train(path, tmp_path / "runs")
    assert not (tmp_path / "runs" / ".cache").exists()
    two = write(tmp_path, "two", {"a": [A, B]})
    assert order_of(two, [], None, tmp_path / "verified").run.checkpoint.cache is False


# ---------------------------------------------------------------------------------------------------- side by side
def test_two_processes_train_a_shared_phase_once(tmp_path: Path) -> None:
    path = write(tmp_path, "pair", {"b": [A, B], "c": [A, C]})
    folder = train(path, tmp_path / "runs", "train.epoch_batches=20", jobs=2)
    whole = sorted(len(taken(folder / run)) for run in ("b-s1", "c-s1"))
    assert whole == [0, 1]
    plain = train(path, tmp_path / "plain", "train.epoch_batches=20", OFF)
    for run in ("b-s1", "c-s1"):
        assert_equal(folder / run, plain / run)


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Lock all phases of a run in the name of another, whose status is as given."""
    locks: list[Lock] = []

    def own(path: Path, runs: Path, status: str) -> Path:
        write_json_into(runs / "elsewhere" / "a-s1", {"status": status})
        for key in keys(path):
            folder = runs / ".cache" / "locks" / key
            locks.append(Lock.acquire(folder))
            write_json(folder / "who.json", {"run": "elsewhere/a-s1", "phase": "A"})
        return runs

    yield own
    for lock in locks:
        lock.release()


def write_json_into(folder: Path, status: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "status.json", {**status, "heartbeat_interval": 60.0})


@pytest.mark.parametrize("asked", ["signal", "request"])
def test_who_waits_says_for_what_and_obeys(tmp_path: Path, owned: Callable[..., Path], asked: str) -> None:
    path = write(tmp_path, "waits", {"a": [A, B]})
    runs = owned(path, tmp_path / "runs", "live")
    one, stop, ended = order(path, runs), threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(execute(one, discover(), stop)))
    thread.start()
    says = ""
    for _ in range(600):
        thread.join(0.1)
        found = one.folder / "status.json"
        says = json.loads(found.read_bytes()).get("doing", "") if found.exists() else ""
        if says.startswith("waiting") or not thread.is_alive():
            break
    assert says == "waiting for phase B trained by run elsewhere/a-s1"
    if asked == "signal":
        stop.set()
    else:
        request(one.folder, "stop", "a test")
    thread.join(60)
    assert ended[0].status == "stopped" and "while waiting for phase B" in ended[0].error


def test_nobody_waits_for_a_run_that_no_longer_trains(tmp_path: Path, owned: Callable[..., Path]) -> None:
    path = write(tmp_path, "alone", {"a": [A, B]})
    runs = owned(path, tmp_path / "runs", "paused")
    folder = train(path, runs)
    assert taken(folder / "a-s1") == [] and entries(runs) == {}  # who holds the lock is the one to publish


# ---------------------------------------------------------------------------------------------------- the command
def test_the_command_lists_and_clears_and_no_reader_takes_the_cache_for_a_study(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"a": [A, B]}), runs)
    assert [study.name for study in studies(runs)] == ["first"]
    (entries(runs)["AB"] / "entry.json").write_text("{")
    said = CliRunner().invoke(app, ["cache", str(runs)])
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert len(lines) == 3 and any("A of first/a-s1" in line and " kB" in line for line in lines)
    assert any("damaged: entry.json is not JSON" in line for line in lines)
    said = CliRunner().invoke(app, ["cache", str(runs), "--clear"])
    assert "removed 2 cached ends" in said.output and list(runs.glob(".cache/*/*")) == []
    assert CliRunner().invoke(app, ["cache", str(tmp_path / "none")]).exit_code != 0
