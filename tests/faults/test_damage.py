"""Checkpoints that were cut, flipped or emptied are found out; the one before is used, the skipped one named."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ctr.engine.events_log import read_events

from .harness import KILLED, Forks, committed, differences, together

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def killed(forks: Forks, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its sixth update, with the two checkpoints before it."""
    runs = tmp_path_factory.mktemp("killed")
    assert forks.run("run", small, "--runs", runs, places={"logged": 6}).code == KILLED
    assert [path.name.partition("-")[2] for path in committed(runs / "f" / "a-s1")] == ["4", "5"]
    return runs


def cut(share: float) -> Damage:
    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])

    return damage


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(share: float) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 1
        path.write_bytes(data)

    return damage


FILES = ("tensors.safetensors", "record.json", "manifest.json")
DAMAGES: dict[str, Damage] = {
    "emptied": cut(0), "halved": cut(0.5), "a little short": shorten, "gone": Path.unlink,
    "flipped in front": flip(0.001), "flipped in the middle": flip(0.5), "flipped at the end": flip(0.97),
}  # fmt: skip


def resumed_from_the_one_before(
    forks: Forks, study: Path, straight: Path, killed: Path, runs: Path
) -> Callable[[tuple[str, str]], str | None]:
    def case(which: tuple[str, str]) -> str | None:
        name, damage = which
        here = runs / f"{name}-{damage}".replace(" ", "-")
        shutil.copytree(killed, here)
        run = here / "f" / "a-s1"
        before, newest = committed(run)
        DAMAGES[damage](newest / name)
        one = forks.run("run", study, "--runs", here)
        if one.code:
            return f"{which}: exit {one.code}: {one.said()}"
        told = [e for e in read_events(run) if e["event"] == "resumed"][-1]
        wrong = differences(straight, run)
        if told["checkpoint"] != before.name or [skipped for skipped, _ in told["skipped"]] != [newest.name]:
            wrong.append(f"resumed says {told}")
        elif name not in told["skipped"][0][1]:
            wrong.append(f"the reason {told['skipped'][0][1]} does not name {name}")
        shutil.rmtree(here)
        return f"{which}: {'; '.join(wrong)}" if wrong else None

    return case


def test_a_cut_and_a_flipped_checkpoint(
    forks: Forks, small: Path, straight: Path, killed: Path, tmp_path: Path
) -> None:
    cases = [("tensors.safetensors", "halved"), ("record.json", "flipped in the middle")]
    together(resumed_from_the_one_before(forks, small, straight, killed, tmp_path), cases)


@pytest.mark.slow
def test_every_damage_to_every_file(forks: Forks, small: Path, straight: Path, killed: Path, tmp_path: Path) -> None:
    cases = [(name, damage) for name in FILES for damage in DAMAGES]
    together(resumed_from_the_one_before(forks, small, straight, killed, tmp_path), cases)


@pytest.mark.slow
def test_with_no_checkpoint_left_the_way_out_is_named_and_works(
    forks: Forks, small: Path, straight: Path, killed: Path, tmp_path: Path
) -> None:
    runs, words = tmp_path / "runs", ("run", small, "--runs", tmp_path / "runs")
    shutil.copytree(killed, runs)
    run = runs / "f" / "a-s1"
    both = committed(run)
    for path in both:
        flip(0.5)(path / "tensors.safetensors")
    one = forks.run(*words)
    assert one.code == 1 and "Traceback" not in one.said()
    assert all(path.name in one.said() for path in both) and "--replace" in one.said(), one.said()
    assert forks.run(*words).code == 1  # nothing is thrown away unasked
    again = forks.run(*words, "--replace")
    assert again.code == 0, again.said()
    assert differences(straight, run) == []
    (old,) = (runs / "f" / ".old").iterdir()
    assert (old / "checkpoints").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("forward", [1, 2])
def test_a_checkpoint_that_could_not_be_read_once_does_not_bar_the_way(
    forks: Forks, small: Path, straight: Path, killed: Path, tmp_path: Path, forward: int
) -> None:
    """The disk refuses one read of the newest; the run goes on from the one before, and is killed before it commits."""
    for nth in range(1, 4):
        runs = tmp_path / str(nth)
        shutil.copytree(killed, runs)
        words, run = ("run", small, "--runs", runs), runs / "f" / "a-s1"
        newest = committed(run)[-1]
        fault = {"calls": ["open"], "nth": nth, "how": "once", "code": errno.EIO, "reads": True, "under": [str(newest)]}
        assert forks.run(*words, places={"forward": forward}, fault=fault).code == KILLED
        (told,) = [e for e in read_events(run) if e["event"] == "resumed"]
        assert [name for name, _ in told["skipped"]] == [newest.name]
        again = forks.run(*words)
        assert again.code == 0, again.said()
        assert differences(straight, run) == []
