"""A cache of phases that is damaged, killed, full or closed: told of, never fatal, and never taken for whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctr.engine.execute import execute
from ctr.engine.host import discover

from .phase_studies import OFF, A, B, C, assert_equal, entries, order, taken, train, warnings, write

pytestmark = pytest.mark.usefixtures("no_drawing")


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
