"""Follow pydantic's locations through data and JSON schema, and say in words what a schema allows.

A location holds union tags and names of validators beside keys. The JSON schema of the type tells them apart, and says
in one way for every type what would have been allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeAlias

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError

from .nodes import Key, Node

Schema: TypeAlias = Mapping[str, Any]


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


def locate(node: Node, loc: tuple[Key, ...], whole: Schema) -> tuple[Node, Key | None, Schema]:
    """Follow a location as far as the data go; return the value, the key that is not there, and the value's schema."""
    here = whole
    rest: Key | None = None
    for key in loc:
        rest = None
        kinds = tags(nonnull(here, whole))
        if key in kinds:
            here = deref({"$ref": kinds[str(key)]}, whole)
            continue
        inside = narrow(here, node, whole)
        if isinstance(key, str) and key in node.mapping:
            node, here = node.mapping[key], entry(inside, key)
        elif isinstance(key, int) and key < len(node.items):
            node, here = node.items[key], item(inside, key)
        else:
            rest = key
    return node, rest, here


def parent(root: Node, loc: tuple[Key, ...], whole: Schema) -> Schema:
    node, _, here = locate(root, loc[:-1], whole)
    return narrow(here, node, whole)


def deref(here: Schema, whole: Schema) -> Schema:
    while "$ref" in here:
        target: Any = whole
        for part in here["$ref"].split("/")[1:]:
            target = target[part]
        here = {**target, **{key: value for key, value in here.items() if key != "$ref"}}
    return here


def nonnull(here: Schema, whole: Schema) -> Schema:
    here = deref(here, whole)
    branches = [branch for branch in here.get("anyOf", ()) if branch.get("type") != "null"]
    return deref(branches[0], whole) if len(branches) == 1 else here


def tags(here: Schema) -> Mapping[str, str]:
    found: Mapping[str, str] = here.get("discriminator", {}).get("mapping", {})
    return found


def narrow(here: Schema, node: Node, whole: Schema) -> Schema:
    """Choose the branch of a union that a value is meant for: by its kind, else by being a mapping or a list."""
    here = nonnull(here, whole)
    if kinds := tags(here):
        kind = node.mapping.get(here["discriminator"]["propertyName"])
        return deref({"$ref": kinds[str(kind.value)]}, whole) if kind and kind.value in kinds else {}
    wanted = "object" if isinstance(node.value, dict) else "array" if isinstance(node.value, list) else None
    return next((branch for branch in branches(here, whole) if branch.get("type") == wanted), here)


def branches(here: Schema, whole: Schema) -> list[Schema]:
    """Return the alternatives of a union, or the one schema there is."""
    here = deref(here, whole)
    union = (*here.get("anyOf", ()), *here.get("oneOf", ()))
    return [branch for choice in union for branch in branches(choice, whole)] if union else [here]


def entry(here: Schema, key: Key) -> Schema:
    found = here.get("properties", {}).get(key, here.get("additionalProperties", {}))
    return found if isinstance(found, dict) else {}


def item(here: Schema, index: int) -> Schema:
    first = here.get("prefixItems", ())
    found = first[index] if index < len(first) else here.get("items", {})
    return found if isinstance(found, dict) else {}


def choices(here: Schema, whole: Schema) -> list[str]:
    rows = [
        (*branch.get("enum", ()), *([branch["const"]] if "const" in branch else ())) for branch in branches(here, whole)
    ]
    return [str(value) for row in rows for value in row]


def allowed(here: Schema, whole: Schema) -> str:
    """Return what a schema allows in words: `a whole number from 1 to 100000`, `one of auto, cpu, cuda, mps`."""
    here = deref(here, whole)
    if tags(here):
        return f"a mapping with {here['discriminator']['propertyName']}"
    words = [allowed(branch, whole) for branch in (*here.get("anyOf", ()), *here.get("oneOf", ()))]
    return " or ".join(dict.fromkeys(filter(None, words))) if words else _words(here)


def _words(here: Schema) -> str:
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
    if kind == "object":
        return "a mapping" + (f" with {', '.join(here['required'])}" if here.get("required") else "")
    return words.get(str(kind), "")


def _range(here: Schema) -> str:
    low, high = here.get("minimum"), here.get("maximum")
    if low is not None and high is not None:
        return f" from {_number(low)} to {_number(high)}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    parts = [f"{word} {_number(here[key])}" for key, word in words.items() if key in here]
    return " " + " and ".join(parts) if parts else ""


def _number(value: float) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


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
