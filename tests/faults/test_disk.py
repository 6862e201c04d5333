"""The n-th call that reaches the disk fails, and a disk that is full: a clear error, nothing lost, and on it goes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import trained
from .harness import Command, Forks, committed, differences, together

CODES = (0, 1, 3)
"""Finished in spite of it; the disk refused; the data could not be read."""


@pytest.fixture(scope="session")
def brief(make_study: Callable[..., Path]) -> Path:
    """Four updates, of which every second commits a checkpoint: few calls, so that each can fail once."""
    return make_study(every=2, epochs=2)


@pytest.fixture(scope="session")
def brief_straight(forks: Forks, brief: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(forks, brief, tmp_path_factory.mktemp("brief"))


def told_clearly(one: Command, code: int, runs: Path, study: Path) -> list[str]:
    """Say what is wrong with how a command ended that the disk refused something."""
    said, wrong = one.said(), []
    if one.code not in CODES:
        wrong.append(f"exit code {one.code}")
    if "Traceback" in said:
        wrong.append("a traceback")
    if one.code and not (os.strerror(code) in said and (str(runs) in said or str(study.parent.parent) in said)):
        wrong.append("no error that names path and reason")
    return wrong


def failing(forks: Forks, study: Path, straight: Path, runs: Path, before: Path | None = None) -> Callable[[Any], Any]:
    """Return what makes the n-th call fail, starts again without a fault, and compares."""

    def case(fault: dict[str, Any]) -> str | None:
        here = runs / f"{fault['calls'][0]}-{fault['nth']}-{fault['how']}"
        if before:
            shutil.copytree(before, here)
        one = forks.run("run", study, "--runs", here, fault=fault)
        wrong = told_clearly(one, fault["code"], here, study)
        run = here / "f" / "a-s1"
        try:
            committed(run)
        except Exception as error:
            wrong.append(f"a committed checkpoint is broken: {error}")
        again = forks.run("run", study, "--runs", here)
        found = differences(straight, run) if again.code == 0 else [f"again: exit {again.code}: {again.said()}"]
        # a run that finished in spite of the fault is kept, so that no second start swept after it
        wrong += [text for text in found if one.code or not text.startswith("left behind")]
        shutil.rmtree(here)
        return f"{fault}: {'; '.join(wrong)}\nexit {one.code}: {one.said()[-1500:]}" if wrong else None

    return case


def faults(forks: Forks, study: Path, runs: Path, call: str, how: str, code: int, step: int, most: int) -> list[Any]:
    """Return a fault for each n up to the last call there is: the first twelve, then every `step`-th."""
    fault = {"calls": [call], "nth": 10**9, "how": how, "code": code, "reads": call == "open"}
    if runs.exists():
        shutil.copytree(runs, runs := runs.with_name(f"{call}-{how}-counted"))
    fault["under"] = [str(runs.parent), str(study.parent), str(study.parent.parent / "data0")]
    one = forks.run("run", study, "--runs", runs, fault=fault)
    assert one.code == 0, one.said()
    last = min(one.counted()["fault"] + 1, most)
    assert last > 5
    return [{**fault, "nth": n} for n in range(1, last + 1) if n <= 12 or (n + len(call)) % step == 0 or n == last]


CALLS = [
    ("open", "once", errno.EIO, 10),
    ("open", "dead", errno.EMFILE, 24),
    ("write", "once", errno.EIO, 7),
    ("write", "dead", errno.ENOSPC, 12),
    ("fsync", "once", errno.EIO, 7),
    ("rename", "once", errno.EIO, 1),
    ("rename", "dead", errno.ENOSPC, 4),
    ("replace", "once", errno.EIO, 1),
    ("mkdir", "once", errno.ENOSPC, 2),
    ("mkdir", "dead", errno.EROFS, 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("call", "how", "code", "step"), CALLS, ids=[f"{call}-{how}" for call, how, _, _ in CALLS])
def test_the_nth_call_of_a_run_fails(
    forks: Forks, brief: Path, brief_straight: Path, tmp_path: Path, call: str, how: str, code: int, step: int
) -> None:
    cases = faults(forks, brief, tmp_path / "counted", call, how, code, step, 100_000)
    together(failing(forks, brief, brief_straight, tmp_path), cases)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_the_nth_call_of_a_resume_fails(
    forks: Forks, brief: Path, brief_straight: Path, tmp_path: Path, call: str
) -> None:
    """A run that was killed late, and whose return is then troubled."""
    forks.run("run", brief, "--runs", tmp_path / "killed", places={"logged": 4})
    assert len(committed(tmp_path / "killed" / "f" / "a-s1")) == 2
    cases = faults(forks, brief, tmp_path / "killed", call, "once", errno.EIO, 4, 70)
    together(failing(forks, brief, brief_straight, tmp_path, tmp_path / "killed"), cases)


def test_a_few_calls_of_a_run_fail(forks: Forks, brief: Path, brief_straight: Path, tmp_path: Path) -> None:
    fault = {"how": "once", "code": errno.EIO}
    cases = [{**fault, "calls": [call], "nth": nth} for call, nth in [("fsync", 60), ("rename", 3), ("mkdir", 1)]]
    together(failing(forks, brief, brief_straight, tmp_path), cases)


# --- a disk that is really full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def full(forks: Forks, study: Path, straight: Path, disk: Path, room: int) -> int:
    """Train where only `room` bytes are free, then make room; return how many checkpoints stood when it was full."""
    ballast, run = disk / "ballast", disk / "runs" / "f" / "a-s1"
    ballast.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - room))
    one = forks.run("run", study, "--runs", disk / "runs")
    assert one.code == 1, one.said()
    assert told_clearly(one, errno.ENOSPC, disk, study) == [], one.said()
    assert not run.exists() or "run a-s1 failed (exit code 1)" in one.said(), one.said()
    stood = len(committed(run))
    ballast.unlink()
    again = forks.run("run", study, "--runs", disk / "runs")
    assert again.code == 0, again.said()
    assert differences(straight, run) == []
    shutil.rmtree(disk / "runs")
    return stood


def test_a_full_disk(forks: Forks, small: Path, straight: Path, disk: Path) -> None:
    assert full(forks, small, straight, disk, 220_000) == 2


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment(forks: Forks, small: Path, straight: Path, disk: Path) -> None:
    stood = [full(forks, small, straight, disk, room) for room in range(0, 260_000, 20_000)]
    assert set(stood) == {0, 1, 2}
