"""Read YAML 1.2 as data with positions, and refuse everything that is more than data.

The tree is built from ruamel.yaml's event stream in one pass: nothing recursive runs, no composer expands an alias, no
constructor is ever reached, and a file is refused at the event that is wrong, before what follows it is looked at.
Scalars are resolved here by the core schema (`1e-4` is a number, `no` a string). The limits keep a hostile file, which
may be as large as a spec may be, under 100 ms.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from .errors import Problem, SpecError
from .nodes import Node, Place, Scalar, Where, path_text, shown
from .text import printable

MAX_BYTES = 256 * 1024
MAX_LINES = 10_000
MAX_LINE = 10_000
MAX_WORDS = 20_000
MAX_VALUES = 3_000
MAX_DEPTH = 32
MAX_KEY = 256
MAX_PROBLEMS = 100

_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_REFUSED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
_JOINERS = "\u200c\u200d"


def read(path: Path) -> Node:
    """Return the mapping that the file holds; raises `SpecError` with every problem found."""
    name = printable(path)
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SpecError([Problem(name, 0, 0, "", "is not a regular file")])
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SpecError([Problem(name, 0, 0, "", f"cannot be read: {printable(reason)}")]) from None
    if len(data) > MAX_BYTES:
        raise SpecError([Problem(name, 0, 0, "", f"is larger than {MAX_BYTES // 1024} kB, the most a spec may be")])
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise SpecError([Problem(name, line, column, "", what)]) from None
    node = read_text(text, name)
    if not isinstance(node.value, dict):
        raise SpecError([node.problem(f"must be a mapping of settings, given {shown(node.data)}")])
    return node


def read_text(text: str, name: str) -> Node:
    """Return the one document in `text`; problems name it `name`."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    problems = list(_text_problems(text, name))
    if problems:
        raise SpecError(problems[:MAX_PROBLEMS])
    builder = _Builder(name)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            if not builder.take(event):
                break
    except MarkedYAMLError as error:
        builder.syntax(error)
    except YAMLError as error:
        builder.add(f"is not YAML: {printable(error, 200)}")
    except ValueError:  # ruamel hands an escape beyond the last code point to chr()
        builder.add("an escape in a quoted text names no character")
    if builder.problems:
        raise SpecError(builder.problems)
    if builder.root is None:
        raise SpecError([Problem(name, 0, 0, "", "is empty")])
    return builder.root


def resolve(text: str) -> Scalar:
    """Return the value of a plain scalar by YAML 1.2's core schema."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.match(text):
        return int(text) if len(text) <= 400 else 1 << 1025
    if _BASED.match(text):
        return int(text[2:], 8 if text[1] == "o" else 16)
    return float(text) if _FLOAT.match(text) else text


def hidden(character: str) -> bool:
    """Say whether a character cannot be seen and may drive a terminal or reorder text: controls, marks of direction."""
    return unicodedata.category(character) in _REFUSED and character not in _JOINERS


def _text_problems(text: str, name: str) -> Iterator[Problem]:
    """Find what can be refused before parsing: too much of anything, characters nobody can see, directives."""
    lines = text.split("\n")
    if len(lines) > MAX_LINES:
        yield Problem(name, MAX_LINES + 1, 1, "", f"has {len(lines)} lines; a spec may have {MAX_LINES}")
        return
    if (words := len(text.split())) > MAX_WORDS:
        yield Problem(name, 0, 0, "", f"has {words} words; a spec may have {MAX_WORDS}")
        return
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE:
            yield Problem(
                name, number, MAX_LINE + 1, "", f"is a line of {len(line)} characters; {MAX_LINE} are allowed"
            )
        elif _surplus(line) > 2 * MAX_DEPTH:  # ruamel's scanner looks ahead along a line before the first event
            yield Problem(name, number, 1, "", f"is nested deeper than {MAX_DEPTH} levels")
        elif not line.isascii() or not line.isprintable():
            found = next(((column, c) for column, c in enumerate(line, 1) if hidden(c)), None)
            if found and found[1] == "\t":
                yield Problem(name, number, found[0], "", "is a tab; use spaces, or \\t in double quotes")
            elif found:
                yield Problem(name, number, found[0], "", f"the character {printable(found[1])} is not allowed")
    first = next(((n, s) for n, s in enumerate(lines, 1) if s.strip() and not s.lstrip().startswith("#")), None)
    if first and first[1].startswith("%"):
        yield Problem(name, first[0], 1, "", "directives are not allowed; a spec is plain YAML 1.2")


def _surplus(line: str) -> int:
    """Return how many more brackets a line opens than it closes, at its deepest."""
    if line.count("[") + line.count("{") <= 2 * MAX_DEPTH:
        return 0
    return max(accumulate(1 if c in "[{" else -1 if c in "]}" else 0 for c in line))


@dataclass(slots=True)
class _Open:
    """A collection whose end has not come; `key` waits for its value, at `key_place`."""

    node: Node
    key: str | None = None
    key_place: Place | None = None

    def next_path(self) -> Where:
        if isinstance(self.node.value, list):
            return (*self.node.path, len(self.node.value))
        return self.node.path if self.key is None else (*self.node.path, self.key)


class _Builder:
    """Grow the tree event by event on a stack of open collections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root: Node | None = None
        self.problems: list[Problem] = []
        self._place = Place(name)
        self._path: Where = ()
        self._open: list[_Open] = []
        self._documents = 0
        self._values = 0

    def add(self, text: str) -> None:
        place = self._place
        self.problems.append(Problem(place.file, place.line, place.column, path_text(self._path), text))

    def syntax(self, error: MarkedYAMLError) -> None:
        """Add what ruamel could not read; its own sentences hold excerpts of the file only in `problem`."""
        if (mark := error.problem_mark or error.context_mark) is not None:
            self._place = Place(self.name, mark.line + 1, mark.column + 1)
        self._path = ()
        context = printable(error.context, 200) if error.context else ""
        if context and (begun := error.context_mark) is not None:
            context += f" that begins at {begun.line + 1}:{begun.column + 1}"
        self.add("is not YAML: " + ": ".join(filter(None, (context, printable(error.problem or "", 200)))))

    def take(self, event: Any) -> bool:
        """Take one event; False when nothing after it can be trusted."""
        kind = type(event).__name__.removesuffix("Event")
        if event.start_mark is not None:
            self._place = Place(self.name, event.start_mark.line + 1, event.start_mark.column + 1)
        self._path = self._open[-1].next_path() if self._open else ()
        if kind == "DocumentStart":
            self._documents += 1
            if self._documents > 1:
                self.add("a second document begins here; a spec is one document")
            return self._documents == 1
        if kind in ("MappingEnd", "SequenceEnd"):
            self._open.pop()
        elif kind in ("Scalar", "Alias", "MappingStart", "SequenceStart"):
            return self._take_value(kind, event)
        return True

    def _take_value(self, kind: str, event: Any) -> bool:
        self._values += 1
        if self._values > MAX_VALUES:
            self.add(f"has more than {MAX_VALUES} values and keys, the most a spec may hold")
            return False
        if len(self._open) >= MAX_DEPTH and kind.endswith("Start"):
            self.add(f"is nested deeper than {MAX_DEPTH} levels")
            return False
        self._refuse_references(kind, event)
        parent = self._open[-1] if self._open else None
        if parent and isinstance(parent.node.value, dict) and parent.key is None:
            self._take_key(kind, event, parent)
        else:
            self._take_node(kind, event, parent)
        return len(self.problems) < MAX_PROBLEMS

    def _refuse_references(self, kind: str, event: Any) -> None:
        if kind == "Alias":
            self.add(f"aliases are not allowed (*{printable(event.anchor, 40)}); write the value out")
            return
        if event.anchor is not None:
            self.add(f"anchors are not allowed (&{printable(event.anchor, 40)}); remove it")
        if event.ctag is not None:
            self.add(f"tags are not allowed ({printable(event.ctag, 80)}); a spec is plain data")

    def _take_key(self, kind: str, event: Any, parent: _Open) -> None:
        text = event.value if kind == "Scalar" else ""
        parent.key, parent.key_place = text, self._place
        if kind.endswith("Start"):
            self.add("a key must be a text, not a mapping or a list")
            self._open.append(_Open(Node({} if kind == "MappingStart" else [], self._place, self._path)))
        elif kind == "Scalar" and event.implicit[0] and text == "<<":
            self.add("merge keys (<<) are not allowed; write the entries out, or use extends")
        elif kind == "Scalar" and event.implicit[0] and not isinstance(resolve(text), str):
            self.add(f"a key must be a text, given {shown(resolve(text))}; put it in quotes")
        elif len(text) > MAX_KEY:
            self.add(f"is a key of {len(text)} characters; {MAX_KEY} are allowed: {printable(text, 40)}")
        elif any(map(hidden, text)):
            self.add(f"the key {shown(text)} holds characters that cannot be seen")

    def _take_node(self, kind: str, event: Any, parent: _Open | None) -> None:
        value: Any = {} if kind == "MappingStart" else [] if kind == "SequenceStart" else None
        if kind == "Scalar":
            value = resolve(event.value) if event.implicit[0] else event.value
            if isinstance(value, int) and value.bit_length() > 1024:
                self.add(f"is a number of {len(event.value)} digits")
            elif isinstance(value, str) and any(hidden(c) for c in value if c not in "\n\t"):
                self.add(f"the text {shown(value)} holds characters that cannot be seen")
        place = self._place
        if kind == "Scalar" and not event.value and event.implicit[0] and parent and parent.key_place:
            place = parent.key_place  # an empty value stands where the next thing begins, which helps nobody
        node = Node(value, place, self._path)
        if parent is None:
            self.root = node
        else:
            node = self._attach(node, parent)
        if kind.endswith("Start"):
            self._open.append(_Open(node))

    def _attach(self, node: Node, parent: _Open) -> Node:
        if isinstance(parent.node.value, list):
            parent.node.value.append(node)
            return node
        assert parent.key is not None and parent.key_place is not None
        node = replace(node, key=parent.key_place)
        if (first := parent.node.mapping.get(parent.key)) is not None and first.key is not None:
            self._place = parent.key_place
            self.add(f"is given twice; the first is on line {first.key.line}")
        parent.node.mapping[parent.key] = node
        parent.key = None
        return node
