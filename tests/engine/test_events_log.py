"""The event log is never cut, and whatever stands in it stops no reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from ctr.engine.errors import DataError, StorageError
from ctr.engine.events_log import EventLog, EventReader, read_events


def line(seq: int, event: str = "mark", **fields: Any) -> bytes:
    return orjson.dumps({"seq": seq, "time": 1.0, "event": event, "step": seq, **fields}) + b"\n"


def written(folder: Path, count: int) -> EventLog:
    log = EventLog(folder)
    for step in range(count):
        log.write("mark", step, owner="test")
    return log


def seqs(records: list[dict[str, Any]]) -> list[int]:
    return [record["seq"] for record in records]


def test_every_record_has_seq_time_event_and_step(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    before = time.time()
    given = log.write("epoch", 12, train={"loss": float("nan")}, shape=(1, 2), path=Path("p"), text="\ud800")
    log.close()
    (read,) = read_events(tmp_path)
    assert read == given and list(read)[:4] == ["seq", "time", "event", "step"]
    assert (read["seq"], read["event"], read["step"]) == (0, "epoch", 12) and before <= read["time"] <= time.time()
    assert read["train"] == {"loss": "nan"} and read["shape"] == [1, 2] and read["text"] == "\\ud800"


def test_seq_goes_on_where_the_last_writer_ended(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    log = EventLog(tmp_path)
    assert log.seq == 3
    log.write("mark", 3)
    assert seqs(read_events(tmp_path)) == [0, 1, 2, 3]


def test_a_log_cut_at_any_byte_gives_a_prefix_and_takes_the_next_record(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    path = tmp_path / "events.jsonl"
    whole = path.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        assert seqs(read_events(tmp_path)) == list(range(complete))
        log = EventLog(tmp_path)
        log.write("mark", 99)
        log.close()
        after = read_events(tmp_path)
        # a record that lacked nothing but its newline is one after all, once the next writer has ended its line
        assert seqs(after) in (list(range(complete + 1)), list(range(complete + 2))) and after[-1]["step"] == 99
        assert path.read_bytes().startswith(whole[:size])  # never cut


def test_seq_is_found_behind_a_megabyte_of_garbage(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"x" * 3_000_000 + b"\n" + b"{}\n" * 50_000)
    log = EventLog(tmp_path)
    assert log.seq == 2
    log.write("mark", 2)
    reader = EventReader(tmp_path)
    assert seqs(reader.poll(seconds=60)) == [0, 1, 2] and reader.garbage == 50_001


GARBAGE = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"\x00\xff\xfe",
    b'{"seq": 1',
    b'{"seq":"1","time":1,"event":"mark","step":1}',
    b'{"seq":1,"time":1,"event":"mark"}',
    b'{"seq":-1,"time":1,"event":"mark","step":1}',
    b'{"seq":true,"time":1,"event":"mark","step":1}',
    b'{"seq":99999999999999999999,"time":1,"event":"mark","step":1}',
    b'{"seq":1,"time":"now","event":"mark","step":1}',
    b'{"seq":1,"time":1,"event":["mark"],"step":1}',
    b'{"seq":1,"time":1,"event":"resumed","step":1}',
    b'{"seq":1,"time":1,"event":"resumed","step":1,"from_seq":"0"}',
    b"[" * 100_000,
    b'{"seq":1,"time":1,"event":"mark","step":1,"deep":' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"seq":1,"time":1,"event":"mark","step":1,"long":"' + b"x" * 10_000_000 + b'"}',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=[repr(one[:60]) for one in GARBAGE])
def test_a_garbage_line_is_passed_over(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(line(0) + garbage + b"\n" + line(1))
    assert seqs(read_events(tmp_path)) == [0, 1]
    reader = EventReader(tmp_path)
    assert seqs(reader.poll(seconds=10)) == [0, 1]
    assert reader.garbage == (1 if garbage else 0)


def test_brackets_in_a_text_are_not_depth(tmp_path: Path) -> None:
    EventLog(tmp_path).write("error", 0, text="[" * 500)
    assert read_events(tmp_path)[0]["text"] == "[" * 500


def test_a_long_text_is_shortened_and_a_record_beyond_the_limit_refused(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    assert len(log.write("error", 0, text="x" * 100_000)["text"]) == 20_001
    with pytest.raises(DataError, match="event mark: a record of .* bytes"):
        log.write("mark", 0, many=["y" * 20_000] * 100)
    with pytest.raises(DataError, match="the log itself writes seq"):
        log.write("mark", 0, seq=4)
    with pytest.raises(DataError, match=r"event mark\.bad: a object cannot"):
        log.write("mark", 0, bad=object())
    assert seqs(read_events(tmp_path)) == [0] and log.seq == 1


def test_a_resume_drops_what_stood_after_its_checkpoint(tmp_path: Path) -> None:
    log = written(tmp_path, 6)
    log.resumed("2-4", 3, 4, [("3-6", "tensors.safetensors does not match its sha256")])
    log.write("mark", 4)
    records = read_events(tmp_path)
    assert seqs(records) == [0, 1, 2, 3, 6, 7]
    assert records[4] == {**records[4], "event": "resumed", "checkpoint": "2-4", "from_seq": 3}
    assert records[4]["skipped"] == [["3-6", "tensors.safetensors does not match its sha256"]]


def test_a_second_resume_may_go_back_before_the_first(tmp_path: Path) -> None:
    log = written(tmp_path, 4)
    log.resumed("2-3", 2, 3)  # seq 4
    log.write("mark", 3)  # seq 5
    log.resumed("1-1", 0, 1)  # seq 6: the first resume is superseded as well
    log.write("mark", 1)
    assert seqs(read_events(tmp_path)) == [0, 6, 7]
    log.resumed("", -1, 0)
    assert seqs(read_events(tmp_path)) == [8]


def follow(reader: EventReader, held: list[dict[str, Any]], most: int) -> None:
    """Do with one poll what the reader's docstring asks of a consumer."""
    new = reader.poll(most)
    if reader.restarted:
        held.clear()
    if reader.superseded_from is not None:
        held[:] = [record for record in held if record["seq"] <= reader.superseded_from]
    held += new


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_a_follower_holds_what_a_reader_reads_however_the_log_is_sliced(tmp_path: Path, most: int) -> None:
    log = EventLog(tmp_path)
    reader, held = EventReader(tmp_path), list[dict[str, Any]]()
    script = [*(["mark"] * 5), 2, "mark", 1, 4, "mark", "mark", -1, "mark"]
    for step, what in enumerate(script):
        if isinstance(what, int):
            log.resumed("1-0", what, step)
        else:
            log.write(what, step)
        if step % 3 == 0:
            follow(reader, held, most)
    for _ in script:
        follow(reader, held, most)
    assert held == read_events(tmp_path)


def test_a_torn_last_line_is_not_yet_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(tmp_path)
    assert reader.poll() == []
    whole = line(0) + line(1)
    for size in range(len(line(0)), len(whole)):
        path.write_bytes(whole[:size])
        assert seqs(reader.poll()) == ([0] if size == len(line(0)) else [])
        assert not reader.restarted
    with path.open("ab") as file:
        file.write(whole[-1:])
    assert seqs(reader.poll()) == [1]


def test_a_replaced_or_shrunken_log_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(0) + line(1))
    reader = EventReader(tmp_path)
    assert seqs(reader.poll()) == [0, 1] and not reader.restarted
    path.write_bytes(line(5))
    assert seqs(reader.poll()) == [5] and reader.restarted
    assert reader.poll() == [] and not reader.restarted
    new = tmp_path / "new"
    new.write_bytes(line(6) * 3)
    new.replace(path)
    assert seqs(reader.poll()) == [6, 6, 6] and reader.restarted
    path.unlink()
    assert reader.poll() == [] and reader.restarted
    path.write_bytes(line(7))
    assert seqs(reader.poll()) == [7]


def test_a_poll_is_bounded_in_records_and_time(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_bytes(b"".join(line(seq) for seq in range(30_000)))
    reader = EventReader(tmp_path)
    assert seqs(reader.poll(most=10, seconds=10)) == list(range(10))
    some = reader.poll(most=100_000, seconds=0.0)
    assert 0 < len(some) < 29_000  # a clock that stands still at zero still lets it go on, little by little
    rest = reader.poll(most=100_000, seconds=60)
    assert seqs(some + rest) == list(range(10, 30_000))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_an_empty_log_and_nobody_waits_for_it(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "events.jsonl")
    assert read_events(tmp_path) == []


def test_no_folder_is_no_record_and_cannot_be_written(tmp_path: Path) -> None:
    assert read_events(tmp_path / "gone") == []
    with pytest.raises(StorageError, match="gone/events.jsonl: the event log cannot be opened: No such file"):
        EventLog(tmp_path / "gone")


def test_a_reader_polling_while_a_process_writes_sees_every_record_once(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from ctr.engine.events_log import EventLog
log = EventLog(Path(sys.argv[1]))
for step in range(3000):
    log.write("mark", step, text="x" * (step % 500))
log.write("end", 3000)
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    reader, records = EventReader(tmp_path), list[dict[str, Any]]()
    deadline = time.monotonic() + 60
    while (not records or records[-1]["event"] != "end") and time.monotonic() < deadline:
        records += reader.poll()
        assert not reader.restarted and reader.superseded_from is None
    assert child.wait(10) == 0
    assert seqs(records) == list(range(3001)) and reader.garbage == 0
    assert all(len(record["text"]) == record["step"] % 500 for record in records[:-1])
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["event"] == "end"
