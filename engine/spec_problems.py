"""Say what is wrong with a value in a spec: where it stands, what was given, what is allowed.

Pydantic knows what it refused but not where that stood; `schema_walk` finds the place and says what is allowed there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from .errors import PluginError, Problem, guess
from .nodes import Node, shown
from .schema_walk import (
    Schema,
    adapter,
    allowed,
    branches,
    choices,
    deref,
    entry,
    item,
    locate,
    narrow,
    nonnull,
    parent,
    schema,
    tags,
)
from .text import printable

_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_SIZES = ("too_short", "too_long", "string_too_short", "string_too_long")
_SAID_BY_SCHEMA = {*_BOUNDS, *_SIZES, "literal_error", "enum", "int_from_float", "none_required"}


class Checker:
    """Checks nodes against types and keeps the problems, each once, however many arms share the value."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        return list(self._found)

    def add(self, *problems: Problem) -> None:
        self._found.update(dict.fromkeys(problems))

    def check(self, kind: Any, node: Node, who: str = "ctr") -> Any:
        """Return the validated value, or None with its problems kept. `who` owns the type, should it raise."""
        self.add(*_removals(node, schema(kind), schema(kind)) if _removes(node) else ())
        try:
            return adapter(kind).validate_json(json.dumps(node.data), strict=True)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                if not _too_short_after_refusals(found):
                    self.add(_problem(found, node, schema(kind)))
        except Exception as error:  # a stranger's validator may raise anything
            text = f"{who}: its settings class raised {type(error).__name__}: {printable(error, 300)}"
            raise PluginError(text) from error
        return None

    def names(self, node: Node, known: Iterable[str], what: str = "setting") -> None:
        """Refuse keys of `node` that are not among `known`."""
        names = set(known)
        for key, child in (*node.mapping.items(), *node.removed.items()):
            if key not in names:
                self.add(child.problem(unknown(key, known, what), at_key=True))


def unknown(given: str, known: Iterable[str], what: str = "setting") -> str:
    """Return the words for a name that does not exist."""
    names = sorted(known)
    some = ", ".join(printable(name, 64) for name in names[:40]) + (" and more" if len(names) > 40 else "")
    listed = f"{what}s: {some}" if names else f"there are no {what}s here"
    close = guess(given, names)
    return f"no such {what}; {listed}" + (f".{close}" if close else "")


def _too_short_after_refusals(found: Mapping[str, Any]) -> bool:
    """Say whether a list is short only by the items that were refused, each of which has a problem of its own."""
    return bool(found["type"] == "too_short" and len(found["input"]) >= found["ctx"]["min_length"])


def _removes(node: Node) -> bool:
    return bool(node.removed) or any(map(_removes, node.mapping.values())) or any(map(_removes, node.items))


def _removals(node: Node, here: Schema, whole: Schema) -> Iterator[Problem]:
    """Find nulls that remove what no kind of the mapping could hold: a misspelt key would remove nothing in silence."""
    known = {name for branch in branches(here, whole) for name in branch.get("properties", {})}
    for key, gone in node.removed.items():
        if known and key not in known:
            yield gone.problem(unknown(key, known), at_key=True)
    inside = narrow(here, node, whole)
    for key, child in node.mapping.items():
        yield from _removals(child, entry(inside, key), whole)
    for index, child in enumerate(node.items):
        yield from _removals(child, item(inside, index), whole)


def _problem(found: Mapping[str, Any], root: Node, whole: Schema) -> Problem:
    node, rest, here = locate(root, found["loc"], whole)
    kind, given = found["type"], found["input"]
    if kind == "missing" and rest is not None:
        return missing(node, str(rest), deref(entry(narrow(here, node, whole), rest), whole).get("description", ""))
    if kind == "extra_forbidden":
        known = parent(root, found["loc"], whole).get("properties", {})
        return node.problem(unknown(str(found["loc"][-1]), known), at_key=True)
    if kind.startswith("union_tag"):
        return _wrong_kind(node, here, whole, found["ctx"]["discriminator"].strip("'"))
    if kind in ("value_error", "assertion_error"):
        text = printable(found["ctx"]["error"] if "error" in found.get("ctx", {}) else found["msg"], 300)
        return node.problem(text if isinstance(given, dict | list) else f"{text}, given {shown(given)}")
    wanted = allowed(here, whole) if kind.endswith("_type") or kind in _SAID_BY_SCHEMA else ""
    if kind == "finite_number":
        wanted = wanted.replace("a number", "a finite number")
    close = guess(given, choices(here, whole)) if isinstance(given, str) else ""
    text = f"must be {wanted}" if wanted else printable(found["msg"], 300).replace("Input should", "must", 1)
    return node.problem(f"{text}, given {shown(given)}" + (f".{close}" if close else ""))


def missing(node: Node, key: str, description: str = "") -> Problem:
    """Return the problem of a setting that is needed; one that an overlay removed is shown where it was removed."""
    about = f": {description}" if description else ""
    if key in node.removed:
        return node.removed[key].problem(f"is removed here, but it is needed{about}")
    return node.problem(f"is missing{about}", key)


def _wrong_kind(node: Node, here: Schema, whole: Schema, name: str) -> Problem:
    kinds = sorted(tags(nonnull(here, whole)))
    if name not in node.mapping:
        return missing(node, name, f"one of {', '.join(kinds)}")
    given = node.mapping[name]
    if not isinstance(given.value, str):
        return given.problem(f"must be one of {', '.join(kinds)}, given {shown(given.data)}")
    return given.problem(
        f"no such {name} {shown(given.value)}; {name}s: {', '.join(kinds)}.{guess(given.value, kinds)}"
    )
