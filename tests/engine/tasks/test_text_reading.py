"""Text and JSONL files: what becomes a row, and what is refused, by line, value and way out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from ctr.engine.errors import DataError
from ctr.engine.tasks import text_reading
from ctr.engine.tasks.text_config import TextData
from ctr.engine.tasks.text_sources import TextSource, fingerprint, read

STT = Path(__file__).parents[4] / "shared" / "data" / "stt"
HI, YES = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}


def settings(source: str, **more: Any) -> Any:
    return TypeAdapter(TextData).validate_python({"source": source, **more})


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    """Return a function (source, content, settings) → what is read from a file of that content."""

    def rows(source: str, content: bytes | str | list[Any], **more: Any) -> TextSource:
        path = tmp_path / ("rows." + source)
        if isinstance(content, list):
            content = "".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(settings(source, path=str(path), **more))

    return rows


def test_a_text_file_is_a_row_per_line_that_is_not_blank(rows: Any) -> None:
    content = "\ufeffone\r\n\n  two \x0b three\u2028four  \n \t\nfive".encode()
    source = rows("text", content)
    assert [(row.id, row.text) for row in source.rows] == [
        ("1", "one"),
        ("3", "two \x0b three\u2028four"),
        ("5", "five"),
    ]
    assert [row.id for row in rows("text", b"a\nb\nc\nd\n", max_rows=3).rows] == ["1", "2", "3"]


def test_the_group_of_a_line_is_its_first_word_with_the_prefix(rows: Any) -> None:
    lines = [
        "(Entity-0001's) hat",
        "of Entity-2: x, Entity-3",
        "Entity-04.",
        "no-Entity",
        "NonEntity-5",
        "Entity-",
        "-Entity-7!",
    ]
    source = rows("text", "\n".join(lines), group_prefix="Entity-")
    assert [row.group for row in source.rows] == [
        "Entity-0001", "Entity-2", "Entity-04", None, None, None, "Entity-7",
    ]  # fmt: skip


def test_jsonl_rows_are_texts_or_messages(rows: Any) -> None:
    chat = [{"role": "system", "content": "Be."}, {**HI, "name": "x"}, YES]
    source = rows("jsonl", [{"text": "a ", "group": "g", "more": 1}, "", {"messages": chat, "text": None, "group": 7}])
    first, second = source.rows
    assert (first.id, first.text, first.group, first.messages) == ("1", "a ", "g", ())
    assert (second.id, second.text, second.group) == ("3", None, "7")
    assert second.messages == (chat[0], HI, YES)  # of a message only role and content are kept


BAD_TEXT = {
    "empty": (b"", r"rows\.text: has no rows"),
    "blank": (b"\n \n", r"has no rows; every line of it, if there is any, is blank"),
    "bytes": (
        b"fine\nab\xff\n",
        r"rows\.text:2: byte 3 of the line is 0xff, which is not UTF-8; save the file as UTF-8",
    ),
    "utf-16": ("a\nb".encode("utf-16"), r":1: byte 1 of the line is 0xff"),
    "nul": (b"a\nb\0c\n", r":2: holds a NUL at character 2; is this a text file\?"),
}


@pytest.mark.parametrize("case", BAD_TEXT)
def test_text_that_is_none_is_refused(rows: Any, case: str) -> None:
    content, message = BAD_TEXT[case]
    with pytest.raises(DataError, match=message):
        rows("text", content)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ('{"text": "a"', r"is not JSON: .*\(column 13\); a row is \{\"text\""),
    "surrogate": ('{"text": "\\ud800"}', r"is not JSON: "),
    "array": ([1], r"is a list; a row is an object with the key text or the key messages"),
    "word": ('"text"', r'is the text "text"; a row is an object'),
    "neither": ({"txt": "a"}, r"has neither text nor messages; its keys are txt\. Did you mean text\?"),
    "nothing": ({}, r"has neither text nor messages; its keys are none"),
    "both": ({"text": "a", "messages": [HI, YES]}, r"has both text and messages; remove one"),
    "number": ({"text": 3}, r"text is the number 3; it must be a text"),
    "blank": ({"text": " \n"}, r"text is blank; remove the row"),
    "nul": ({"text": "a\0"}, r"text holds a NUL at character 2"),
    "group": ({"text": "a", "group": [3]}, r"group is a list; it must be a text or a whole number"),
    "blank group": ({"text": "a", "group": " "}, r"group is the text \" \""),
    "messages": ({"messages": {"role": "user"}}, r"messages is an object; it must be a list"),
    "empty": ({"messages": []}, r"messages is empty; give at least one of the user and one of the assistant"),
    "message": ({"messages": ["Hi"]}, r"messages\[0\] is the text \"Hi\"; it must be an object"),
    "content": ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content"),
    "parts": ({"messages": [{"role": "user", "content": []}]}, r"messages\[0\]\.content is a list; it must be a text"),
    "role": ({"messages": [{"role": "asistant", "content": ""}]}, r"messages\[0\]\.role is asistant; .*mean assist"),
    "system": ({"messages": [HI, {"role": "system", "content": "x"}]}, r"messages\[1\]\.role is system; .*be the fir"),
    "last": ({"messages": [HI, YES, HI]}, r"messages ends with user; the last one must be the assistant's"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_told_by_line_value_and_way_out(rows: Any, case: str) -> None:
    row, message = BAD_ROWS[case]
    with pytest.raises(DataError, match=r"rows\.jsonl:3: " + message) as raised:
        rows("jsonl", [{"text": "good"}, "", row])
    assert len(str(raised.value).splitlines()) == 1


def test_problems_are_told_together_up_to_twenty(rows: Any) -> None:
    with pytest.raises(DataError) as raised:
        rows("jsonl", [{"text": "good"}, "[", {"text": ""}, b"\xff".decode("latin-1"), {}])
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == ["2", "3", "4", "5"]
    with pytest.raises(DataError, match="these are 20 problems; what comes after was not looked at") as raised:
        rows("jsonl", ["["] * 1000)
    assert len(str(raised.value).splitlines()) == 21


def test_a_problem_before_the_last_row_wanted_is_told(rows: Any) -> None:
    for source in ("text", "jsonl"):
        good = "x" if source == "text" else '{"text": "x"}'
        with pytest.raises(DataError, match=":1: "):
            rows(source, b"\xff\n" + f"{good}\n".encode() * 5, max_rows=3)
        assert len(rows(source, f"{good}\n".encode() * 3 + b"\xff\n", max_rows=3).rows) == 3


def test_a_line_of_many_megabytes_is_refused_without_reading_it(rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_reading, "LONGEST_LINE", 1 << 20)
    assert len(rows("text", b"x" * ((1 << 20) - 1) + b"\n").rows[0].text) == (1 << 20) - 1
    with pytest.raises(DataError, match=r":2: is longer than 1 MB; is this a text file\? Break long texts"):
        rows("text", b"a\n" + b"x" * ((1 << 20) + 1))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a\n")
    os.mkfifo(tmp_path / "pipe")
    cases = {
        "trains.txt": r"trains\.txt: no such file, seen from .*Did you mean train\.txt\? A data set of the hub is",
        ".": r": is a folder; data\.path must be one file",
        "pipe": r"pipe: is a pipe, a socket or a device",
        "a\0b": r"a\\x00b: cannot be read: embedded null byte",
        "train.txt/x": r"cannot be read: Not a directory",
    }
    for name, message in cases.items():
        for source in ("text", "jsonl"):
            for call in (read, fingerprint):
                with pytest.raises(DataError, match=message):
                    call(settings(source, path=str(tmp_path / name)))


def test_a_fingerprint_changes_with_the_file_and_with_the_facts(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("abc")
    data = settings("text", path=str(path))
    assert fingerprint(data) == {
        "data": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    }  # of FIPS 180
    path.write_text("abd")
    assert fingerprint(data) != {"data": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    one, two = (fingerprint(settings("generated", family="conflict2", part="a", seed=seed)) for seed in (0, 1))
    assert one != two and one == fingerprint(settings("generated", family="conflict2", part="a", split_seed=9))


BAD_SETTINGS = {
    "source": ({"source": "csv"}, "does not match any of the expected tags: 'text', 'jsonl', 'hub', 'generated'"),
    "fractions": ({"source": "text", "path": "x", "val_fraction": 0.9}, "fractions add up to 1; they must leave"),
    "part": ({"source": "generated", "family": "conflict", "part": "c"}, "conflict has no part 'c'; it has a, b"),
    "hub name": ({"source": "hub", "name": "data/train/x.jsonl"}, "should match pattern"),
    "hub path": ({"source": "hub", "name": "../x"}, "should match pattern"),
    "faithful hub": ({"source": "hub", "name": "a/b", "split_by": "faithful", "test_split": "v"}, "draws its own"),
    "group key": ({"source": "jsonl", "path": "x", "group_prefix": "E"}, "Extra inputs"),
    "no path": ({"source": "text", "path": ""}, "at least 1 character"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_wrong_are_refused(case: str) -> None:
    given, message = BAD_SETTINGS[case]
    with pytest.raises(ValidationError, match=message) as raised:
        TypeAdapter(TextData).validate_python(given)
    assert raised.value.error_count() == 1


@pytest.mark.skipif(not STT.is_dir(), reason=f"the source's files are not at {STT}")
def test_the_sources_files_give_the_rows_that_the_source_reads() -> None:
    paths = sorted(STT.glob("*.txt"))
    assert len(paths) == 13
    for path in paths:
        expected = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        assert [row.text for row in read(settings("text", path=str(path))).rows] == expected, path.name


def test_a_fingerprint_of_generated_rows_stays() -> None:  # runs are found again by it
    one = fingerprint(settings("generated", family="accretion", part="a"))["data"]
    assert one.startswith("df0414f0")
