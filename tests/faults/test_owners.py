"""One writer: a second start is refused with the owner's name, a dead owner's folder is taken over and that is told."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from ctr.engine.events_log import read_events

from .harness import Forks, committed, differences, until


def test_a_second_writer_is_refused_and_a_dead_one_is_taken_over(
    forks: Forks, small: Path, straight: Path, tmp_path: Path
) -> None:
    run, words = tmp_path / "f" / "a-s1", ("run", small, "--runs", tmp_path)
    first = forks.start(*words)
    until(lambda: any((run / "checkpoints").glob("*-2")), "the second update")
    first.kill(signal.SIGSTOP)  # alive, and not about to finish
    owner = json.loads((run / "lock").read_bytes())
    assert owner["pid"] == first.pid
    before = (run / "events.jsonl").read_bytes()

    second = forks.run(*words)
    assert second.code == 7
    assert f"owned by pid {first.pid} on host {socket.gethostname()}, which is running" in second.said()
    assert "Traceback" not in second.said()
    assert json.loads((run / "lock").read_bytes()) == owner
    assert (run / "events.jsonl").read_bytes() == before  # not a line of the second

    first.kill()
    first.wait()
    third = forks.run(*words)
    assert third.code == 0, third.said()
    assert differences(straight, run) == []
    told = [e["text"] for e in read_events(run) if e["event"] == "warning"]
    assert told == [f"lock taken over from pid {first.pid} on host {socket.gethostname()}"]


@pytest.mark.slow
def test_of_starts_at_the_same_moment_one_trains(forks: Forks, small: Path, straight: Path, tmp_path: Path) -> None:
    for number in range(8):
        here = tmp_path / str(number)
        pair = [forks.start("run", small, "--runs", here) for _ in range(3)]
        codes = sorted(one.wait() for one in pair)
        assert codes[0] == 0 and set(codes) <= {0, 7}, [one.said() for one in pair]
        assert all(one.code == 0 or "owned by pid" in one.said() for one in pair)
        assert differences(straight, here / "f" / "a-s1") == []


@pytest.mark.slow
def test_a_second_writer_does_not_disturb_the_first(forks: Forks, small: Path, straight: Path, tmp_path: Path) -> None:
    words = ("run", small, "--runs", tmp_path)
    first = forks.start(*words)
    run, refused = tmp_path / "f" / "a-s1", 0
    until(lambda: committed(run), "a checkpoint")
    while not first.ended.is_set():
        refused += forks.run(*words).code == 7
    assert first.code == 0, first.said()
    assert refused
    assert forks.run(*words).code == 0
    assert differences(straight, run) == []
