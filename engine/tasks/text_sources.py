"""Rows of text and conversations from files, the hub or a generator, and how they are divided into splits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ctr.engine.errors import DataError, MissingDependency
from ctr.engine.seeding import stream
from ctr.engine.text import printable

from .text_config import Data, GeneratedText, HubData, JsonlFile, TextFile

ROLES = ("system", "user", "assistant")
SHOWN = 20
LONGEST = 64 * 2**20  # bytes of a line; a longer one is a file of another kind


@dataclass(frozen=True)
class TextRow:
    """One row: a text, or a conversation. `id` is its place in the source, `group` what it is about, if known."""

    id: str
    text: str | None
    messages: tuple[Mapping[str, str], ...] = ()
    group: str | None = None


@dataclass(frozen=True)
class TextSource:
    """All rows of a source; `place` names it in errors."""

    place: str
    rows: tuple[TextRow, ...]


class Refused(ValueError):
    """Why a line is no row; its place is added by whoever knows it."""


def read(data: Data) -> TextSource:
    """Read a source; raises `DataError` naming the first twenty lines that are wrong, with place and way out."""
    if isinstance(data, GeneratedText):
        from ctr.engine.generate import generate

        made = generate(data.family, data.part, data.entities, data.seed)
        rows = [TextRow(str(index), row.text, group=row.group) for index, row in enumerate(made)]
        return TextSource(f"generated {data.family}.{data.part}", tuple(rows[: data.max_rows]))
    if isinstance(data, HubData):
        place = f"hub data set {data.name}"
        return TextSource(place, _rows(place, _hub(data), lambda value: _of_column(value, data.column), data.max_rows))
    assert isinstance(data, TextFile | JsonlFile)
    prefix = data.group_prefix if isinstance(data, TextFile) else None
    make: Callable[[Any], TextRow | None] = (
        (lambda line: _of_line(line, prefix)) if isinstance(data, TextFile) else _of_json
    )
    return TextSource(data.path, _rows(data.path, _lines(data.path), make, data.max_rows))


def _rows(
    place: str, found: Iterable[tuple[int, Any]], make: Callable[[Any], TextRow | None], most: int | None
) -> tuple[TextRow, ...]:
    rows: list[TextRow] = []
    wrong: list[str] = []
    for number, value in found:
        try:
            row = make(value)
        except Refused as error:
            wrong.append(f"{place}:{number}: {error}")
            if len(wrong) > SHOWN:
                break
            continue
        if row is not None:
            rows.append(TextRow(str(number), row.text, row.messages, row.group))
        if most is not None and len(rows) >= most:
            break
    if wrong:
        more = "\nand more" if len(wrong) > SHOWN else ""
        raise DataError("\n".join(wrong[:SHOWN]) + more)
    if len(rows) < 2:
        text = f"{place}: holds {len(rows)} row{'' if len(rows) == 1 else 's'}; at least two are needed"
        raise DataError(f"{text}, one to train on and one to evaluate on")
    return tuple(rows)


# ------------------------------------------------------------------------------------------------------- a line
def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    where = Path(path).expanduser()
    if where.is_dir():
        raise DataError(f"{path}: is a folder; give the file itself")
    try:
        with where.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST + 1):
                number += 1
                if len(line) > LONGEST:
                    raise DataError(f"{path}:{number}: the line is longer than {LONGEST >> 20} MiB; break it up")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except FileNotFoundError as error:
        hint = "; a data set of the hub is named by {source: hub, name: …}" if "/" in path else ""
        raise DataError(f"{path}: there is no such file, seen from {Path.cwd()}{hint}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text(line: bytes) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(f"is not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}; convert it") from error
    return _clean(text)


def _clean(text: str) -> str:
    if "\0" in text:
        raise Refused("holds a NUL character; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refused("holds half a surrogate pair, which is no character; remove it") from error
    return text


def _of_line(line: bytes, prefix: str | None) -> TextRow | None:
    text = _text(line).strip()
    if not text:
        return None
    group = None
    if prefix is not None:
        words = (word.strip(".,;:!?()[]{}\"'") for word in text.split())
        group = next((word for word in words if word.startswith(prefix)), None)
    return TextRow("", text, group=group)


def _of_json(line: bytes) -> TextRow | None:
    if not line.strip():
        return None
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            _text(line)
        raise Refused(f"is not valid JSON: {printable(error.msg, 100)} at column {error.colno}") from error
    if not isinstance(value, dict):
        raise Refused(f'must be a JSON object such as {{"text": …}}, not {_kind(value)}')
    group = value.get("group")
    if group is not None and not isinstance(group, str | int):
        raise Refused(f"group must be a text or a whole number, not {_kind(group)}")
    given = [key for key in ("text", "messages") if key in value]
    if len(given) != 1:
        what = "both text and messages" if given else "neither text nor messages"
        raise Refused(f"has {what}; a row has one of them")
    return _row(value, given[0], None if group is None else str(group))


def _of_column(value: Mapping[str, Any], column: str) -> TextRow:
    if column not in value:
        raise Refused(f"has no column {column}; it has {', '.join(map(str, value))}; set data.column")
    kind = "messages" if isinstance(value[column], list) else "text"
    return _row({kind: value[column]}, kind, None)


def _row(value: Mapping[str, Any], kind: str, group: str | None) -> TextRow:
    if kind == "messages":
        return TextRow("", None, _messages(value["messages"]), group)
    text = value["text"]
    if not isinstance(text, str):
        raise Refused(f"text must be a text, not {_kind(text)}")
    if not text.strip():
        raise Refused("text is blank; remove the row")
    return TextRow("", _clean(text), group=group)


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise Refused("messages must be a list of one or more {role, content}" + (", not empty" if value == [] else ""))
    turns = []
    for number, turn in enumerate(value):
        if not isinstance(turn, dict) or "role" not in turn or "content" not in turn:
            raise Refused(f"messages[{number}] must have role and content")
        if turn["role"] not in ROLES:
            known = ", ".join(ROLES)
            raise Refused(f"messages[{number}].role is {printable(turn['role'], 40)}; roles are {known}")
        if not isinstance(turn["content"], str):
            raise Refused(f"messages[{number}].content must be a text, not {_kind(turn['content'])}")
        turns.append({"role": turn["role"], "content": _clean(turn["content"])})
    if turns[-1]["role"] != "assistant":
        raise Refused(
            f"the last turn is the {turns[-1]['role']}'s; it must be the assistant's, whose turns are trained"
        )
    return tuple(turns)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _hub(data: HubData) -> Iterator[tuple[int, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        text = f"the data set {data.name} comes from the hub, which needs the package datasets; install it"
        raise MissingDependency(f"{text}, or give a file: {{source: jsonl, path: …}}") from error
    try:
        found = load_dataset(data.name, data.config, split=data.split, revision=data.revision)
    except Exception as error:  # whatever the hub, the network or the data set's own form raise
        text = f"hub data set {data.name} could not be loaded: {printable(error, 300)}"
        way = "check name, config and split; offline, save it once as JSONL and give {source: jsonl, path: …}"
        raise DataError(f"{text}; {way}") from error
    yield from enumerate(found)


# ------------------------------------------------------------------------------------------------------- splits
def divide(source: TextSource, data: Data) -> dict[str, list[int]]:
    """Return the indices of each split's rows, ascending; raises `DataError` for a split that is left empty."""
    shares = {name: getattr(data, f"{name}_fraction") for name in ("test", "val", "calibration")}
    held = {name: share for name, share in shares.items() if share}
    has_groups = any(row.group is not None for row in source.rows)
    by = data.split_by or ("group" if has_groups else "row")
    if by == "group" and not has_groups:
        text = f"{source.place}: split_by is group, but no row has one"
        raise DataError(f"{text}; give group_prefix (text) or a key group in each row (jsonl), or split_by: row")
    ways = {"group": _by_group, "row": _by_row, "faithful": _as_the_source}
    cuts = ways[by](source.rows, held, data.split_seed)
    for name, indices in cuts.items():
        if not indices:
            text = f"{source.place}: the {name} split is empty ({len(source.rows)} rows, split by {by})"
            raise DataError(f"{text}; give more rows or other fractions")
    return {name: sorted(indices) for name, indices in cuts.items()}


def _by_group(rows: Sequence[TextRow], held: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Cut by a number in [0, 1) that hangs on seed and group alone, so that all sources cut a group alike."""
    cuts: dict[str, list[int]] = {name: [] for name in (*held, "train")}
    for index, row in enumerate(rows):
        name = f"row {row.id}" if row.group is None else f"group {row.group}"
        place, until = stream(seed, name) / 2**64, 0.0
        for split, share in held.items():
            until += share
            if place < until:
                cuts[split].append(index)
                break
        else:
            cuts["train"].append(index)
    return cuts


def _by_row(rows: Sequence[TextRow], held: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    random = np.random.RandomState(stream(seed, "split") & 0xFFFFFFFF)  # its stream is frozen, a Generator's is not
    order = random.permutation(len(rows)).tolist()
    cuts, start = {}, 0
    for split, share in held.items():
        size = max(1, int(share * len(rows) + 0.5))
        cuts[split] = order[start : start + size]
        start += size
    return {**cuts, "train": order[start:]}


def _as_the_source(rows: Sequence[TextRow], held: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Train on the first three quarters of torch's permutation; deal the rest out to the held-out splits in turn."""
    import torch

    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = max(1, int(0.75 * len(rows)))
    rest = order[cut:]
    return {**{name: rest[i :: len(held)] for i, name in enumerate(held)}, "train": order[:cut]}


def fingerprint(data: Data) -> dict[str, str]:
    """Return the sha256 of what the rows come from; raises `DataError` where a file is missing."""
    if isinstance(data, GeneratedText):
        digest = hashlib.sha256()
        for row in read(data).rows:
            digest.update(f"{row.group}\0{row.text}\n".encode())
        return {"data": digest.hexdigest()}
    if isinstance(data, HubData):
        return {"data": f"hub:{data.name}@{data.revision or _newest(data)}"}
    assert isinstance(data, TextFile | JsonlFile)
    digest = hashlib.sha256()
    for _, line in _lines(data.path):
        digest.update(line)
    return {"data": digest.hexdigest()}


def _newest(data: HubData) -> str:
    """Return a hash over the rows themselves, which are here once they were loaded."""
    digest = hashlib.sha256()
    for _, row in _hub(data):
        digest.update(repr(row.get(data.column) if isinstance(row, Mapping) else row).encode("utf-8", "replace"))
    return digest.hexdigest()
