"""A tree of plain data in which every value knows where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from .errors import Problem
from .text import printable

Scalar: TypeAlias = str | int | float | bool | None
Key: TypeAlias = str | int
Where: TypeAlias = tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands; `line` 0 means that the source has no lines."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A value with the place it came from; an overlay moves nodes, so a place survives every merge.

    `path` is where the value stood in its own file, `key` the place of its key, and `removed` holds the nulls of an
    overlay that took entries out of this mapping.
    """

    value: dict[str, Node] | list[Node] | Scalar
    place: Place
    path: Where = ()
    key: Place | None = None
    removed: Mapping[str, Node] = field(default_factory=dict)

    @property
    def mapping(self) -> dict[str, Node]:
        """The entries, or nothing where the value is no mapping."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> list[Node]:
        """The items, or nothing where the value is no list."""
        return self.value if isinstance(self.value, list) else []

    @property
    def data(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.data for key, node in self.value.items()}
        return [node.data for node in self.value] if isinstance(self.value, list) else self.value

    def problem(self, text: str, *more: Key, at_key: bool = False) -> Problem:
        """Return a problem at this value, or at its key; `more` names what is missing below it."""
        place, path = self.place, self.path
        if at_key and self.key:
            place = self.key
            while path and isinstance(path[-1], int):  # a value of a sweep, whose key stands before its list
                path = path[:-1]
        return Problem(place.file, place.line, place.column, path_text((*path, *more)), printable(text))


def from_plain(data: Any, place: Place, path: Where = ()) -> Node:
    """Return plain data as nodes that all stand at `place`."""
    if isinstance(data, Mapping):
        return Node({str(key): from_plain(value, place, (*path, str(key))) for key, value in data.items()}, place, path)
    if isinstance(data, list | tuple):
        return Node([from_plain(value, place, (*path, index)) for index, value in enumerate(data)], place, path)
    return Node(data, place, path)


def path_text(path: Where) -> str:
    """Return a path as a person writes it: `arms.controller.train.reset_at[0].steps`."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{printable(key, 64)}" for key in path)
    return text.removeprefix(".")


def shown(value: Any, longest: int = 60) -> str:
    """Return a value as an error shows it: printable, shortened, in YAML's own words."""
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return f'"{printable(value, longest)}"' if isinstance(value, str) else printable(scalar_text(value), longest)


def scalar_text(value: Any) -> str:
    """Return a scalar that is no text as YAML 1.2 writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return str(value)


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two documents, a line for each value: `phases[0].train.epochs: 12 → 30`."""
    before, after = _flat(old, ""), _flat(new, "")
    keys = dict.fromkeys((*before, *after))
    gone = "(absent)"
    return [f"{k}: {before.get(k, gone)} → {after.get(k, gone)}" for k in keys if before.get(k) != after.get(k)]


def _flat(value: Any, path: str) -> dict[str, str]:
    if isinstance(value, Mapping) and value:
        pairs = [(f"{path}.{key}".removeprefix("."), child) for key, child in value.items()]
    elif isinstance(value, list | tuple) and value:
        pairs = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
    else:
        return {path: shown(value)}
    return {key: text for path, child in pairs for key, text in _flat(child, path).items()}
