"""The version of what plugins are written against: the hooks, what they are given, and what they answer.

A plugin class may say for which versions it is made: `api = (1, 1)`, the lowest and the highest. The number rises when
a plugin that kept to the documents could stop working; a new field of an event, or a new setting of an answer, is no
such change.
"""

from __future__ import annotations

from typing import Any

from .text import printable

VERSION = 1


def declared(plugin: Any) -> tuple[int, int] | None:
    """Return the lowest and the highest version that a class is made for; None where it does not say, or not so."""
    said = getattr(plugin, "api", None)
    whole = isinstance(said, tuple) and len(said) == 2 and all(type(one) is int for one in said)
    return (said[0], said[1]) if isinstance(said, tuple) and whole and 1 <= said[0] <= said[1] else None


def api_problem(plugin: Any) -> str | None:
    """Say why a class is not made for this ctr; None when it is, or does not say."""
    said = getattr(plugin, "api", None)
    if said is None:
        return None
    made_for = declared(plugin)
    name = f"plugin class {getattr(plugin, '__name__', printable(plugin, 80))}"
    if made_for is None:
        return (
            f"{name}: api must be the lowest and the highest version, such as (1, {VERSION}), not {printable(said, 80)}"
        )
    low, high = made_for
    if low <= VERSION <= high:
        return None
    newer = (
        f"; {'upgrade' if low > VERSION else 'downgrade'} ctr, or install a version of the plugin made for {VERSION}"
    )
    return f"{name}: made for plugin API {shown(made_for)}, and this ctr has plugin API {VERSION}{newer}"


def shown(versions: tuple[int, int] | None) -> str:
    """Return versions as one reads them."""
    if versions is None:
        return "not declared"
    return str(versions[0]) if versions[0] == versions[1] else f"{versions[0]} to {versions[1]}"
