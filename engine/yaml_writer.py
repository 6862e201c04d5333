"""Write plain data as YAML that `yaml_reader` reads back to the same values."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .nodes import scalar_text
from .yaml_reader import hidden, resolve

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./+-]*( [A-Za-z0-9_./+-]+)*\Z")


def write_text(data: Mapping[str, Any]) -> str:
    """Return block YAML: one setting a line, lists of scalars in one line."""
    return "\n".join(_mapping(data, "")) + "\n"


def _mapping(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in data.items():
        name = indent + _scalar(str(key)) + ":"
        if isinstance(value, Mapping) and value:
            yield name
            yield from _mapping(value, indent + "  ")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) and item for item in value):
            yield name
            yield from _list(value, indent)
        else:
            yield f"{name} {_flow(value)}"


def _list(items: list[Any] | tuple[Any, ...], indent: str) -> Iterator[str]:
    for item in items:
        if isinstance(item, Mapping) and item:
            lines = list(_mapping(item, indent + "  "))
            yield f"{indent}- {lines[0].lstrip()}"
            yield from lines[1:]
        else:
            yield f"{indent}- {_flow(item)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_scalar(str(k))}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    if not isinstance(value, str):
        return scalar_text(value)
    if _PLAIN.match(value) and isinstance(resolve(value), str):
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(f"\\U{ord(c):08x}" if hidden(c) else c for c in quoted)
