"""Trees of memory as JSON plus tensors, and back without losing a bit, a type or a float that is not finite.

A key that begins with `$` is ours: `{"$tensor": name}`, `{"$float": "nan"}`, `{"$int": "0x…"}`, `{"$tuple": […]}`.
A key of the tree itself that begins with `$` gets another `$`. Loads torch only to tell tensors apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import CheckpointError
from .text import printable

if TYPE_CHECKING:
    from torch import Tensor

    Tensors: TypeAlias = dict[str, Tensor]

_DEEPEST = 100
_ALLOWED = "a mapping with text keys, a list, a tuple, a number, a text, a bool, None or a tensor"


def split_state(tree: Any) -> tuple[Any, Tensors]:
    """Return `tree` as JSON and the tensors it holds, each by a name made of its path.

    Raises `CheckpointError` naming the place of anything else, such as an integer key.
    """
    tensors: Tensors = {}
    return _encode(tree, (), tensors), tensors


def _encode(value: Any, path: tuple[str, ...], tensors: Tensors) -> Any:
    from torch import Tensor

    if len(path) > _DEEPEST:
        raise CheckpointError(f"{_place(path[:8])}…: nested deeper than {_DEEPEST} levels, or within itself")
    if isinstance(value, Tensor):
        name = _name(path, tensors)
        tensors[name] = value
        return {"$tensor": name}
    if isinstance(value, Mapping):
        return {_key(key, path): _encode(item, (*path, key), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, str(at)), tensors) for at, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        value = value.item()
    return _plain(value, path)


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else {"$int": hex(value)}
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, str):
        _check_text(value, path)
        return str.__str__(value)
    raise CheckpointError(f"{_place(path)}: a {type(value).__name__} cannot be saved; give {_ALLOWED}")


def _key(key: Any, path: tuple[str, ...]) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"{_place(path)}: the key {key!r} is a {type(key).__name__}; write str(key)")
    _check_text(key, path)
    return f"${key}" if key.startswith("$") else str.__str__(key)


def _check_text(text: str, path: tuple[str, ...]) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{_place(path)}: the text {printable(text, 80)!r} is not valid Unicode") from error


def _place(path: tuple[str, ...]) -> str:
    return printable("state" + "".join(f".{part}" for part in path), 300)


def _name(path: tuple[str, ...], tensors: Mapping[str, object]) -> str:
    """Return a name for a tensor that no other has: its path, numbered where two paths read alike."""
    name = plain = "/".join(path) or "value"
    count = 1
    while name in tensors:
        count += 1
        name = f"{plain}#{count}"
    return name


def join_state(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree that `split_state` was given; raises `CheckpointError` for one that it cannot have made."""
    if isinstance(tree, list):
        return [join_state(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        ((key, value),) = tree.items()
        if key.startswith("$") and not key.startswith("$$"):
            return _marked(key, value, tensors)
    return {key[1:] if key.startswith("$") else key: join_state(item, tensors) for key, item in tree.items()}


def _marked(key: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    try:
        if key == "$tensor":
            return tensors[value]
        if key == "$tuple":
            return tuple(join_state(item, tensors) for item in value)
        if key in ("$int", "$float"):
            return int(value, 16) if key == "$int" else float(value)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"state: {printable(key)} {printable(value, 100)!r} leads nowhere") from error
    raise CheckpointError(f"state: {printable(key, 100)!r} is no mark that this version of ctr knows")
