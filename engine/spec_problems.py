"""Say what is wrong with a value in a spec: where it stands, what was given, what is allowed.

Pydantic knows what it refused but not where that stood, and its locations hold union tags beside keys. The JSON schema
of the type tells the two apart, and says in one way for every type what would have been allowed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from .errors import PluginError, Problem, guess
from .nodes import Key, Node, shown
from .text import printable

Schema = Mapping[str, Any]


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
        try:
            return adapter(kind).validate_json(json.dumps(node.data), strict=True)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                self.add(_problem(found, node, schema(kind)))
        except Exception as error:  # a stranger's validator may raise anything
            text = f"{who}: its settings class raised {type(error).__name__}: {printable(error, 300)}"
            raise PluginError(text) from error
        return None

    def names(self, node: Node, known: Iterable[str], what: str = "setting") -> None:
        """Refuse keys of `node` that are not among `known`."""
        for key, child in node.mapping.items():
            if key not in set(known):
                self.add(child.problem(unknown(key, known, what), at_key=True))


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@cache
def schema(kind: Any) -> Schema:
    """Return the JSON schema of a type, or an empty one where pydantic can draw none."""
    try:
        return adapter(kind).json_schema()
    except (PydanticInvalidForJsonSchema, PydanticUserError):
        return {}


def unknown(given: str, known: Iterable[str], what: str = "setting") -> str:
    """Return the words for a name that does not exist."""
    names = sorted(known)
    listed = f"{what}s: {', '.join(names)}" if names else f"there are no {what}s here"
    close = guess(given, names)
    return f"no such {what}; {listed}" + (f".{close}" if close else "")


def _problem(found: Mapping[str, Any], root: Node, whole: Schema) -> Problem:
    node, rest, here = _locate(root, found["loc"], whole)
    kind, given = found["type"], found["input"]
    if kind == "missing" and rest is not None:
        return missing(node, str(rest), _deref(_entry(_narrow(here, node, whole), rest), whole).get("description", ""))
    if kind == "extra_forbidden":
        known = _parent(root, found["loc"], whole).get("properties", {})
        return node.problem(unknown(str(found["loc"][-1]), known), at_key=True)
    if kind.startswith("union_tag"):
        return _wrong_kind(node, here, whole, found["ctx"]["discriminator"].strip("'"))
    if kind in ("value_error", "assertion_error"):
        text = printable(found["ctx"]["error"] if "error" in found.get("ctx", {}) else found["msg"], 300)
        return node.problem(text if isinstance(given, dict | list) else f"{text}, given {shown(given)}")
    wanted = allowed(here, whole)
    if kind == "finite_number":
        wanted = wanted.replace("a number", "a finite number")
    close = guess(given, _choices(here, whole)) if isinstance(given, str) else ""
    text = f"must be {wanted}" if wanted else printable(found["msg"], 300)
    return node.problem(f"{text}, given {shown(given)}" + (f".{close}" if close else ""))


def missing(node: Node, key: str, description: str = "") -> Problem:
    """Return the problem of a setting that is needed; one that an overlay removed is shown where it was removed."""
    about = f": {description}" if description else ""
    if key in node.removed:
        return node.removed[key].problem(f"is removed here, but it is needed{about}")
    return node.problem(f"is missing{about}", key)


def _wrong_kind(node: Node, here: Schema, whole: Schema, name: str) -> Problem:
    kinds = sorted(_tags(_nonnull(here, whole)))
    if name not in node.mapping:
        return missing(node, name, f"one of {', '.join(kinds)}")
    given = node.mapping[name]
    if not isinstance(given.value, str):
        return given.problem(f"must be one of {', '.join(kinds)}, given {shown(given.data)}")
    return given.problem(
        f"no such {name} {shown(given.value)}; {name}s: {', '.join(kinds)}.{guess(given.value, kinds)}"
    )


def _locate(node: Node, loc: tuple[Key, ...], whole: Schema) -> tuple[Node, Key | None, Schema]:
    """Follow a location as far as the data go; return the value, the key that is not there, and the value's schema."""
    here = whole
    rest: Key | None = None
    for key in loc:
        rest = None
        tags = _tags(_nonnull(here, whole))
        if key in tags:
            here = _deref({"$ref": tags[str(key)]}, whole)
            continue
        inside = _narrow(here, node, whole)
        if isinstance(key, str) and key in node.mapping:
            node, here = node.mapping[key], _entry(inside, key)
        elif isinstance(key, int) and key < len(node.items):
            node, here = node.items[key], _item(inside, key)
        else:
            rest = key
    return node, rest, here


def _parent(root: Node, loc: tuple[Key, ...], whole: Schema) -> Schema:
    node, _, here = _locate(root, loc[:-1], whole)
    return _narrow(here, node, whole)


def _deref(here: Schema, whole: Schema) -> Schema:
    while "$ref" in here:
        target: Any = whole
        for part in here["$ref"].split("/")[1:]:
            target = target[part]
        here = {**target, **{key: value for key, value in here.items() if key != "$ref"}}
    return here


def _nonnull(here: Schema, whole: Schema) -> Schema:
    here = _deref(here, whole)
    branches = [branch for branch in here.get("anyOf", ()) if branch.get("type") != "null"]
    return _deref(branches[0], whole) if len(branches) == 1 else here


def _tags(here: Schema) -> Mapping[str, str]:
    tags: Mapping[str, str] = here.get("discriminator", {}).get("mapping", {})
    return tags


def _narrow(here: Schema, node: Node, whole: Schema) -> Schema:
    """Choose the branch of a union that a value is meant for: by its kind, else by being a mapping or a list."""
    here = _nonnull(here, whole)
    tags = _tags(here)
    if tags:
        kind = node.mapping.get(here["discriminator"]["propertyName"])
        return _deref({"$ref": tags[str(kind.value)]}, whole) if kind and kind.value in tags else {}
    wanted = "object" if isinstance(node.value, dict) else "array" if isinstance(node.value, list) else None
    branches = [_deref(branch, whole) for branch in (*here.get("anyOf", ()), *here.get("oneOf", ()))]
    return next((branch for branch in branches if branch.get("type") == wanted), here)


def _entry(here: Schema, key: Key) -> Schema:
    found = here.get("properties", {}).get(key, here.get("additionalProperties", {}))
    return found if isinstance(found, dict) else {}


def _item(here: Schema, index: int) -> Schema:
    first = here.get("prefixItems", ())
    found = first[index] if index < len(first) else here.get("items", {})
    return found if isinstance(found, dict) else {}


def _choices(here: Schema, whole: Schema) -> list[str]:
    here = _deref(here, whole)
    branches = [
        choice for branch in (*here.get("anyOf", ()), *here.get("oneOf", ())) for choice in _choices(branch, whole)
    ]
    return [
        *branches,
        *(str(value) for value in (*here.get("enum", ()), *([here["const"]] if "const" in here else ()))),
    ]


def allowed(here: Schema, whole: Schema) -> str:
    """Return what a schema allows in words: `a whole number from 1 to 100000`, `one of auto, cpu, cuda, mps`."""
    here = _deref(here, whole)
    branches = [allowed(branch, whole) for branch in (*here.get("anyOf", ()), *here.get("oneOf", ()))]
    if branches:
        return " or ".join(dict.fromkeys(branch for branch in branches if branch))
    if "enum" in here:
        return "one of " + ", ".join(map(str, here["enum"]))
    if "const" in here:
        return str(here["const"])
    words = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    kind = here.get("type")
    if kind in ("integer", "number"):
        return words[kind] + _range(here)
    if kind == "string":
        return "a text" + _count(here, "Length", "character")
    if kind == "array":
        return "a list" + _count(here, "Items", "item")
    return "a mapping" if kind == "object" else words.get(str(kind), "")


def _range(here: Schema) -> str:
    low, high = here.get("minimum"), here.get("maximum")
    if low is not None and high is not None:
        return f" from {low:.15g} to {high:.15g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = [f"{word} {here[key]:.15g}" for key, word in words.items() if key in here]
    return " " + " and ".join(parts) if parts else ""


def _count(here: Schema, what: str, unit: str) -> str:
    low, high = here.get(f"min{what}"), here.get(f"max{what}")
    if low is None and high is None:
        return ""
    number = (
        f"{low}"
        if low == high
        else f"at least {low}"
        if high is None
        else f"at most {high}"
        if not low
        else f"{low} to {high}"
    )
    return f" of {number} {unit}{'' if number.endswith(' 1') or number == '1' else 's'}"
