"""Signals, and workers that die: who is asked to stop commits a checkpoint; who falls takes nobody with him."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .harness import PATIENCE, Forks, committed, differences, status, until

SLOW = "sleep: 0.05"
FOUR = """\
study: f
seeds: [1, 2]
model: {{kind: small_resnet, width: 2}}
task:
  kind: image_classification
  data: {{source: npz, path: {data}, val_fraction: 0.25}}
  augment: {{crop: 1, flip: true}}
train:
  epochs: 5
  epoch_batches: 4
  micro_batch: 9
  threads: 1
  device: cpu
  optimizer: {{kind: sgd, base_lr: 0.05, momentum: 0.9}}
plugins: {{planted: {{sleep: {sleep}}}}}
arms:
  a: {{}}
  b: {{plugins: {{phase_controller: {{rule: faithful}}}}}}
"""
NAMES = ("a-s1", "a-s2", "b-s1", "b-s2")


@pytest.fixture(scope="module")
def slow(make_study: Callable[..., Path]) -> Path:
    """A run that takes its time, and commits a checkpoint at the end of an epoch only."""
    return make_study(every=1000, planted=SLOW)


@pytest.fixture(scope="module")
def slow_straight(forks: Forks, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("slow")
    assert forks.run("run", slow, "--runs", runs).code == 0
    return runs / "f" / "a-s1"


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop_a_run_commits_and_resumes(
    forks: Forks, slow: Path, slow_straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "f" / "a-s1"
    one = forks.start("run", slow, "--runs", tmp_path)
    until(lambda: committed(run), "the end of an epoch")
    time.sleep(0.06)  # into the next
    one.kill(number)
    assert one.wait() == 130, one.said()
    told = status(run)
    assert (told["status"], told["code"]) == ("stopped", 130)
    assert "checkpoint committed at step" in one.said() and "Traceback" not in one.said()
    step = int(committed(run)[-1].name.partition("-")[2])
    assert f"at step {step}" in told["error"] and 2 <= step < 12
    again = forks.run("run", slow, "--runs", tmp_path)
    assert again.code == 0, again.said()
    assert differences(slow_straight, run, but=("checkpoint",)) == []


@pytest.mark.slow
def test_asked_to_stop_at_any_moment(forks: Forks, slow: Path, slow_straight: Path, tmp_path: Path) -> None:
    seconds = status(slow_straight)["monotonic"]
    for number in range(8):
        runs = tmp_path / str(number)
        one = forks.start("run", slow, "--runs", runs)
        one.ended.wait(seconds * number / 8)
        one.kill(signal.SIGTERM)
        assert one.wait() in (130, 0, -signal.SIGTERM), one.said()  # before ctr listens, the signal is the system's
        assert "Traceback" not in one.said()
        assert forks.run("run", slow, "--runs", runs).code == 0
        assert differences(slow_straight, runs / "f" / "a-s1", but=("checkpoint",)) == []


# --- several processes: the installed command itself


class Jobs:
    """One `ctr run --jobs 2` of its own session, as a terminal would start it."""

    def __init__(self, forks: Forks, study: Path, runs: Path, jobs: int = 2, more: Sequence[str] = ()) -> None:
        self.study = runs / "f"
        self.err = runs.with_name(f"{runs.name}.err")
        words = [
            str(Path(sys.executable).with_name("ctr")),
            "run",
            str(study),
            "--runs",
            str(runs),
            "--jobs",
            str(jobs),
        ]
        with open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                [*words, *more], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err, env=forks.env,
                cwd=runs.parent, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def said(self) -> str:
        return self.err.read_text(errors="replace")

    def statuses(self) -> dict[str, dict[str, Any]]:
        return {path.parent.name: status(path.parent) for path in self.study.glob("*/status.json")}

    def live(self) -> list[tuple[str, int]]:
        found = self.statuses().items()
        return [(name, told["pid"]) for name, told in found if told["status"] == "live" and "step" in told]

    def workers(self) -> list[int]:
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextmanager
def jobs(*args: Any, **more: Any) -> Iterator[Jobs]:
    one = Jobs(*args, **more)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()


def four(data: Path, folder: Path, sleep: float = 0.05) -> Path:
    path = folder / "four.yaml"
    path.write_text(FOUR.format(data=data, sleep=sleep))
    return path


@pytest.fixture(scope="module")
def sequential(forks: Forks, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four runs one after another, in one process."""
    folder = tmp_path_factory.mktemp("sequential")
    one = forks.run("run", four(data, folder), "--runs", folder / "runs")
    assert one.code == 0, one.said()
    return folder / "runs" / "f"


def finish(forks: Forks, study: Path, runs: Path, sequential: Path, but: Sequence[str] = ()) -> None:
    """Start again without a fault, with two jobs, and compare every run with the sequential one."""
    with jobs(forks, study, runs) as one:
        assert one.wait() == 0, one.said()
    for name in NAMES:
        assert differences(sequential / name, runs / "f" / name, but) == [], name


@pytest.mark.slow
@pytest.mark.parametrize("way", ["terminate the command", "interrupt from the terminal"])
def test_two_jobs_stop_together_and_resume_to_the_same_bits(
    forks: Forks, data: Path, sequential: Path, tmp_path: Path, way: str
) -> None:
    study, runs = four(data, tmp_path), tmp_path / "runs"
    with jobs(forks, study, runs) as one:
        until(lambda: len(one.live()) == 2, "two live runs", 120)
        if way == "terminate the command":
            one.process.terminate()
        else:
            os.killpg(one.process.pid, signal.SIGINT)
        assert one.wait() == 130, one.said()
        assert "Traceback" not in one.said(), one.said()
        told = {name: about["status"] for name, about in one.statuses().items()}
    assert sorted(told) == list(NAMES) and set(told.values()) <= {"stopped", "queued", "finished"}, told
    assert list(told.values()).count("stopped") >= 1
    for name in NAMES:
        if told[name] == "stopped":
            assert committed(runs / "f" / name)
    finish(forks, study, runs, sequential, but=("checkpoint",))


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_a_signal_while_workers_start_fails_no_run(
    forks: Forks, data: Path, sequential: Path, tmp_path: Path, wait: float
) -> None:
    study, runs = four(data, tmp_path, sleep=0.05), tmp_path / "runs"
    with jobs(forks, study, runs) as one:
        until(lambda: len(one.workers()) == 2, "two workers", 120)
        time.sleep(wait)
        os.killpg(one.process.pid, signal.SIGINT)
        assert one.wait() == 130, one.said()
        assert "Traceback" not in one.said(), one.said()
        told = {name: about["status"] for name, about in one.statuses().items()}
    assert "failed" not in told.values(), (told, one.said())
    finish(forks, study, runs, sequential, but=("checkpoint",))


@pytest.mark.slow
def test_a_killed_worker_fails_its_run_alone(forks: Forks, data: Path, sequential: Path, tmp_path: Path) -> None:
    study, runs = four(data, tmp_path), tmp_path / "runs"
    with jobs(forks, study, runs) as one:
        until(one.live, "a live run", 120)
        name, pid = one.live()[0]
        os.kill(pid, signal.SIGKILL)
        assert one.wait() == 1, one.said()
        assert f"run {name} failed (exit code 1): its process was killed by signal 9" in one.said()
        told = {other: about["status"] for other, about in one.statuses().items()}
    assert told == {other: "failed" if other == name else "finished" for other in NAMES}
    for other in NAMES:
        if other != name:
            assert differences(sequential / other, runs / "f" / other) == []
    finish(forks, study, runs, sequential)


@pytest.mark.slow
def test_a_worker_killed_while_it_waits_for_work_stops_nobody(forks: Forks, data: Path, tmp_path: Path) -> None:
    """One worker is long at work, one is killed with nothing to do, and the end of the third lets the fourth begin."""
    study, runs = tmp_path / "four.yaml", tmp_path / "runs"
    text = FOUR.format(data=data, sleep=0.0).replace("seeds: [1, 2]", "seeds: [1]").partition("arms:")[0]
    arms = {"quick": "", "long": "planted: {sleep: 0.4}", "middle": "planted: {sleep: 0.2}"}
    text += "arms:\n" + "".join(f"  {name}: {{plugins: {{{plugins}}}}}\n" for name, plugins in arms.items())
    study.write_text(text + "  after: {plugins: {replay_rates: {arm: middle}}}\n")
    with jobs(forks, study, runs, 3) as one:
        until(lambda: one.statuses().get("quick-s1", {}).get("status") == "finished", "the quick run", 120)
        time.sleep(1.0)  # it tells the command so, and waits
        told = one.statuses()
        assert told["middle-s1"]["status"] == "live"
        os.kill(told["quick-s1"]["pid"], signal.SIGKILL)
        assert one.wait() == 0, one.said()
        assert {about["status"] for about in one.statuses().values()} == {"finished"}


@pytest.mark.slow
@pytest.mark.parametrize("many", [1, 2])
def test_a_run_that_raises_stops_no_other(
    forks: Forks, data: Path, sequential: Path, tmp_path: Path, many: int
) -> None:
    study, runs = four(data, tmp_path, sleep=0.0), tmp_path / "runs"
    fault = ["--set", "arms.a.plugins.planted.what=raise", "--set", "arms.a.plugins.planted.at=3"]
    with jobs(forks, study, runs, many, fault) as one:
        assert one.wait() == 1, one.said()
        told = {name: about["status"] for name, about in one.statuses().items()}
    assert told == {name: "failed" if name.startswith("a") else "finished" for name in NAMES}
    text = "plugin planted, hook extra_loss, in phase main, step 3: raised ValueError: planted"
    assert one.said().count(text) >= 2 and "Traceback" not in one.said()
    for name in NAMES[2:]:
        found = differences(sequential / name, runs / "f" / name)
        assert found == ["provenance identity differs"]  # it slept less, and that is all
