"""Runs that begin from the end of phases that another run trained: equal to the bit, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctr.engine.build import build, settle_exactness
from ctr.engine.cli import app
from ctr.engine.execute import execute
from ctr.engine.host import Host, discover
from ctr.engine.kernel import Kernel
from ctr.engine.lock import Lock
from ctr.engine.phase_keys import phase_keys
from ctr.engine.report_read import read_study
from ctr.engine.report_runs import cached
from ctr.engine.rundir import request, studies, write_json
from ctr.engine.verify import _order

from .phase_studies import A, B, C, assert_equal, entries, order, records, taken, told, train, warnings, write

OFF = "checkpoint.cache=false"
CONTROLLER = ", plugins: {phase_controller: {rule: faithful, window: 1, patience: 1, s1_threshold: 1.0}}"


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note the phase of every update that is made."""
    made: list[str] = []
    update = Kernel._update

    def count(self: Kernel, plan: Any, *rest: Any) -> None:
        made.append(plan.phase.name)
        update(self, plan, *rest)

    monkeypatch.setattr(Kernel, "_update", count)
    yield made


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
    assert _order(two, [], None, tmp_path / "verified").run.checkpoint.cache is False


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


# ---------------------------------------------------------------------------------------------------- damage
def cut(entry: Path) -> None:
    path = entry / "series" / "train.loss.f64"
    os.truncate(path, path.stat().st_size - 16)


def flip(entry: Path) -> None:
    path = next(entry.glob("checkpoints/*/tensors.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()  # other names of the file are not to change
    path.write_bytes(data)


def lose(entry: Path) -> None:
    (entry / "snapshots" / "selected" / "tensors.safetensors").unlink()


def rewrite(entry: Path) -> None:
    told = json.loads((entry / "entry.json").read_bytes())
    told["about"]["best"] = 0.0
    (entry / "entry.json").write_text(json.dumps(told))


def garble(entry: Path) -> None:
    (entry / "entry.json").write_text("{")


def exchange(entry: Path) -> None:
    other = entry.parent / "other"
    shutil.copytree(entries(entry.parents[2])["A"], other)
    shutil.rmtree(entry)
    other.rename(entry)


FAULTS = {
    cut: "series/train.loss.f64 holds",
    flip: "tensors.safetensors does not match its sha256",
    lose: "tensors.safetensors cannot be read",
    rewrite: "entry.json does not match its sha256",
    garble: "entry.json is not JSON",
    exchange: "entry.json is that of another entry",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_damaged_entry_is_told_of_not_used_and_replaced(
    tmp_path: Path, updates: list[str], fault: Callable[[Path], None]
) -> None:
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"a": [A, B, C]}), runs)
    fault(entries(runs)["AB"])
    updates.clear()
    path = write(tmp_path, "second", {"a": [A, B, "{task: A, name: D}"]})
    folder = train(path, runs)
    assert updates == ["B", "B", "D", "D"] and taken(folder / "a-s1") == ["A"]
    (text,) = warnings(folder / "a-s1")
    assert "the cached end of phase B is not used" in text and FAULTS[fault] in text
    updates.clear()
    third = train(write(tmp_path, "third", {"a": [A, B, "{task: A, name: E}"]}), runs)
    assert updates == ["E", "E"] and warnings(third / "a-s1") == []


def test_a_kill_while_an_entry_is_published_leaves_nothing_to_take(tmp_path: Path, updates: list[str]) -> None:
    runs, path = tmp_path / "runs", write(tmp_path, "killed", {"a": [A, B]})
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom ctr.engine import phase_cache, study\n"
        "phase_cache._displace = lambda target: os.kill(os.getpid(), signal.SIGKILL)\n"
        "study.run(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    child = subprocess.run([sys.executable, "-c", script, str(path), str(runs)], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL
    assert entries(runs) == {} and len(list(runs.glob(".cache/locks/*/.tmp-entry/entry.json"))) == 1
    other = train(write(tmp_path, "other", {"a": [A, C]}), runs)
    assert updates == ["A", "A", "C", "C"] and set(entries(runs)) == {"A", "AC"}
    assert list(runs.glob(".cache/locks/*/.tmp-*")) == [] and warnings(other / "a-s1") == []
    assert_equal(train(path, runs) / "a-s1", train(path, tmp_path / "plain", OFF) / "a-s1")


# ---------------------------------------------------------------------------------------------------- keys
def keys(path: Path, *sets: str, threads: int = 1, arm: str | None = None) -> list[str]:
    one = order(path, path.parent / "runs", *sets, arm=arm)
    settle_exactness("strict", threads)
    built = build(one.run, path.parent / "unused", discover(), {})
    changed = type(one)(one.run, one.folder, one.identity, one.fingerprints, threads, {})
    settle_exactness("strict", 1)
    return phase_keys(changed, built, discover())


def test_a_key_holds_what_decides_the_numbers_so_far_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "keyed", {"a": [A, B], "p": [A, B]}, {"p": CONTROLLER})
    before = keys(path)
    assert len(set(before)) == 2
    for same in ("log.steps=3", "checkpoint.keep=5", "study=renamed", "compare.select.on=val.accuracy"):
        assert keys(path, same) == before, same
    for other in (
        "seeds=[2]",
        "model.width=4",
        "train.micro_batch=32",
        "train.determinism=fast",
        "tasks.B.eval_batch=64",
    ):
        assert set(keys(path, other)).isdisjoint(before), other
    assert set(keys(path, threads=2)).isdisjoint(before)
    assert set(keys(path, arm="p")).isdisjoint(before)
    later = write(tmp_path, "later", {"a": [A, "{task: B, moments: keep, train: {epochs: 2}}"]})
    assert keys(later)[0] == before[0] and keys(later)[1] != before[1]
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.provenance.version", lambda name: "9.9")
        assert set(keys(path)).isdisjoint(before)
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.phase_keys._sources", lambda package: "edited")
        assert set(keys(path)).isdisjoint(before)
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.phase_keys._machine", lambda device: ["another"])
        assert set(keys(path)).isdisjoint(before)


def test_the_seed_leaves_the_key_where_neither_weights_nor_order_come_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "{task: A, name: base, plugins: none, seed: 3}"
    path = write(tmp_path, "seeded", {"a": [base, B], "p": [base, B]}, {"p": CONTROLLER})
    mine = keys(path)
    assert keys(path, arm="p")[0] == mine[0] and keys(path, arm="p")[1] != mine[1]
    assert keys(path, "seeds=[2]")[0] != mine[0]  # the weights that it begins with are others
    monkeypatch.setattr("ctr.engine.phase_keys._weights", lambda built: {})
    mine = keys(path)
    assert keys(path, "seeds=[2]")[0] == mine[0] and keys(path, "seeds=[2]")[1] != mine[1]


# ---------------------------------------------------------------------------------------------------- a bad disk
def test_a_cache_that_cannot_be_written_is_told_of_and_the_run_goes_on(tmp_path: Path, updates: list[str]) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / ".cache").write_text("in the way")
    folder = train(write(tmp_path, "first", {"a": [A, B]}), runs)
    (text,) = warnings(folder / "a-s1")
    assert "the cache of phases cannot be written" in text and ".cache/locks" in text and len(updates) == 4


def test_a_read_only_cache_is_still_read(tmp_path: Path, updates: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"a": [A, B]}), runs)
    make = Path.mkdir

    def refuse(self: Path, *args: Any, **more: Any) -> None:
        if ".cache" in self.parts:
            raise OSError(30, "Read-only file system", str(self))
        make(self, *args, **more)

    monkeypatch.setattr(Path, "mkdir", refuse)
    updates.clear()
    folder = train(write(tmp_path, "second", {"a": [A, C]}), runs)
    (text,) = warnings(folder / "a-s1")
    assert "Read-only file system" in text and updates == ["C", "C"] and taken(folder / "a-s1") == ["A"]


def test_a_full_disk_while_publishing_leaves_nothing_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, link = tmp_path / "runs", os.link

    def full(source: Any, target: Any, **more: Any) -> None:
        if ".tmp-entry" in str(target) and "snapshots" in str(target):
            raise OSError(28, "No space left on device", str(target))
        link(source, target, **more)

    monkeypatch.setattr(os, "link", full)
    folder = train(write(tmp_path, "first", {"a": [A, B]}), runs)
    texts = warnings(folder / "a-s1")
    assert len(texts) == 2 and all("is not cached" in text and "No space left" in text for text in texts)
    assert entries(runs) == {} and list(runs.glob(".cache/locks/*/.tmp-*")) == []


def test_where_files_cannot_be_linked_they_are_copied(
    tmp_path: Path, updates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any, **more: Any) -> None:
        raise OSError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", refuse)
    runs = tmp_path / "runs"
    train(write(tmp_path, "first", {"a": [A, B]}), runs)
    updates.clear()
    second = write(tmp_path, "second", {"a": [A, B]})
    folder = train(second, runs)
    assert updates == [] and warnings(folder / "a-s1") == []
    assert_equal(folder / "a-s1", train(second, tmp_path / "plain", OFF) / "a-s1")


def test_a_run_that_went_on_with_other_threads_for_a_while_publishes_nothing(tmp_path: Path) -> None:
    runs, path = tmp_path / "runs", write(tmp_path, "first", {"a": [A, B]})
    one = order(path, runs)
    for threads, until in ((1, 1), (2, 2), (1, None)):
        stop = threading.Event()
        changed = type(one)(one.run, one.folder, one.identity, one.fingerprints, threads, {})
        ends = execute(
            changed, discover(), stop, lambda step, last=until, stop=stop: stop.set() if step == last else None
        )
        assert ends.status == ("stopped" if until else "finished")
    assert "threads 1 → 2" in warnings(one.folder)[0] and entries(runs) == {}


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
