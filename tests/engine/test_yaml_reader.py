"""The reader gives YAML 1.2 as data with the place of every value; what the writer writes it reads back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.engine.errors import SpecError
from ctr.engine.nodes import Node
from ctr.engine.yaml_reader import hidden, read, read_text
from ctr.engine.yaml_writer import write_text

SCALARS = [
    ("1e-4", 1e-4),
    ("5e-4", 5e-4),
    ("1E5", 1e5),
    ("+.5", 0.5),
    ("12.", 12.0),
    ("-0", 0),
    ("007", 7),
    ("0o17", 15),
    ("0x1F", 31),
    ("0b11", "0b11"),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("no", "no"),
    ("yes", "yes"),
    ("on", "on"),
    ("True", True),
    ("FALSE", False),
    ("tRUE", "tRUE"),
    ("null", None),
    ("~", None),
    ("", None),
    ("Null", None),
    ("nULL", "nULL"),
    (".inf", math.inf),
    ("-.INF", -math.inf),
    ("inf", "inf"),
    ("2026-10-02", "2026-10-02"),
    ("'1'", "1"),
    ('"true"', "true"),
    ("'<<'", "<<"),
    ("1.2.3", "1.2.3"),
    ("e5", "e5"),
    (".", "."),
    ('"a\\tb\\n"', "a\tb\n"),
    ("|\n  two\n  lines", "two\nlines\n"),
    (">\n  two\n  lines", "two lines\n"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[row[0] for row in SCALARS])
def test_scalars_follow_the_core_schema(text: str, value: Any) -> None:
    found = read_text(f"a: {text}\n", "x").data["a"]
    assert found == value and type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(read_text("a: .nan", "x").data["a"])


def places(node: Node, path: str = "") -> dict[str, tuple[int, int]]:
    """Return line and column of every value by its path."""
    found = {path: (node.place.line, node.place.column)}
    for key, child in node.mapping.items():
        assert child.path == (*node.path, key)
        found |= places(child, f"{path}/{key}")
    for index, child in enumerate(node.items):
        assert child.path == (*node.path, index)
        found |= places(child, f"{path}/{index}")
    return found


TEXT = "# c\na: {b: 1, 'c d': [x, {e: 2}]}\nf:\n  - 1\n  - g: h\nü: é\nlast:\n"
PLACES = {
    "": (2, 1), "/a": (2, 4), "/a/b": (2, 8), "/a/c d": (2, 18), "/a/c d/0": (2, 19), "/a/c d/1": (2, 22),
    "/a/c d/1/e": (2, 26), "/f": (4, 3), "/f/0": (4, 5), "/f/1": (5, 5), "/f/1/g": (5, 8), "/ü": (6, 4),
    "/last": (7, 1),
}  # fmt: skip


@pytest.mark.parametrize("variant", ["unix", "windows", "old mac", "byte order mark", "document start"])
def test_every_value_has_its_place(tmp_path: Path, variant: str) -> None:
    text = {
        "windows": TEXT.replace("\n", "\r\n"),
        "old mac": TEXT.replace("\n", "\r"),
        "byte order mark": "\ufeff" + TEXT,
        "document start": TEXT.replace("# c\n", "---\n") + "...\n",
    }.get(variant, TEXT)
    (tmp_path / "x.yaml").write_bytes(text.encode())
    node = read(tmp_path / "x.yaml")
    assert node.data == {"a": {"b": 1, "c d": ["x", {"e": 2}]}, "f": [1, {"g": "h"}], "ü": "é", "last": None}
    assert places(node) == PLACES
    assert node.mapping["a"].key is not None and node.mapping["a"].key.column == 1
    assert node.mapping["a"].mapping["c d"].key is not None and node.mapping["a"].mapping["c d"].key.column == 11


def test_all_refusals_of_a_file_are_told_at_once() -> None:
    text = "a: &x 1\nb: *x\nc: !!str 2\n<<: {}\n1: 2\nd: 1\nd: 2\n? [e]\n: 3\n"
    with pytest.raises(SpecError) as found:
        read_text(text, "x")
    assert [(p.line, p.column) for p in found.value.problems] == [
        (1, 4), (2, 4), (3, 4), (4, 1), (5, 1), (7, 1), (8, 3)
    ]  # fmt: skip


def test_what_follows_a_refusal_that_ends_reading_is_not_looked_at() -> None:
    with pytest.raises(SpecError) as found:
        read_text("a: 1\n---\nb: &x 1\n" + "[" * 50, "x")
    assert [(p.line, p.column) for p in found.value.problems] == [(2, 1)]


@pytest.mark.parametrize("character", ["\u200b", "\u202e", "\u2028", "\x85", "\u2066", "\xad", "\u0007"])
def test_hidden_characters_are_refused_where_they_stand(character: str) -> None:
    for text, place in [(f"a: x{character}\n", (1, 5)), (f"# {character}\na: 1\n", (1, 3))]:
        with pytest.raises(SpecError) as found:
            read_text(text, "x")
        assert [(p.line, p.column) for p in found.value.problems] == [place]


def test_scripts_that_need_joiners_are_read() -> None:
    text = "a: می\u200cخواهم 👩\u200d🔬 é e\u0301"
    assert read_text(text, "x").data == {"a": text[3:]}


visible = st.text(st.characters(exclude_categories=("Cs",)), max_size=20).filter(lambda t: not any(map(hidden, t)))
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | visible
awkward = st.sampled_from(
    ["", " ", "null", "1e5", "- a", "a: b", "#", "'", '"', "\\", "a\nb", "a\tb", "{", "yes", "<<", "~"]
)
keys = (visible | awkward).filter(lambda key: not any(map(hidden, key)))
trees = st.recursive(
    scalars | awkward, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4)
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(keys, trees, min_size=1, max_size=5))
def test_what_is_written_is_read_back(data: dict[str, Any]) -> None:
    found = read_text(write_text(data), "x").data
    assert found == data and repr(found) == repr(data)
