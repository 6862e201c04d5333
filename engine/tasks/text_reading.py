"""Text and JSONL files as rows, every line checked; without torch."""

from __future__ import annotations

import os
import re
import stat
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from ctr.engine.errors import DataError, guess
from ctr.engine.text import printable

from .text_config import JsonlFile, TextFile

LONGEST_LINE = 8 << 20
MOST_PROBLEMS = 20
ROLES = ("system", "user", "assistant")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class TextRow:
    """One row: a text, or the messages of a chat. `id` is its place in the source, `group` what it is about."""

    id: str
    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class TextSource:
    """All rows of a source, in its order; `place` stands before `:id` in errors, `given` are splits it came with."""

    place: str
    rows: tuple[TextRow, ...]
    given: Mapping[str, list[int]] = field(default_factory=dict)


class Problems:
    """What is wrong with a source, told at once; nothing is looked at beyond the twentieth problem."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._found: list[str] = []

    def add(self, row: str | int, text: str) -> None:
        self._found.append(f"{self.place}:{row}: {text}")
        if len(self._found) == MOST_PROBLEMS:
            self._found.append(f"{self.place}: these are {MOST_PROBLEMS} problems; what comes after was not looked at")
            self.settle()

    def settle(self) -> None:
        """Raise what was found, if anything was."""
        if self._found:
            raise DataError("\n".join(self._found))


def read_text(data: TextFile) -> TextSource:
    """Read a text file: a row per line that is not blank, without the space around it."""
    problems = Problems(printable(data.path))
    named = _group_finder(data.group_prefix)
    lines = islice(_lines(data.path, problems), data.max_rows)
    rows = tuple(TextRow(str(number), line, group=named(line)) for number, line in lines)
    return _source(data.path, rows, problems)


def read_jsonl(data: JsonlFile) -> TextSource:
    """Read a JSONL file: a row per line that is not blank."""
    problems = Problems(printable(data.path))
    made = (_json_row(number, line, problems) for number, line in _lines(data.path, problems))
    rows = tuple(islice((row for row in made if row is not None), data.max_rows))
    return _source(data.path, rows, problems)


def open_file(path: str) -> BufferedReader:
    """Open a regular file for reading; raises `DataError` with what stands at the path instead."""
    shown = printable(path)
    try:
        # O_NONBLOCK: opening a pipe that somebody put there must not wait for its other end
        descriptor = os.open(Path(path).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
    except FileNotFoundError as error:
        near = printable(guess(Path(path).name, _beside(path)))
        text = f"{shown}: no such file, seen from {printable(os.getcwd())}.{near}"
        raise DataError(f"{text} A data set of the hub is named by `source: hub`") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{shown}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device"
    raise DataError(f"{shown}: is {what}; data.path must be one file")


def _beside(path: str) -> list[str]:
    try:
        return os.listdir(Path(path).parent)
    except OSError:
        return []


def _source(path: str, rows: tuple[TextRow, ...], problems: Problems) -> TextSource:
    problems.settle()
    if not rows:
        raise DataError(f"{printable(path)}: has no rows; every line of it, if there is any, is blank")
    return TextSource(printable(path), rows)


def _lines(path: str, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank; a line ends with LF or CRLF alone."""
    with open_file(path) as file:
        number = 0
        while raw := _next(file, path):
            number += 1
            if number == 1:
                raw = raw.removeprefix(_BOM)
            if len(raw) > LONGEST_LINE:
                text = f"is longer than {LONGEST_LINE >> 20} MB; is this a text file? Break long texts into lines"
                problems.add(number, text)
                problems.settle()  # the rest of the line is no line
            if (line := _decoded(number, raw, problems)) is not None:
                yield number, line


def _next(file: BufferedReader, path: str) -> bytes:
    try:
        return file.readline(LONGEST_LINE + 1)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror or error}") from error


def _decoded(number: int, raw: bytes, problems: Problems) -> str | None:
    try:
        line = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        text = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02x}, which is not UTF-8"
        problems.add(number, f"{text}; save the file as UTF-8")
        return None
    if "\0" in line:
        problems.add(number, f"holds a NUL at character {line.index(chr(0)) + 1}; is this a text file? Remove it")
        return None
    return line or None


def _group_finder(prefix: str | None) -> Any:
    if prefix is None:
        return lambda line: None
    marks = re.escape(string.punctuation)
    # a word that begins so, whatever punctuation is around it: `(Entity-0001's)` is of group Entity-0001
    word = re.compile(rf"(?:^|(?<=[\s{marks}])){re.escape(prefix)}\w(?:[\w-]*\w)?")

    def find(line: str) -> str | None:
        found = word.search(line)
        return found.group() if found else None

    return find


def _json_row(number: int, line: str, problems: Problems) -> TextRow | None:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        text = f"is not JSON: {error.msg} (column {error.colno})"
        problems.add(number, f'{text}; a row is {{"text": "…"}} or {{"messages": […]}}, on one line')
        return None
    if problem := row_problem(value):
        problems.add(number, problem)
        return None
    return made_row(str(number), value.get("text"), value.get("messages"), value.get("group"))


def made_row(name: str, text: str | None, messages: Any, group: str | int | None) -> TextRow:
    """Build a row of values that `row_problem` has nothing against; of a message only role and content are kept."""
    kept = tuple({"role": one["role"], "content": one["content"]} for one in messages or ())
    return TextRow(name, text, kept, None if group is None else str(group))


def row_problem(value: Any) -> str | None:
    """Say what is wrong with a row, or None."""
    if not isinstance(value, dict):
        return f"is {_kind(value)}; a row is an object with the key text or the key messages"
    text, messages, group = (value.get(key) for key in ("text", "messages", "group"))
    if text is None and messages is None:
        keys = ", ".join(printable(key, 40) for key in list(value)[:8]) or "none"
        near = next((hint for key in value if (hint := guess(key, ("text", "messages")))), "")
        return f"has neither text nor messages; its keys are {keys}.{near}"
    if text is not None and messages is not None:
        return "has both text and messages; remove one"
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int) or not str(group).strip()):
        return f"group is {_kind(group)}; it must be a text or a whole number, or be left out"
    return text_problem(text) if text is not None else messages_problem(messages)


def text_problem(text: Any) -> str | None:
    """Say what is wrong with a row's text, or None."""
    if not isinstance(text, str):
        return f"text is {_kind(text)}; it must be a text"
    if not text.strip():
        return "text is blank; remove the row"
    return f"text holds a NUL at character {text.index(chr(0)) + 1}; remove it" if "\0" in text else None


def messages_problem(messages: Any) -> str | None:
    """Say what is wrong with the messages of a row, or None; whether roles alternate is for the chat template."""
    if not isinstance(messages, list):
        return f"messages is {_kind(messages)}; it must be a list of {{role, content}}"
    if not messages:
        return "messages is empty; give at least one of the user and one of the assistant, or remove the row"
    for index, one in enumerate(messages):
        if problem := _message_problem(one, index):
            return f"messages[{index}]{problem}"
    if messages[-1]["role"] != "assistant":
        return f"messages ends with {messages[-1]['role']}; the last one must be the assistant's, which is trained on"
    return None


def _message_problem(one: Any, index: int) -> str | None:
    if not isinstance(one, dict):
        return f" is {_kind(one)}; it must be an object with role and content"
    lacking = [key for key in ("role", "content") if one.get(key) is None]
    if lacking:
        return f" has no {' and no '.join(lacking)}"
    role, content = one["role"], one["content"]
    if role not in ROLES:
        shown = printable(role, 40)
        return f".role is {shown}; roles are {', '.join(ROLES)}.{guess(shown, ROLES)}"
    if role == "system" and index:
        return ".role is system; a system message can only be the first"
    if not isinstance(content, str):
        return f".content is {_kind(content)}; it must be a text"
    return ".content holds a NUL; remove it" if "\0" in content else None


def _kind(value: Any) -> str:
    names = {str: "the text", bool: "", type(None): "", int: "the number", float: "the number", list: "a list"}
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    shown = orjson.dumps(value).decode() if isinstance(value, str | int | float | None) else type(value).__name__
    return f"{names.get(type(value), 'a')} {printable(shown, 60)}".strip()
