"""`kill -9` at any moment: the run resumes, and ends where one ends that nobody killed, to the last bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from .conftest import trained
from .forks import PLACES, WRITES
from .harness import KILLED, Command, Forks, committed, differences, standing, status, together

KILLS = 50
DISK = {"calls": WRITES, "nth": -1, "how": "before"}


@dataclass(frozen=True)
class Moments:
    """How often a run passes each place, how often it changes the disk, and how long it takes."""

    places: dict[str, int]
    calls: int
    seconds: float


def counted(forks: Forks, study: Path, runs: Path) -> Moments:
    one = forks.run("run", study, "--runs", runs, fault=DISK, places=dict.fromkeys(PLACES, -1))
    assert one.code == 0, one.said()
    seen = one.counted()
    return Moments(seen, seen.pop("fault"), status(runs / "f" / "a-s1")["monotonic"])


def kill(forks: Forks, study: Path, runs: Path, moments: Moments, draw: random.Random, way: int) -> str:
    """Start the run and kill it at a moment that is drawn; return which it was."""
    words = ("run", study, "--runs", runs)
    if way == 0:
        return kill_in_time(forks.start(*words), draw.uniform(0, moments.seconds))
    if way < 3:
        fault = {
            "calls": WRITES,
            "nth": draw.randint(1, moments.calls),
            "how": draw.choice(["before", "half", "after"]),
        }
        one, said = forks.run(*words, fault=fault), f"{fault['how']} disk call {fault['nth']}"
    else:
        place = draw.choice(sorted(name for name, times in moments.places.items() if times))
        one, said = forks.run(*words, places={place: (nth := draw.randint(1, moments.places[place]))}), f"{place} {nth}"
    assert one.code in (KILLED, 0), one.said()
    return said if one.code == KILLED else ""


def kill_in_time(one: Command, seconds: float) -> str:
    if one.ended.wait(seconds):
        return ""
    one.kill()
    return f"after {seconds:.3f} s" if one.wait() == KILLED else ""


def killed_and_resumed(forks: Forks, study: Path, straight: Path, moments: Moments, runs: Path) -> Callable[[int], Any]:
    def case(number: int) -> str | None:
        draw, here = random.Random(f"kill {number}"), runs / str(number)
        said: list[str] = []
        while not said:  # a moment that the run did not reach is drawn again
            shutil.rmtree(here, ignore_errors=True)
            said += filter(None, [kill(forks, study, here, moments, draw, number % 5)])
        committed(here / "f" / "a-s1")
        if number % 3 == 0:  # and once more on the way back
            early = Moments({"reinstate": 1, "series": 1, "evaluate": 1, "flush": 2}, 60, moments.seconds / 2)
            said += filter(None, [kill(forks, study, here, early, draw, draw.randrange(5))])
        one = forks.run("run", study, "--runs", here)
        found = [f"exit {one.code}: {one.said()}"] if one.code else differences(straight, here / "f" / "a-s1")
        shutil.rmtree(here)
        return f"kill {number} ({', then '.join(said)}): {'; '.join(found)}" if found else None

    return case


@pytest.mark.slow
def test_fifty_kills(forks: Forks, make_study: Callable[..., Path], tmp_path: Path) -> None:
    """A model with dropout and batch norm, 12 MB at every one of its commits."""
    study = make_study("torchvision, name: mobilenet_v3_small")
    straight = trained(forks, study, tmp_path / "straight")
    assert {e["value"] for e in standing(straight) if e["event"] == "state"} >= {"S1_BOUNDARY", "odd"}  # it reacts
    moments = counted(forks, study, tmp_path / "counted")
    together(killed_and_resumed(forks, study, straight, moments, tmp_path), range(KILLS))


def test_a_handful_of_kills(forks: Forks, small: Path, straight: Path, tmp_path: Path) -> None:
    moments = Moments({"forward": 20, "evaluate": 5, "pack": 10, "snapshot": 8, "capture": 10}, 500, 1.0)
    together(killed_and_resumed(forks, small, straight, moments, tmp_path), [1, 3, 8])


@pytest.mark.slow
def test_killed_after_every_step(forks: Forks, small: Path, straight: Path, tmp_path: Path) -> None:
    """Each start gets one step further, or dies before it: in the end all steps were taken once."""
    for _ in range(40):
        if forks.run("run", small, "--runs", tmp_path, places={"logged": 2}).code == 0:
            break
    assert differences(straight, tmp_path / "f" / "a-s1") == []


@pytest.mark.slow
def test_what_a_kill_left_half_written_is_gone_after_the_next_start(
    forks: Forks, small: Path, straight: Path, tmp_path: Path
) -> None:
    for nth, place in enumerate(("snapshots/selected", "snapshots/latest", "checkpoints", "series", "")):
        runs = tmp_path / str(nth)
        run = runs / "f" / "a-s1"
        fault = {"calls": ["open"], "nth": 2, "how": "after", "reads": True, "under": [f"{run / place}/.tmp-"]}
        one = forks.run("run", small, "--runs", runs, fault=fault)
        if one.code == 0:  # nothing is staged here
            assert place == "series"
            continue
        assert one.code == KILLED and list((run / place).rglob(".tmp-*"))
        assert forks.run("run", small, "--runs", runs).code == 0
        assert differences(straight, run) == [], place


def test_the_comparison_sees_what_differs(straight: Path, tmp_path: Path) -> None:
    """Plant one difference of each kind; whatever compares the runs above must find it."""
    assert differences(straight, straight) == []
    for number, (plant, name) in enumerate(PLANTS):
        copy = tmp_path / str(number)
        shutil.copytree(straight, copy)
        plant(copy)
        assert any(name in text for text in differences(straight, copy)), name


def _last_bit(run: Path, start: str) -> None:
    newest = committed(run)[-1]
    path = newest / "tensors.safetensors"
    from ctr.engine.checkpoint import CheckpointStore

    loaded = CheckpointStore(run).newest()
    assert loaded is not None
    name = next(name for name in sorted(loaded.tensors) if name.startswith(start) and loaded.tensors[name].numel() > 1)
    values = loaded.tensors[name].reshape(-1).numpy()
    values.view(f"uint{8 * values.itemsize}")[-1] ^= 1
    shutil.rmtree(newest)
    CheckpointStore(run).save(loaded.step, loaded.tensors, loaded.record)
    assert path.exists()


def _record(run: Path, change: Callable[[dict[str, Any]], None]) -> None:
    from ctr.engine.checkpoint import CheckpointStore

    loaded = CheckpointStore(run).newest()
    assert loaded is not None
    change(loaded.record)
    CheckpointStore(run).save(loaded.step, loaded.tensors, loaded.record)


def _replace(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _snapshot(run: Path) -> None:
    path = run / "snapshots" / "latest" / "tensors.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "more": next(iter(tensors.values()))}, path)


PLANTS: list[tuple[Callable[[Path], None], str]] = [
    (lambda run: _last_bit(run, "module/"), "weights and buffers: 1 differ"),
    (lambda run: _last_bit(run, "state/optimizer"), "optimizer moments: 1 differ"),
    (lambda run: _record(run, lambda r: r["state"]["plugins"]["planted"].update(mean=0.5)), "plugin states"),
    (lambda run: _record(run, lambda r: r["recorder"].update(items=1)), "running sums"),
    (lambda run: _record(run, lambda r: r["position"].update(step=3)), "position"),
    (lambda run: _flip(run / "series" / "train.loss.f64"), "series: train.loss differs"),
    (lambda run: _flip(run / "series" / "planted.mean.f64"), "series: planted.mean differs"),
    (lambda run: _replace(run / "events.jsonl", b'"odd"', b'"add"'), "events"),
    (lambda run: _replace(run / "matrix.json", b'"main"', b'"mean"'), "matrix"),
    (lambda run: _replace(run / "status.json", b"finished", b"live"), "live"),
    (_snapshot, "snapshot latest"),
    (lambda run: (run / ".tmp-x").touch(), "left behind"),
]
