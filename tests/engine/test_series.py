"""Rows in blocks, holds on change, and a resumed file that equals an uninterrupted one byte for byte."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.engine.errors import DataError, StorageError
from ctr.engine.series import ROW, SeriesReader, SeriesWriter, at, key_problem, read_series, series_index


def rows(folder: Path, key: str) -> list[tuple[int, float]]:
    steps, values = read_series(folder, key)
    return list(zip(steps.tolist(), values.tolist(), strict=True))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_are_int64_and_float64_little_endian(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("train.loss", better="lower")
    writer.append("train.loss", [0, 1], [2.5, math.nan])
    writer.append("train.loss", np.array([2**40]), np.array([1], np.float32))
    assert not (tmp_path / "series").exists()  # gathered, not written
    writer.flush()
    data = (tmp_path / "series" / "train.loss.f64").read_bytes()
    assert data[:16] == bytes(8) + bytes.fromhex("0000000000000440") and len(data) == 48
    steps, values = read_series(tmp_path, "train.loss")
    assert steps.dtype == np.int64 and values.dtype == np.float64 and steps.flags.c_contiguous
    assert steps.tolist() == [0, 1, 2**40] and values[0] == 2.5 and math.isnan(values[1]) and values[2] == 1


def test_one_write_per_series_and_flush_and_an_index_only_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = SeriesWriter(tmp_path)
    keys = [f"train.s{number}" for number in range(10)]
    for key in keys:
        writer.declare(key)
        writer.append(key, [0], [0.0])
    writer.flush()
    calls = {"write": 0, "open": 0, "replace": 0}

    def counting(name: str) -> Any:
        real = getattr(os, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return real(*args, **kwargs)

        return counted

    for name in calls:
        monkeypatch.setattr(os, name, counting(name))
    for block in range(1, 4):
        for key in keys:
            writer.declare(key)
            for step in range(block * 64, block * 64 + 64, 8):
                writer.append(key, np.arange(step, step + 8), np.zeros(8))
        writer.flush()
    assert calls == {"write": 30, "open": 0, "replace": 0}
    assert writer.lengths() == dict.fromkeys(keys, 193)


def test_a_hold_is_written_on_change_only_and_nan_equals_nan(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("p.scale", kind="hold")
    for step, value in enumerate([1.0, 1.0, math.nan, math.nan, 1.0, math.inf, math.inf, -math.inf]):
        writer.hold("p.scale", step, value)
    writer.flush()
    assert [step for step, _ in rows(tmp_path, "p.scale")] == [0, 2, 4, 5, 7]
    assert at(tmp_path, "p.scale", 6) == math.inf and at(tmp_path, "p.scale", 0) == 1.0


def test_labels_are_ids_whose_texts_lie_in_the_index(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("p.why", kind="hold")
    for step, why in [(3, "S0_EXPLORE"), (5, "S0_EXPLORE"), (8, "S2 [bold]"), (9, "S0_EXPLORE")]:
        writer.hold("p.why", step, why)
    writer.flush()
    assert rows(tmp_path, "p.why") == [(3, 0.0), (8, 1.0), (9, 0.0)]
    assert series_index(tmp_path)["p.why"]["labels"] == ["S0_EXPLORE", "S2 [bold]"]
    assert [at(tmp_path, "p.why", step) for step in (2, 3, 7, 8, 99)] == [
        None, "S0_EXPLORE", "S0_EXPLORE", "S2 [bold]", "S0_EXPLORE",
    ]  # fmt: skip


def test_two_values_at_one_step_leave_the_last_standing(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("p.scale", kind="hold")
    writer.hold("p.scale", 4, 1.0)
    writer.hold("p.scale", 4, 2.0)
    writer.flush()
    assert at(tmp_path, "p.scale", 4) == 2.0


def test_the_index_says_what_a_series_is(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("clock.seconds", unit="s", volatile=True)
    writer.declare("val.accuracy", unit="%", better="higher")
    writer.flush()
    assert json.loads((tmp_path / "series.json").read_text()) == {
        "clock.seconds": {"better": None, "kind": "point", "labels": None, "unit": "s", "volatile": True},
        "val.accuracy": {"better": "higher", "kind": "point", "labels": None, "unit": "%", "volatile": False},
    }


BAD_USE = [
    (lambda w: w.append("train.nope", [0], [1]), "train.nope: not declared"),
    (lambda w: w.declare("loss"), "series loss: a key is <owner>.<name>"),
    (lambda w: w.declare("../x.y"), "a key is <owner>.<name>"),
    (lambda w: w.declare("a." + "b" * 300), "at most 200 characters"),
    (lambda w: w.declare("p.h"), "declared as point, but it is a hold"),
    (lambda w: w.append("p.h", [0], [1]), "p.h: is a hold, and was written as a point"),
    (lambda w: w.hold("t.p", 0, 1), "t.p: is a point, and was written as a hold"),
    (lambda w: w.append("t.p", [0, 1], [1]), r"\(2,\) steps for \(1,\) values"),
    (lambda w: w.append("t.p", [0.5], [1]), "steps must be whole numbers, not float64"),
    (lambda w: (w.append("t.p", [5], [1]), w.append("t.p", [4], [1])), "step 4 after step 5"),
    (lambda w: (w.hold("p.h", 0, 1.0), w.hold("p.h", 1, "x")), "holds numbers, so 'x' cannot"),
    (lambda w: (w.hold("p.h", 0, "x"), w.hold("p.h", 1, 1.0)), "holds labels, so 1.0 cannot"),
    (lambda w: [w.hold("p.h", n, f"label {n}") for n in range(5000)], "a label is a constant text"),
]


@pytest.mark.parametrize(("act", "message"), BAD_USE, ids=[message for _, message in BAD_USE])
def test_wrong_use_is_refused_by_name(tmp_path: Path, act: Any, message: str) -> None:
    writer = SeriesWriter(tmp_path)
    writer.declare("t.p")
    writer.declare("p.h", kind="hold")
    with pytest.raises(DataError, match=message):
        act(writer)


def test_keys_that_the_engine_writes_are_keys() -> None:
    for key in ("train.loss", "train.lr[lora_a]", "p.term.gossip", "p.scale[model.layers.0.q_proj]", "val.top-5"):
        assert key_problem(key) is None
    for key in ("train", "", ".x", "a..b", "a.b/c", "a.\x00", "a.b[", "a.b[]", 7, None, "a.b\n"):
        assert key_problem(key)


# --- resume


def play(writer: SeriesWriter, start: int, end: int) -> None:
    """Log the steps from `start` to `end` as a run would; what is written depends on the step alone."""
    for step in range(start, end):
        if step % 4 == 0:
            writer.declare("train.loss", better="lower")
            writer.append("train.loss", range(step, step + 4), [1 / (k + 1) for k in range(step, step + 4)])
        writer.declare("p.why", kind="hold")
        writer.hold("p.why", step, ["explore", "boundary", "lock", "polish"][step // 5 % 4])
        writer.declare("p.scale", kind="hold")
        writer.hold("p.scale", step, math.nan if step % 7 == 0 else float(step // 6))
        if step >= 9:
            writer.declare("val.loss", unit="nats")
            writer.append("val.loss", [step], [float(step)])
        if step % 3 == 0:
            writer.flush()
    writer.flush()


@pytest.mark.parametrize("committed", [0, 4, 8, 12, 16])
def test_a_resumed_folder_equals_an_uninterrupted_one_byte_for_byte(tmp_path: Path, committed: int) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    play(SeriesWriter(straight), 0, 24)
    for died in range(committed, 20, 4):
        writer = SeriesWriter(killed)
        writer.resume({})
        play(writer, 0, committed)
        lengths = writer.lengths()
        play(writer, committed, died)
        writer.close()
        for path in (killed / "series").glob("*"):
            with path.open("ab") as file:
                file.write(b"torn row"[: died % 16 + 1])
        again = SeriesWriter(killed)
        again.resume(lengths)
        assert again.lengths() == lengths
        play(again, committed, 24)
        again.close()
        assert contents(killed) == contents(straight)


values = st.floats(width=64) | st.just(math.nan)
moves = st.lists(
    st.one_of(
        st.tuples(st.just("point"), st.sampled_from(["t.a", "t.b"]), st.lists(values, max_size=4)),
        st.tuples(st.just("hold"), st.sampled_from(["p.a", "p.b"]), values),
        st.tuples(st.just("label"), st.sampled_from(["p.c", "p.d"]), st.text("xyz", max_size=2)),
        st.tuples(st.just("flush"), st.just(""), st.none()),
    ),
    max_size=30,
)


def apply(writer: SeriesWriter, script: list[Any], first: int) -> None:
    for step, (what, key, value) in enumerate(script, first):
        if what == "point":
            writer.declare(key)
            writer.append(key, np.full(len(value), step), np.array(value, np.float64))
        elif what == "flush":
            writer.flush()
        else:
            writer.declare(key, kind="hold")
            writer.hold(key, step, value)
    writer.flush()


@settings(max_examples=60, deadline=None)
@given(script=moves, data=st.data())
def test_any_script_resumed_anywhere_equals_the_uninterrupted_one(script: list[Any], data: st.DataObject) -> None:
    commit = data.draw(st.integers(0, len(script)))
    died = data.draw(st.integers(commit, len(script)))
    with tempfile.TemporaryDirectory() as name:
        straight, killed = Path(name) / "straight", Path(name) / "killed"
        straight.mkdir()
        killed.mkdir()
        apply(SeriesWriter(straight), script, 0)
        writer = SeriesWriter(killed)
        apply(writer, script[:commit], 0)
        lengths = writer.lengths()
        apply(writer, script[commit:died], commit)
        writer.close()
        again = SeriesWriter(killed)
        again.resume(lengths)
        apply(again, script[commit:], commit)
        again.close()
        assert contents(killed) == contents(straight)


def test_resume_refuses_to_invent_rows_that_are_gone(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    play(writer, 0, 12)
    lengths = writer.lengths()
    writer.close()
    path = tmp_path / "series" / "train.loss.f64"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StorageError, match=r"train.loss.f64: holds 10 rows where 12 were recorded.*--replace"):
        SeriesWriter(tmp_path).resume(lengths)
    (tmp_path / "series.json").write_text("{")
    (tmp_path / "series" / "train.loss.f64").unlink()
    with pytest.raises(StorageError, match=r"series.json: lost series other.key"):
        SeriesWriter(tmp_path).resume({"other.key": 1})


def test_resume_refuses_rows_whose_labels_are_gone(tmp_path: Path) -> None:
    writer = SeriesWriter(tmp_path)
    play(writer, 0, 12)
    lengths = writer.lengths()
    index = json.loads((tmp_path / "series.json").read_text())
    index["p.why"]["labels"] = ["explore"]
    (tmp_path / "series.json").write_text(json.dumps(index))
    with pytest.raises(StorageError, match="lost labels of series p.why, of which 1 are there"):
        SeriesWriter(tmp_path).resume(lengths)


def test_resume_with_nothing_clears_what_an_earlier_start_left(tmp_path: Path) -> None:
    play(SeriesWriter(tmp_path), 0, 12)
    (tmp_path / "series" / "born.later.f64").write_bytes(bytes(32))
    (tmp_path / "series" / "notes.txt").write_text("not ours")
    SeriesWriter(tmp_path).resume({})
    assert contents(tmp_path) == {"series/notes.txt": b"not ours"}


def test_more_series_than_a_process_may_open_files(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    writer = SeriesWriter(tmp_path)
    for number in range(450):
        writer.declare(f"train.lr[layer.{number}]")
    for block in range(2):
        for number in range(450):
            writer.append(f"train.lr[layer.{number}]", [block], [number])
        writer.flush(sync=block == 1)
        assert len(os.listdir("/proc/self/fd")) - before <= 200
    writer.close()
    assert all(rows(tmp_path, f"train.lr[layer.{n}]") == [(0, n), (1, n)] for n in range(0, 450, 37))


# --- readers


def test_a_series_cut_at_any_byte_gives_the_whole_rows_before_it(tmp_path: Path) -> None:
    play(SeriesWriter(tmp_path), 0, 4)
    path = tmp_path / "series" / "train.loss.f64"
    whole, expected = path.read_bytes(), rows(tmp_path, "train.loss")
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert rows(tmp_path, "train.loss") == expected[: size // ROW.itemsize]


def test_a_missing_or_hostile_index_hides_no_series_and_raises_nothing(tmp_path: Path) -> None:
    play(SeriesWriter(tmp_path), 0, 12)
    keys = sorted(series_index(tmp_path))
    (tmp_path / "series.json").unlink()
    assert sorted(series_index(tmp_path)) == keys
    (tmp_path / "series.json").write_text("[" * 3000)
    assert sorted(series_index(tmp_path)) == keys
    wild = {
        "p.why": {"kind": 3, "unit": [], "better": "best", "volatile": "yes", "labels": [1, None]},
        "../x.y": {},
        "t.q": 4,
    }
    (tmp_path / "series.json").write_text(json.dumps(wild))
    plain = {"kind": "point", "unit": "", "better": None, "volatile": False}
    assert series_index(tmp_path) == {"p.why": {**plain, "labels": ["1", "None"]}, "t.q": {**plain, "labels": None}}
    assert at(tmp_path, "p.why", 11) is None  # a label that the index does not hold
    assert rows(tmp_path, "t.q") == rows(tmp_path, "../events") == []


def test_a_follower_sees_growth_cuts_and_replacement(tmp_path: Path) -> None:
    reader = SeriesReader(tmp_path, "t.p")
    assert len(reader.poll()[0]) == 0 and not reader.restarted
    writer = SeriesWriter(tmp_path)
    writer.declare("t.p")

    def grow(*steps: int, shift: float = 0.0) -> None:
        writer.append("t.p", steps, [step + shift for step in steps])
        writer.flush()

    grow(0, 1, 2, 3)
    assert reader.poll()[0].tolist() == [0, 1, 2, 3] and not reader.restarted
    grow(4)
    assert reader.poll()[0].tolist() == [4] and reader.poll()[0].tolist() == []
    writer.resume({"t.p": 2})
    assert reader.poll()[0].tolist() == [0, 1] and reader.restarted
    assert reader.poll()[0].tolist() == [] and not reader.restarted
    grow(2, 3)
    reader.poll()
    writer.resume({"t.p": 2})
    grow(2, 3, 4, 5, shift=0.5)  # cut and grown back between two polls
    steps, values = reader.poll()
    assert reader.restarted and values.tolist() == [0, 1, 2.5, 3.5, 4.5, 5.5]
    writer.resume({})
    assert reader.poll()[0].tolist() == [] and reader.restarted


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_an_empty_series(tmp_path: Path, make: Any) -> None:
    (tmp_path / "series").mkdir()
    make(tmp_path / "series" / "t.p.f64")
    assert rows(tmp_path, "t.p") == []


def test_a_follower_of_a_writing_process_never_sees_a_torn_row(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
import numpy as np
from ctr.engine.series import SeriesWriter
writer = SeriesWriter(Path(sys.argv[1]))
writer.declare("t.p")
for block in range(2000):
    steps = np.arange(block * 7, block * 7 + 7)
    writer.append("t.p", steps, steps * 0.5)
    writer.flush()
"""
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    reader, seen = SeriesReader(tmp_path, "t.p"), list[int]()
    deadline = time.monotonic() + 60
    while len(seen) < 14_000 and time.monotonic() < deadline:
        steps, numbers = reader.poll()
        assert np.array_equal(numbers, steps * 0.5) and not reader.restarted
        seen += steps.tolist()
    assert child.wait(10) == 0 and seen == list(range(14_000))
