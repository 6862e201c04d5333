"""One writer, a pulse that never hurts training, and readers that believe nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctr.engine.errors import DataError, FolderOwned, StorageError
from ctr.engine.rundir import (
    Heartbeat,
    Owner,
    RunDir,
    Status,
    StudyDir,
    number,
    pending,
    read_json,
    request,
    studies,
    write_json,
)

HOLD = """
import sys
from pathlib import Path
from ctr.engine.rundir import RunDir
with RunDir(Path(sys.argv[1])).lock() as lock:
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run: Path) -> subprocess.Popen[str]:
    """Start a process that owns `run` until its input ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout and child.stdout.readline() == "held\n"
    return child


def ended(child: subprocess.Popen[str]) -> None:
    child.communicate(timeout=20)


def plant(run: Path, **changes: Any) -> None:
    """Write a lock file that differs from one of this process as told."""
    run.mkdir(parents=True, exist_ok=True)
    me = Owner.me()
    about = {name: getattr(me, name) for name in Owner.__dataclass_fields__}
    (run / "lock").write_text(json.dumps({**about, **changes}))


# --- lock


def test_a_second_writer_is_refused_with_the_pid_and_host_of_the_first(tmp_path: Path) -> None:
    child = holder(tmp_path / "run")
    with pytest.raises(FolderOwned) as caught:
        RunDir(tmp_path / "run").lock()
    assert f"pid {child.pid} on host {socket.gethostname()}" in str(caught.value)
    with pytest.raises(FolderOwned, match="which is running"):  # by hand neither: it would make two writers
        RunDir(tmp_path / "run").lock(take_over=True)
    ended(child)
    with RunDir(tmp_path / "run").lock() as lock:
        assert lock.taken_over is None  # it was released, not inherited


def test_the_lock_of_a_killed_process_is_taken_over_and_the_dead_one_named(tmp_path: Path) -> None:
    child = holder(tmp_path)
    child.send_signal(signal.SIGKILL)
    time.sleep(0.05)
    with RunDir(tmp_path).lock() as lock:  # not waited for: a zombie is dead as well
        assert lock.taken_over is not None and lock.taken_over.pid == child.pid
    child.communicate()
    assert not (tmp_path / "lock").exists()


def test_the_same_process_cannot_own_a_folder_twice(tmp_path: Path) -> None:
    with RunDir(tmp_path).lock(), pytest.raises(FolderOwned):
        RunDir(tmp_path).lock()


def test_a_recycled_pid_is_not_taken_for_the_owner(tmp_path: Path) -> None:
    plant(tmp_path, process="1")  # our pid, but a process that began one tick after boot
    with RunDir(tmp_path).lock() as lock:
        assert lock.taken_over is not None and lock.taken_over.pid == os.getpid()


def test_another_host_is_refused_with_the_age_of_its_heartbeat_unless_taken_over_by_hand(tmp_path: Path) -> None:
    plant(tmp_path, host="elsewhere\x1b[2J", pid=4711)
    with pytest.raises(FolderOwned, match=r"pid 4711 on host elsewhere\\x1b\[2J, which left no heartbeat.*--take-over"):
        RunDir(tmp_path).lock()
    write_json(tmp_path / "status.json", {"status": "live", "heartbeat": time.time() - 42})
    with pytest.raises(FolderOwned, match=r"whose last heartbeat is 4[23] s old"):
        RunDir(tmp_path).lock()
    with RunDir(tmp_path).lock(take_over=True) as lock:
        assert lock.taken_over is not None and lock.taken_over.host.startswith("elsewhere")


def test_another_pid_space_on_this_host_cannot_be_judged_and_is_refused(tmp_path: Path) -> None:
    plant(tmp_path, space="pid:[1]")
    with pytest.raises(FolderOwned, match="--take-over"):
        RunDir(tmp_path).lock()


def test_after_a_restart_of_the_machine_only_a_beating_heart_keeps_the_lock(tmp_path: Path) -> None:
    plant(tmp_path, boot="another boot")
    write_json(tmp_path / "status.json", {"status": "live", "heartbeat": time.time()})
    with pytest.raises(FolderOwned):  # another machine of the same name
        RunDir(tmp_path).lock()
    write_json(tmp_path / "status.json", {"status": "live", "heartbeat": time.time() - 3600})
    with RunDir(tmp_path).lock() as lock:
        assert lock.taken_over is not None and lock.taken_over.boot == "another boot"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "\x00\x00", '{"pid": 1}', '{"pid":0}', "[" * 5000, "\xff" * 40]
)
def test_a_malformed_lock_file_is_refused_and_replaced_by_hand(tmp_path: Path, content: str) -> None:
    (tmp_path / "lock").write_text(content)
    with pytest.raises(FolderOwned, match="unreadable lock file.*--take-over"):
        RunDir(tmp_path).lock()
    with RunDir(tmp_path).lock(take_over=True) as lock:
        assert lock.held()


@pytest.mark.parametrize(
    "change", [{"pid": -1}, {"pid": 0}, {"pid": True}, {"pid": 2**40}, {"host": 3}, {"started": ""}]
)
def test_a_lock_with_impossible_values_is_malformed(tmp_path: Path, change: dict[str, Any]) -> None:
    plant(tmp_path, **change)
    with pytest.raises(FolderOwned, match="unreadable"):
        RunDir(tmp_path).lock()


def test_release_leaves_a_lock_alone_that_was_taken_over_by_hand(tmp_path: Path) -> None:
    lock = RunDir(tmp_path).lock()
    plant(tmp_path, host="elsewhere")
    assert not lock.held()
    lock.release()
    assert (tmp_path / "lock").exists()


def test_only_one_of_many_heirs_inherits(tmp_path: Path) -> None:
    run = tmp_path / "run"
    plant(run, process="1")
    script = """
import sys, time
from pathlib import Path
from ctr.engine.rundir import RunDir
from ctr.engine.errors import FolderOwned
run = RunDir(Path(sys.argv[1]))
time.sleep(max(0, float(sys.argv[2]) - time.time()))
try:
    run.lock()
except FolderOwned:
    print("refused")
else:
    print("owner", flush=True)
    sys.stdin.read()
"""
    start = str(time.time() + 1.5)
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    heirs = [subprocess.Popen([sys.executable, "-c", script, str(run), start], **pipe) for _ in range(5)]
    said = [heir.stdout.readline().strip() for heir in heirs]
    for heir in heirs:
        ended(heir)
    assert sorted(said) == ["owner", "refused", "refused", "refused", "refused"]


def test_locking_sweeps_what_a_killed_writer_left_unfinished(tmp_path: Path) -> None:
    left = [tmp_path / ".tmp-a", tmp_path / "checkpoints" / ".tmp-3" / "tensors", tmp_path / "snapshots" / ".tmp-b"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    kept = tmp_path / "checkpoints" / "2-9" / "record.json"
    kept.parent.mkdir()
    kept.write_text("x")
    with RunDir(tmp_path).lock():
        assert kept.exists() and not any(path.exists() for path in left)


def test_a_folder_that_cannot_be_made_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/run"):
        RunDir(tmp_path / "file" / "run").lock()


# --- status


def test_a_heartbeat_is_written_at_once_on_every_beat_and_on_change(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 0.02, status="queued", phases=2)
    first = Status.from_file(tmp_path / "status.json")
    assert first and (first.status, first.phases, first.pid) == ("queued", 2, os.getpid())
    assert first.memory_bytes and first.memory_bytes > 1 << 20
    heart.update(step=7, train_loss=math.nan, val={"loss": np.float32(0.5)})
    deadline = time.monotonic() + 5
    while (seen := Status.from_file(tmp_path / "status.json")) and seen.step != 7 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen and seen.step == 7 and seen.train_loss is not None and math.isnan(seen.train_loss)
    assert seen.val == {"loss": 0.5} and seen.heartbeat >= first.heartbeat
    heart.change("finished", code=0)
    last = Status.from_file(tmp_path / "status.json")
    assert last and (last.status, last.code, last.label) == ("finished", 0, "finished")
    heart.stop()
    assert heart.error is None


def test_a_status_that_cannot_be_written_is_remembered_and_training_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    heart = Heartbeat(folder, 60)
    (folder / "status.json").unlink()
    folder.rmdir()
    heart.change("paused")
    assert isinstance(heart.error, StorageError) and "status.json" in str(heart.error)
    folder.mkdir()
    heart.change("live")
    heart.stop()
    status = Status.from_file(folder / "status.json")
    assert status and status.status == "live"


def test_one_value_that_json_cannot_hold_does_not_silence_the_heartbeat(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, 60)
    heart.change("live", step=3, lr=object())
    heart.stop()
    status = Status.from_file(tmp_path / "status.json")
    assert status and status.step == 3 and status.lr is None
    assert "lr: a object cannot be written" in str(heart.error)


def test_stale_is_ten_silent_heartbeats_and_only_of_the_living(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"status": "live", "heartbeat": 1000.0, "heartbeat_interval": 2.0})
    assert not Status.from_file(path, 1020.0).stale  # type: ignore[union-attr]
    late = Status.from_file(path, 1020.5)
    assert late and late.stale and late.label == "stale"
    write_json(path, {"status": "finished", "heartbeat": 1000.0})
    assert not Status.from_file(path, 9e9).stale  # type: ignore[union-attr]


def test_a_clock_that_was_set_back_gives_no_negative_age(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(
        path, {"status": "live", "heartbeat": time.time() + 86400, "eta_seconds": -3, "steps_per_second": "-inf"}
    )
    status = Status.from_file(path)
    assert status and 0 <= status.age < 60 and not status.stale
    assert status.eta_seconds is None and status.steps_per_second is None
    later = Status.from_file(path, time.time() + 3600)  # the future heartbeat does not keep a dead run alive
    assert later and later.stale


HOSTILE = [
    {"status": ["live"], "pid": "1", "step": -1, "epoch": 1.5, "val": [1], "host": 3, "error": {"a": 1}},
    {"status": "live", "step": True, "phase": "\x1b]0;x\x07", "heartbeat": "now", "heartbeat_interval": -1, "lr": None},
    {"status": None, "val": {"loss": "x", "a": None, "\x1b": 1.0}, "memory_bytes": 10**30, "eta_seconds": "inf"},
]


@pytest.mark.parametrize("raw", HOSTILE)
def test_wrong_types_in_a_status_become_nothing_and_texts_are_cleaned(tmp_path: Path, raw: dict[str, Any]) -> None:
    path = tmp_path / "status.json"
    path.write_text(json.dumps(raw))
    status = Status.from_file(path)
    assert status is not None
    numbers = (status.pid, status.step, status.epoch, status.eta_seconds, status.memory_bytes)
    assert all(value is None for value in numbers)
    assert status.age >= 0 and "\x1b" not in f"{status.phase}{status.host}{status.error}{status.val}{status.label}"


def test_a_status_cut_at_any_byte_is_none_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"status": "live", "step": 12, "heartbeat": 5.0})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        status = Status.from_file(path, 6.0)
        assert status is None or status.step == 12
    assert Status.from_file(tmp_path / "none.json") is None


# --- JSON


def test_json_keeps_floats_that_are_not_finite_and_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(
        path, {"b": [math.nan, math.inf, -math.inf, -0.0], "a": np.float64(0.1), "path": Path("p"), "n": np.int64(3)}
    )
    first = path.read_bytes()
    assert (
        first
        == b"""{
  "a": 0.1,
  "b": [
    "nan",
    "inf",
    "-inf",
    -0.0
  ],
  "n": 3,
  "path": "p"
}
"""
    )
    back = [number(value) for value in (read_json(path) or {})["b"]]
    assert math.isnan(back[0] or 0) and back[1:3] == [math.inf, -math.inf]
    assert number("x") is None and number(True) is None and number(None) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {3: 1}}, r"x.json.a: the key 3 is not a text"),
        ({"a": [object()]}, r"x.json.a\[0\]: a object cannot"),
        ({"a": 2**64}, "beyond 64 bits"),
        ({"a": np.zeros(2)}, "a ndarray cannot"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_json(tmp_path / "x.json", value)
    assert not list(tmp_path.iterdir())


def test_a_value_within_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(DataError, match="nested deeper"):
        write_json(tmp_path / "x.json", loop)


def test_a_missing_json_file_is_none_and_a_malformed_one_an_error(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    for number_, bad in enumerate((b"{", b"\xff\xfe", b"[" * 10_000, b"")):
        path = tmp_path / f"{number_}.json"
        path.write_bytes(bad)
        with pytest.raises(DataError, match=f"{number_}.json: is not JSON"):
            read_json(path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="not a regular file"):  # and it does not wait for the pipe's other end
        read_json(tmp_path / "pipe.json")


# --- folders and requests


def test_runs_come_in_the_order_of_the_index_and_only_where_they_exist(tmp_path: Path) -> None:
    study = tmp_path / "quickstart"
    for name in ("b-s1", "a-s1", "c-s1", ".old", "figures"):
        (study / name).mkdir(parents=True)
    for name in ("b-s1", "a-s1", "c-s1"):
        (study / name / "spec.yaml").write_text("")
    listed = [{"name": name} for name in ("c-s1", "../../etc", "gone-s1", "b-s1", 7)]
    write_json(study / "study.json", {"runs": [*listed, "x"]})
    (found,) = studies(tmp_path)
    assert [run.name for run in found.runs()] == ["c-s1", "b-s1", "a-s1"]
    assert found.index["runs"][0] == {"name": "c-s1"}
    (study / "study.json").write_text("{")
    assert found.index == {} and [run.name for run in found.runs()] == ["a-s1", "b-s1", "c-s1"]
    assert [one.name for one in studies(tmp_path)] == ["quickstart"]  # known by its runs
    assert studies(tmp_path / "nowhere") == [] and StudyDir(tmp_path / "nowhere").runs() == []
    assert studies(study) == []


def test_a_folder_name_cannot_lead_out_of_the_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.folder("snapshots", "selected") == tmp_path / "snapshots" / "selected"
    for name in ("..", "a/b", "", "/etc", "x\x00y", "n" * 300):
        with pytest.raises(DataError, match="name of a folder in a run"):
            run.folder("data", name)


def test_requests_are_heard_once_oldest_first_and_garbage_never(tmp_path: Path) -> None:
    assert pending(tmp_path) == []
    request(tmp_path, "pause", "ana\x1b[1m")
    request(tmp_path, "stop", "ben")
    control = tmp_path / "control"
    for at, garbage in enumerate((b"{", b"[]", b'{"what": "explode"}', b'{"what": ["stop"]}', b"\xff", b"[" * 5000)):
        (control / f"{at}-1-0000000{at}.json").write_bytes(garbage)
    os.mkfifo(control / "9-9-00000009.json")
    (control / "notes.txt").write_text("not ours")
    heard = pending(tmp_path)
    assert [(one.what, one.who) for one in heard] == [("pause", "ana\\x1b[1m"), ("stop", "ben")]
    assert heard[0].time <= heard[1].time
    assert pending(tmp_path) == []
    assert [path.name for path in control.iterdir()] == ["notes.txt"]


def test_an_unknown_request_or_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="known are stop, pause, resume, checkpoint"):
        request(tmp_path, "explode", "ana")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="is no run folder"):
        request(tmp_path / "gone", "stop", "ana")


def test_storage_modules_load_no_torch() -> None:
    modules = "ctr.engine.rundir, ctr.engine.events_log, ctr.engine.series, ctr.engine.checkpoint"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
