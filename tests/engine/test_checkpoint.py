"""Checkpoints are complete or invisible, come back bit for bit, and no damage is taken for data."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ctr.engine.checkpoint import (
    CheckpointStore,
    digest,
    join_state,
    load_extra,
    load_tensors,
    save_tensors,
    split_state,
)
from ctr.engine.errors import CheckpointError

BASE = torch.arange(24, dtype=torch.float32).reshape(6, 4)


def odd_tensors() -> dict[str, Tensor]:
    """Return one of each layout and dtype that a run may hold."""
    return {
        "plain": BASE.clone(),
        "transposed": BASE.clone().t(),
        "column": BASE[:, 1],
        "part": BASE[1:3],
        "flat": BASE.view(-1),
        "expanded": torch.ones(1).expand(5),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "no_rows": torch.empty(3, 0, 2, dtype=torch.int64),
        "bool": torch.tensor([True, False, True]),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.tensor([255], dtype=torch.uint8),
        "bf16": torch.randn(3).bfloat16(),
        "f16": torch.randn(3).half(),
        "f64": torch.randn(3, dtype=torch.float64),
        "f8": torch.randn(4).to(torch.float8_e4m3fn),
        "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
        "not_finite": torch.tensor([math.nan, math.inf, -math.inf, -0.0]),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }


def same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and digest({"x": left}) == digest({"x": right})


def store(folder: Path, steps: int = 2, keep: int = 2) -> CheckpointStore:
    """Return a store that holds a checkpoint for each of the steps 1…`steps`."""
    made = CheckpointStore(folder, keep)
    for step in range(1, steps + 1):
        made.save(step, {"w": torch.full((3,), float(step)), "v": BASE}, {"loss": 1.5 * step, "asked": None})
    return made


# --- what goes in comes out


def test_every_layout_and_dtype_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = odd_tensors()
    CheckpointStore(tmp_path).save(3, tensors, {})
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None and loaded.tensors.keys() == tensors.keys()
    assert all(same(loaded.tensors[name], value) for name, value in tensors.items())
    assert all(value.is_contiguous() for value in loaded.tensors.values())


def test_loaded_tensors_are_one_another_s_strangers_and_writable(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).save(0, {"part": BASE[1:3], "flat": BASE.view(-1), "whole": BASE}, {})
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None
    loaded.tensors["flat"].fill_(-1)
    assert torch.equal(loaded.tensors["part"], BASE[1:3]) and torch.equal(loaded.tensors["whole"], BASE)


def test_tied_tensors_are_saved_once_and_joined_again(tmp_path: Path) -> None:
    big = torch.randn(1000)
    path = CheckpointStore(tmp_path).save(
        0, {"head.weight": big, "embed.weight": big.view(1000), "copy": big.clone()}, {}
    )
    assert 8000 < (path / "tensors.safetensors").stat().st_size < 8500
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None and loaded.tensors["head.weight"] is loaded.tensors["embed.weight"]
    assert loaded.tensors["copy"] is not loaded.tensors["head.weight"]
    assert all(torch.equal(value, big) for value in loaded.tensors.values())


def test_tensors_that_only_look_alike_are_not_tied(tmp_path: Path) -> None:
    square = torch.randn(4, 4)
    empty = torch.empty(0)
    CheckpointStore(tmp_path).save(0, {"a": square, "b": square.t(), "c": square[0], "d": empty, "e": empty}, {})
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None
    assert torch.equal(loaded.tensors["b"], square.t()) and torch.equal(loaded.tensors["c"], square[0])
    assert len({id(value) for value in loaded.tensors.values()}) == 5


def test_aliases_stay_one_tensor_on_another_device(tmp_path: Path) -> None:
    tied = torch.randn(3)
    CheckpointStore(tmp_path).save(0, {"a": tied, "b": tied}, {})
    loaded = CheckpointStore(tmp_path).newest(device="meta")
    assert loaded is not None and loaded.tensors["a"].is_meta and loaded.tensors["a"] is loaded.tensors["b"]


def test_the_record_keeps_types_and_floats_that_are_not_finite(tmp_path: Path) -> None:
    record = {
        "position": {"step": 3, "stage": "train"},
        "sums": [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2],
        "betas": (0.9, 0.999),
        "key": 2**64 - 1,
        "beyond": -(2**70),
        "$tensor": {"$float": "nan", "$$x": "$y"},
        "none": None,
        "flag": True,
        "numpy": np.float32(0.1),
        "empty": [{}, [], ()],
    }
    CheckpointStore(tmp_path).save(3, {}, record)
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None and loaded.step == 3
    assert repr(loaded.record) == repr({**record, "numpy": float(np.float32(0.1))})


def test_the_files_are_safetensors_and_json_and_the_manifest_tells_them(tmp_path: Path) -> None:
    path = CheckpointStore(tmp_path).save(7, {"w": BASE}, {"a": 1})
    assert path == tmp_path / "checkpoints" / "1-7"
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "record.json", "tensors.safetensors"]
    manifest = json.loads((path / "manifest.json").read_bytes())
    assert manifest["version"] == 1 and manifest["files"].keys() == {"tensors.safetensors", "record.json"}
    assert manifest["files"]["record.json"]["bytes"] == (path / "record.json").stat().st_size
    from safetensors.torch import load_file

    assert torch.equal(load_file(path / "tensors.safetensors")["w"], BASE)


@pytest.mark.parametrize(
    ("tensors", "record", "message"),
    [
        ({"w": torch.eye(2).to_sparse()}, {}, "tensor w: only dense tensors"),
        ({"w": torch.empty(2, device="meta")}, {}, "tensor w: only dense tensors with data"),
        ({"__metadata__": BASE}, {}, "this name is reserved"),
        ({"w": torch.zeros(2, dtype=torch.complex128)}, {}, "tensor w: torch.complex128 cannot be saved"),
        ({"w": 3}, {}, "tensor w: is a int, not a tensor"),
        ({}, {"a": {"w": BASE}}, "tensor a/w: a record holds no tensors"),
        ({}, {"a": {1: 2}}, r"state\.a: the key 1 is a int; write str\(key\)"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_leaves_nothing(
    tmp_path: Path, tensors: Any, record: Any, message: str
) -> None:
    store(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        CheckpointStore(tmp_path).save(9, tensors, record)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1-1", "2-2"]


# --- which one is loaded


def test_numbers_count_up_and_the_newest_are_kept(tmp_path: Path) -> None:
    made = store(tmp_path, steps=12, keep=3)
    assert sorted(path.name for path in made.folder.iterdir()) == ["10-10", "11-11", "12-12"]
    made.save(5, {}, {})  # a resume went back to an earlier step
    loaded = made.newest()
    assert loaded is not None and (loaded.path.name, loaded.step) == ("13-5", 5)
    with pytest.raises(CheckpointError, match="at least 1"):
        CheckpointStore(tmp_path, keep=0)


def test_no_checkpoint_is_none_and_strangers_in_the_folder_are_none_either(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).newest() is None
    folder = tmp_path / "checkpoints"
    for name in (".tmp-3", "notes", "1", "-1-2", "01-2", "1-2-3", "1-x", f"{10**30}-1"):
        (folder / name).mkdir(parents=True)
    (folder / "4-4").write_text("a file")
    assert CheckpointStore(tmp_path).newest() is None


def damaged(folder: Path, act: Any) -> tuple[int, list[tuple[str, str]]]:
    """Return step and skipped of what is loaded after `act` was done to the newest of two checkpoints."""
    store(folder)
    act(folder / "checkpoints" / "2-2")
    loaded = CheckpointStore(folder).newest()
    assert loaded is not None and loaded.tensors["w"].tolist() == [float(loaded.step)] * 3
    return loaded.step, loaded.skipped


DAMAGE = [
    (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
    (lambda p: (p / "record.json").unlink(), "record.json is missing"),
    (lambda p: (p / "manifest.json").write_text("{"), "manifest.json is not JSON"),
    (lambda p: (p / "manifest.json").write_text("[1]"), "manifest.json has version [1]; this ctr reads 1"),
    (lambda p: (p / "manifest.json").write_text('{"version": 2}'), "manifest.json has version 2; this ctr reads 1"),
    (lambda p: (p / "manifest.json").write_text('{"version": 1}'), "manifest.json lists no files"),
    (lambda p: (p / "manifest.json").write_text('{"version": 1, "files": {}}'), "does not list tensors.safetensors"),
    (lambda p: (p / "record.json").write_text(" " * 10), "record.json holds 10 bytes, not the"),
    (lambda p: shutil.rmtree(p) or p.mkdir(), "manifest.json is missing"),
    (lambda p: ((p / "record.json").unlink(), os.mkfifo(p / "record.json")), "is not a regular file"),
    (lambda p: ((p / "record.json").unlink(), (p / "record.json").mkdir()), "is not a regular file"),
]


@pytest.mark.parametrize(("act", "reason"), DAMAGE, ids=[reason for _, reason in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, act: Any, reason: str) -> None:
    step, skipped = damaged(tmp_path, act)
    ((name, why),) = skipped
    assert step == 1 and name == "2-2" and reason in why


FILES = ["manifest.json", "record.json", "tensors.safetensors"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_detected(tmp_path: Path, name: str) -> None:
    made = store(tmp_path)
    path = made.folder / "2-2" / name
    whole = path.read_bytes()
    for size in range(len(whole) - (name == "manifest.json")):  # the manifest's last byte is a newline
        path.write_bytes(whole[:size])
        loaded = CheckpointStore(tmp_path).newest()
        assert loaded is not None and loaded.step == 1 and [n for n, _ in loaded.skipped] == ["2-2"]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_detected_or_changes_nothing(tmp_path: Path, name: str) -> None:
    made = store(tmp_path)
    path = made.folder / "2-2" / name
    whole, draw = path.read_bytes(), random.Random(7)
    for at in range(len(whole)):
        bad = bytearray(whole)
        bad[at] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        loaded = CheckpointStore(tmp_path).newest()
        assert loaded is not None
        if name != "manifest.json":
            assert loaded.step == 1
        assert loaded.tensors["w"].tolist() == [float(loaded.step)] * 3 and loaded.record["loss"] == 1.5 * loaded.step


def test_where_none_verifies_each_is_named_with_its_reason(tmp_path: Path) -> None:
    made = store(tmp_path)
    (made.folder / "1-1" / "manifest.json").unlink()
    (made.folder / "2-2" / "record.json").write_bytes(b"")
    with pytest.raises(CheckpointError) as caught:
        CheckpointStore(tmp_path).newest()
    assert "2-2: record.json holds 0 bytes" in str(caught.value) and "1-1: manifest.json is missing" in str(
        caught.value
    )


def test_a_checkpoint_known_to_be_broken_is_not_kept_in_place_of_a_sound_one(tmp_path: Path) -> None:
    store(tmp_path)
    (tmp_path / "checkpoints" / "2-2" / "record.json").write_bytes(b"")
    made = CheckpointStore(tmp_path, keep=2)
    made.newest()
    made.save(3, {}, {})
    assert sorted(path.name for path in made.folder.iterdir()) == ["1-1", "3-3"]


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_any_place_is_never_opened(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(mark))
    store(tmp_path)
    (tmp_path / "checkpoints" / "2-2" / name).write_bytes(bomb)
    loaded = CheckpointStore(tmp_path).newest()
    assert loaded is not None and loaded.step == 1
    (tmp_path / "tensors.safetensors").write_bytes(bomb)
    with pytest.raises(CheckpointError):
        load_tensors(tmp_path)
    assert not mark.exists()
    pickle.loads(bomb)  # the bomb is live
    assert mark.exists()


# --- snapshots and digests


def test_a_snapshot_comes_back_with_its_digest_and_its_extra(tmp_path: Path) -> None:
    tensors = odd_tensors()
    told = save_tensors(tmp_path / "snapshots" / "selected", tensors, {"epoch": 3})
    back = load_tensors(tmp_path / "snapshots" / "selected")
    assert told == digest(tensors) == digest(back) and back.keys() == tensors.keys()
    assert load_extra(tmp_path / "snapshots" / "selected") == {"epoch": 3}


def test_a_snapshot_replaces_what_stood_there(tmp_path: Path) -> None:
    save_tensors(tmp_path / "s", {"old": BASE})
    save_tensors(tmp_path / "s", {"new": BASE})
    assert load_tensors(tmp_path / "s").keys() == {"new"} and load_extra(tmp_path / "s") == {}
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["tensors.safetensors"]


def test_a_digest_tells_names_dtypes_shapes_and_bits_and_nothing_else() -> None:
    base = {"a": torch.ones(4), "b": torch.zeros(2)}
    told = digest(base)
    assert told == digest(dict(reversed(base.items())))
    assert told == digest({"a": torch.ones(8)[::2], "b": torch.nn.Parameter(torch.zeros(2))})
    others = [
        {"a": torch.ones(4), "c": torch.zeros(2)},
        {"a": torch.ones(2, 2), "b": torch.zeros(2)},
        {"a": torch.ones(4, dtype=torch.float64), "b": torch.zeros(2)},
        {"a": torch.ones(4), "b": torch.tensor([0.0, -0.0])},
        {"a": torch.ones(4)},
    ]
    assert len({told, *map(digest, others)}) == 6
    # written down once: a digest in a log of last year is still the digest of the same tensors
    assert told == "50bf7dae98d886df0b7bdbcc3e1d71f27a3e484db4afcd8406c70dee9bf7dbfb"


@pytest.mark.parametrize("cut", ["truncate", "flip"])
def test_a_damaged_snapshot_is_an_error_at_every_byte(tmp_path: Path, cut: str) -> None:
    save_tensors(tmp_path, {"w": torch.tensor([1.0, 2.0])})
    path = tmp_path / "tensors.safetensors"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] if cut == "truncate" else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            loaded = load_tensors(tmp_path)
        except CheckpointError as error:
            assert str(path) in str(error)
        else:  # a flip in the padding of the header, or in a part of it that says nothing
            assert cut == "flip" and loaded.keys() == {"w"} and loaded["w"].tolist() == [1.0, 2.0]


def test_a_missing_snapshot_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone/tensors.safetensors: cannot be read: No such file"):
        load_tensors(tmp_path / "gone")


# --- trees


def equal(left: Any, right: Any) -> bool:
    """Compare trees by type and bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and same(left, right)
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return repr(left) == repr(right) if isinstance(left, float) else bool(left == right)


keys = st.text(max_size=6) | st.sampled_from(["$tensor", "$float", "$$tensor", "$", "a/b", "__metadata__"])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=10)
    | st.builds(torch.tensor, st.floats(width=32))
    | st.builds(torch.zeros, st.integers(0, 3))
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_any_tree_comes_back_from_json_and_tensors(tree: Any) -> None:
    encoded, tensors = split_state(tree)
    assert equal(join_state(json.loads(json.dumps(encoded, allow_nan=False)), tensors), tree)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(keys, trees, max_size=3))
def test_any_tree_survives_a_checkpoint(tree: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoded, tensors = split_state(tree)
        named = {f"state/{name}": value for name, value in tensors.items()}
        CheckpointStore(Path(folder)).save(0, named, {"state": encoded})
        loaded = CheckpointStore(Path(folder)).newest()
    assert loaded is not None
    held = {name.removeprefix("state/"): value for name, value in loaded.tensors.items()}
    assert equal(join_state(loaded.record["state"], held), tree)


def test_paths_that_read_alike_give_two_tensors() -> None:
    encoded, tensors = split_state({"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, "a/b#2": torch.ones(2)})
    assert len(tensors) == 3
    assert join_state(encoded, tensors)["a"]["b"].tolist() == [1.0]


def loop() -> Any:
    tree: dict[str, Any] = {}
    tree["again"] = tree
    return tree


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {1: 2}}, r"state\.a: the key 1 is a int; write str\(key\)"),
        ({"a": [{"b": {1, 2}}]}, r"state\.a\.0\.b: a set cannot be saved; give a mapping"),
        ({"a": np.zeros(3)}, r"state\.a: a ndarray cannot be saved"),
        ({"a": b"x"}, "a bytes cannot be saved"),
        ({"a": "\ud800"}, "is not valid Unicode"),
        ({"\ud800": 1}, "is not valid Unicode"),
        ({"a": 1j}, "a complex cannot"),
        (loop(), "nested deeper than 100 levels, or within itself"),
    ],
)
def test_what_a_tree_cannot_hold_is_refused_with_its_place(tree: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        split_state(tree)


@pytest.mark.parametrize(
    "tree", [{"$tensor": "gone"}, {"$tensor": ["x"]}, {"$int": "z"}, {"$float": None}, {"$tuple": 3}, {"$new": 1}]
)
def test_a_mark_that_leads_nowhere_is_refused(tree: Any) -> None:
    with pytest.raises(CheckpointError, match="state: "):
        join_state({"a": [tree]}, {})
