"""The n-th system call fails, for n = 1 until none is left to fail; and a disk that is really full.

Law: what was there before stays readable, the error names the path, and once the disk works again the same act
succeeds with the result of an untroubled one.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.checkpoint import CheckpointStore, load_extra, load_tensors, save_tensors
from ctr.engine.errors import CheckpointError, StorageError
from ctr.engine.events_log import EventLog, read_events
from ctr.engine.rundir import Lock, RunDir, atomic_write, pending, read_json, request, write_json
from ctr.engine.series import SeriesWriter, at, read_series, series_index

CALLS = ("open", "write", "fsync", "replace", "rename", "mkdir", "link", "unlink", "truncate", "ftruncate")


@dataclass
class Disk:
    """Fails the n-th call that changes the disk; with `dead`, every call after it as well."""

    nth: int
    code: int
    dead: bool
    seen: int = 0

    @property
    def fired(self) -> bool:
        return self.seen >= self.nth

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and not self.fired:
                return real(*args, **kwargs)  # reading does not count, until the disk is dead
            self.seen += 1
            if self.seen == self.nth or (self.dead and self.fired):
                raise OSError(self.code, os.strerror(self.code))
            if name == "write" and self.seen + 1 == self.nth and len(args[1]) > 1:
                return real(args[0], args[1][: len(args[1]) // 2])  # a disk takes half before it takes no more
            return real(*args, **kwargs)

        return call

    @contextmanager
    def broken(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, self.wrap(name, getattr(os, name)))
            yield


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), float(step)), "moment": torch.zeros(2)}


class Act:
    """One thing that writes: what stands before, what it does, and what a reader may see after a failure."""

    path = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self) -> None:
        raise NotImplementedError

    def read(self) -> Any:
        raise NotImplementedError

    before: Any = 0
    after: Any = 1


class SaveCheckpoint(Act):
    path = "checkpoints"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.store = CheckpointStore(folder, keep=1)
        self.store.save(0, tensors(0), {"step": 0})

    def do(self) -> None:
        self.store.save(1, tensors(1), {"step": 1})

    def read(self) -> int:
        loaded = CheckpointStore(self.folder).newest()
        assert loaded is not None and loaded.skipped == []
        assert loaded.record == {"step": loaded.step} and loaded.tensors["w"].tolist() == [float(loaded.step)] * 3
        return loaded.step


class SaveFirstCheckpoint(SaveCheckpoint):
    before = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder)

    def read(self) -> Any:
        return None if CheckpointStore(self.folder).newest() is None else super().read()


class SaveSnapshot(Act):
    path = "tensors.safetensors"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        save_tensors(folder / "snapshots" / "selected", tensors(0), {"step": 0})

    def do(self) -> None:
        save_tensors(self.folder / "snapshots" / "selected", tensors(1), {"step": 1})

    def read(self) -> int:
        held = int(load_tensors(self.folder / "snapshots" / "selected")["w"][0])
        assert load_extra(self.folder / "snapshots" / "selected") == {"step": held}
        return held


class FlushSeries(Act):
    path = "series"
    before = ([0, 1], [0, 1], "calm")
    after = ([0, 1, 2, 3], [0, 1, 2, 3], "storm")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.writer = SeriesWriter(folder)
        for key in ("t.a", "t.b"):
            self.writer.declare(key)
            self.writer.append(key, [0, 1], [0, 1])
        self.writer.declare("p.why", kind="hold")
        self.writer.hold("p.why", 0, "calm")
        self.writer.flush(sync=True)
        for key in ("t.a", "t.b"):
            self.writer.append(key, [2, 3], [2, 3])
        self.writer.hold("p.why", 2, "storm")

    def do(self) -> None:
        self.writer.flush(sync=True)

    def read(self) -> Any:
        held = [read_series(self.folder, key) for key in ("t.a", "t.b")]
        for steps, values in held:  # each series stands where it stood or where it goes, in whole rows
            assert steps.tolist() == values.tolist() and steps.tolist() in ([0, 1], [0, 1, 2], [0, 1, 2, 3])
        assert series_index(self.folder)["p.why"]["labels"][0] == "calm"
        whole = (*(steps.tolist() for steps, _ in held), at(self.folder, "p.why", 3))
        return whole if whole == self.after else self.before


class ResumeSeries(Act):
    path = "series"
    before = "as far as it got"
    after = ([0, 1], [], ["calm"])

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        first = FlushSeries(folder)
        lengths = first.writer.lengths()
        assert lengths == {"t.a": 4, "t.b": 4, "p.why": 2}
        first.writer.declare("born.later")
        first.writer.append("born.later", [9], [9])
        first.writer.flush()
        first.writer.close()

    def do(self) -> None:
        SeriesWriter(self.folder).resume({"t.a": 2, "t.b": 0, "p.why": 1})

    def read(self) -> Any:
        index = series_index(self.folder)
        held = [read_series(self.folder, key)[0].tolist() for key in ("t.a", "t.b")]
        whole = (*held, index["p.why"]["labels"])
        return whole if whole == self.after and "born.later" not in index else self.before


class WriteEvent(Act):
    path = "events.jsonl"
    before = ["mark"]
    after = ["mark", "storm"]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.log = EventLog(folder)
        self.log.write("mark", 0)

    def do(self) -> None:
        self.log.write("storm", 1)

    def read(self) -> Any:
        records = read_events(self.folder)
        seqs = [record["seq"] for record in records]
        assert seqs == sorted(set(seqs))
        return [record["event"] for record in records]


class OpenTornLog(Act):
    path = "events.jsonl"
    before = after = ["mark"]

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        EventLog(folder).write("mark", 0)
        with (folder / "events.jsonl").open("ab") as file:
            file.write(b'{"seq": 1, "ev')

    def do(self) -> None:
        EventLog(self.folder).close()

    def read(self) -> Any:
        return [record["event"] for record in read_events(self.folder)]


class WriteJson(Act):
    path = "x.json"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        write_json(folder / "x.json", 0)

    def do(self) -> None:
        atomic_write(self.folder / "x.json", b"1")

    def read(self) -> Any:
        return read_json(self.folder / "x.json")


class TakeLock(Act):
    path = "run"
    before = after = None

    lock: Lock | None = None

    def do(self) -> None:
        self.lock = self.lock or RunDir(self.folder / "run").lock()

    def read(self) -> None:
        """Say nothing of a lock that was not taken; one that was taken is held."""
        assert self.lock is None or self.lock.held()


class Ask(Act):
    path = "control"
    before: Any = []
    after: Any = ["stop"]

    def do(self) -> None:
        request(self.folder, "stop", "ana")

    def read(self) -> Any:
        heard = [one.what for one in pending(self.folder)]
        for what in heard:
            request(self.folder, what, "ana")
        return sorted(set(heard))


ACTS = [
    *(SaveCheckpoint, SaveFirstCheckpoint, SaveSnapshot, FlushSeries, ResumeSeries),
    *(WriteEvent, OpenTornLog, WriteJson, TakeLock, Ask),
]


@pytest.mark.parametrize(
    ("code", "dead"), [(errno.EIO, False), (errno.ENOSPC, True)], ids=["EIO once", "ENOSPC for good"]
)
@pytest.mark.parametrize("act", ACTS)
def test_the_nth_call_fails(tmp_path: Path, act: type[Act], code: int, dead: bool) -> None:
    failures = 0
    for nth in range(1, 200):
        folder = tmp_path / str(nth)
        folder.mkdir()
        (folder / "storm").mkdir()
        one, disk = act(folder), Disk(nth, code, dead)
        error: StorageError | None = None
        with disk.broken():
            try:
                one.do()
            except StorageError as caught:
                error = caught
        if not disk.fired:
            break
        seen = one.read()
        assert seen in (one.before, one.after)
        if error is None:  # only cleaning up may fail unheard, after the work was done
            assert seen == one.after
        else:
            failures += 1
            assert str(folder) in str(error) and one.path in str(error) and os.strerror(code) in str(error)
        if list(folder.rglob(".tmp-*")):  # only where the clean-up itself met the broken disk
            assert dead or error is None
        one.do()
        assert one.read() == one.after
        RunDir(folder).lock().release()  # the next start removes it
        assert not [path for name in (".", "checkpoints", "snapshots") for path in (folder / name).glob(".tmp-*")]
    else:
        pytest.fail("the calls never end")
    assert failures >= 2


def test_a_record_that_lacked_only_its_newline_does_not_share_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, real = EventLog(tmp_path), os.write

    def all_but_the_newline(descriptor: int, data: memoryview) -> int:
        if len(data) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", all_but_the_newline)
        with pytest.raises(StorageError):
            log.write("mark", 0)
    log.write("end", 1)
    assert [(record["seq"], record["event"]) for record in read_events(tmp_path)] == [(0, "mark"), (1, "end")]
    log.close()


def test_a_checkpoint_is_synced_before_it_is_seen_and_seen_before_an_old_one_goes(tmp_path: Path) -> None:
    """Follow the calls of one save: whatever a power cut drops, the order keeps one whole checkpoint on disk."""
    store = CheckpointStore(tmp_path, keep=1)
    store.save(0, tensors(0), {})
    said: list[str] = []
    names: dict[int, str] = {}

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            back = real(*args, **kwargs)
            if name == "open":
                names[back] = Path(args[0]).name
            elif name in ("write", "fsync"):
                said.append(f"{name} {names[args[0]]}")
            elif name == "rename":
                said.append(f"rename {Path(args[0]).name} {Path(args[1]).name}")
            return back

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("open", "write", "fsync", "rename"):
            patch.setattr(os, name, noted(name, getattr(os, name)))
        store.save(1, tensors(1), {})
    files = ["tensors.safetensors", "record.json", "manifest.json"]
    assert said == [
        *(f"{what} {name}" for name in files for what in ("write", "fsync")),
        "fsync .tmp-2",
        "rename .tmp-2 2-1",
        "fsync checkpoints",
        "rename 1-0 .tmp-old-1-0",
    ]


# --- a disk that is really full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_was_wanted(small_disk: Path) -> None:
    store = CheckpointStore(small_disk)
    store.save(1, {"w": torch.ones(50_000)}, {"ok": True})
    with pytest.raises(
        CheckpointError, match=r"2-2: .*No space left.*\(8\d\d,\d\d\d bytes wanted, [\d,]+ free\)"
    ) as caught:
        store.save(2, {"w": torch.ones(220_000)}, {})
    assert str(small_disk) in str(caught.value)
    assert [path.name for path in store.folder.iterdir()] == ["1-1"]  # the staging is gone, its room is free again
    loaded = CheckpointStore(small_disk).newest()
    assert loaded is not None and loaded.step == 1 and loaded.record == {"ok": True}
    store.save(3, {"w": torch.ones(50_000)}, {})


def test_logs_on_a_full_disk_stay_readable_and_go_on_when_there_is_room(small_disk: Path) -> None:
    log, writer = EventLog(small_disk), SeriesWriter(small_disk)
    log.write("mark", 0)
    writer.declare("t.p")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(900_000))
    with pytest.raises(StorageError, match="t.p.f64: the series cannot be written: No space left"):
        for block in range(1000):
            steps = range(block * 1000, block * 1000 + 1000)
            writer.append("t.p", steps, steps)
            writer.flush()
    held = read_series(small_disk, "t.p")[0]
    assert held.tolist() == list(range(len(held))) and len(held) > 0
    with pytest.raises(StorageError, match="events.jsonl: an event cannot be written: No space left"):
        for step in range(1, 1000):
            log.write("mark", step, text="x" * 5000)
    with pytest.raises(StorageError, match="status.json: cannot be written"):
        write_json(small_disk / "status.json", {"text": "x" * 50_000})
    ballast.unlink()
    writer.flush()
    log.write("end", 1)
    records = read_events(small_disk)
    assert records[-1]["event"] == "end" and [record["step"] for record in records[:-1]] == list(
        range(len(records) - 1)
    )
    steps = read_series(small_disk, "t.p")[0]
    assert steps.tolist() == list(range(len(steps))) and len(steps) > len(held)
    log.close()
    writer.close()
