"""Lay one tree over another: mappings merge, lists and scalars replace, null removes, and every value keeps its place.

An overlay that changes a mapping's `kind` replaces the mapping: settings of another kind do not carry over. Every
source of settings is such an overlay: `extends`, `--set`, an arm, a point of a sweep, a phase's `train`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .errors import Problem, SpecError
from .nodes import Node, Place, path_text, shown
from .text import printable
from .yaml_reader import MAX_DEPTH, read, read_text

MAX_EXTENDS = 8
SET = Place("--set")


def merge(base: Node, over: Node, name: str = "") -> Node:
    """Return `base` with `over` laid over it; `name` is the key under which both stand."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict) or _other_kind(base, over, name):
        return settle(over)
    entries, removed = dict(base.mapping), dict(base.removed)
    for key, node in over.mapping.items():
        if node.value is None:
            entries.pop(key, None)
            removed[key] = node
        else:
            entries[key] = merge(entries[key], node, key) if key in entries else settle(node)
            removed.pop(key, None)
    return replace(base, value=entries, removed={**removed, **over.removed})


def _other_kind(base: Node, over: Node, name: str) -> bool:
    """Say whether a union changes its member: the settings of the old one mean nothing to the new."""
    tag = "source" if name == "data" else "kind"
    kinds = [tree.mapping[tag].value for tree in (base, over) if tag in tree.mapping]
    return len(kinds) == 2 and kinds[1] is not None and kinds[0] != kinds[1]


def settle(over: Node) -> Node:
    """Return an overlay that lies over nothing: its nulls remove what is not there."""
    if not isinstance(over.value, dict):
        return over
    entries = {key: settle(node) for key, node in over.value.items() if node.value is not None}
    removed = {key: node for key, node in over.value.items() if node.value is None}
    return replace(over, value=entries, removed={**over.removed, **removed})


def stack(under: Node, over: Node, name: str = "") -> Node:
    """Return one overlay that does what `under` and then `over` would do; its nulls still remove."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict) or _other_kind(under, over, name):
        return over
    both = {
        key: stack(under.mapping[key], node, key) if key in under.mapping else node
        for key, node in over.mapping.items()
    }
    return replace(under, value={**under.mapping, **both})


def merge_study(base: Node, over: Node) -> Node:
    """Lay a study over a study: arms are overlays themselves, so a null inside an arm stays, and a null arm goes."""
    merged = merge(base, over)
    arms, under = over.mapping.get("arms"), base.mapping.get("arms")
    if arms is None or not isinstance(arms.value, dict):
        return merged
    both = stack(under, arms) if under is not None else arms
    gone = {name for name, arm in arms.mapping.items() if arm.value is None}
    kept = {name: arm for name, arm in both.mapping.items() if name not in gone}
    return replace(merged, value={**merged.mapping, "arms": replace(both, value=kept)})


def split_path(root: Node, dotted: str) -> list[str]:
    """Split `train.optimizer.base_lr` into keys; a key of `root` that holds dots is found as a whole."""
    keys: list[str] = []
    node: Node | None = root
    rest = dotted
    while rest:
        known = [key for key in (node.mapping if node else {}) if rest == key or rest.startswith(key + ".")]
        key = max(known, key=len, default=rest.split(".", 1)[0])
        keys.append(key)
        node = _below(node, key)
        rest = rest[len(key) :]
        if rest == ".":
            return [*keys, ""]
        rest = rest[1:]
    return keys or [""]


def _below(node: Node | None, key: str) -> Node | None:
    if node is None or isinstance(node.value, dict):
        return node.mapping.get(key) if node else None
    return node.items[int(key)] if _index(node, key) else None


def _index(node: Node | None, key: str) -> bool:
    return node is not None and key.isascii() and key.isdigit() and int(key[:9]) < len(node.items)


def put(over: Node | None, base: Node | None, keys: Sequence[str], value: Node) -> Node:
    """Return the overlay `over` with `value` at `keys`; a number among the keys picks an item of a list in `base`."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    path = value.path[: -len(keys)] if value.place == SET else value.path
    items = over if over is not None and over.items else base
    if items is not None and _index(items, key):
        row = list(items.items)
        row[int(key)] = merge(row[int(key)], put(None, row[int(key)], rest, value))
        return replace(value, value=row, path=path)
    below = over.mapping.get(key) if over else None
    entries = {**(over.mapping if over else {}), key: put(below, _below(base, key), rest, value)}
    return replace(value, value=entries, path=path)


def with_sets(root: Node, sets: Sequence[str], problems: list[Problem]) -> Node:
    """Lay `key=value` texts over a study, all of them at once, so that their order matters only for equal keys."""
    over: Node | None = None
    for text in sets:
        dotted, equals, value = text.partition("=")
        dotted = dotted.strip()
        keys = split_path(root, dotted)
        if not equals or not all(keys) or len(keys) > MAX_DEPTH:
            what = f"must be key=value, such as train.epochs=3, given {shown(text)}"
            problems.append(Problem(SET.file, 0, 0, "", what))
            continue
        try:
            node = read_text(value if value.strip() else "null", SET.file)
        except SpecError as error:
            problems.extend(Problem(SET.file, 0, 0, path_text((dotted,)), found.text) for found in error.problems)
            continue
        over = put(over, root, canonical(keys), moved(node, SET, tuple(keys)))
    return merge_study(root, over) if over else root


def canonical(keys: list[str]) -> list[str]:
    """Turn `task`, at the top or in an arm, into what it is short for."""
    start = 2 if keys[0] == "arms" else 0
    return [*keys[:start], "tasks", "main", *keys[start + 1 :]] if keys[start : start + 1] == ["task"] else keys


def moved(node: Node, place: Place, path: tuple[str | int, ...]) -> Node:
    """Return a tree that was read from a text without lines: everything stands at `place`, below `path`."""
    value = node.value
    if isinstance(value, dict):
        value = {key: moved(child, place, (*path, key)) for key, child in value.items()}
    elif isinstance(value, list):
        value = [moved(child, place, (*path, index)) for index, child in enumerate(value)]
    return Node(value, place, path, place if node.key else None)


def load_tree(path: Path, problems: list[Problem], above: Sequence[str] = ()) -> Node:
    """Read a study file with what it extends, `task` written out as `tasks: {main: ...}` in each file."""
    node = _without_shorthand(read(path), problems)
    over = node.mapping.get("extends")
    if over is None:
        return node
    here = [*above, os.path.realpath(path)]
    target = path.parent / str(over.value)
    why = _refusal(over, target, here)
    rest = replace(node, value={key: child for key, child in node.mapping.items() if key != "extends"})
    if why:
        problems.append(over.problem(why))
        return rest
    base = load_tree(target, problems, here)
    return replace(merge_study(base, rest), place=node.place)


def _refusal(over: Node, target: Path, here: Sequence[str]) -> str | None:
    if not isinstance(over.value, str) or not over.value:
        return f"must be the path of a study file, given {shown(over.data)}"
    if os.path.isabs(over.value):
        return f"must be a path relative to this file, given {shown(over.value)}"
    try:
        is_file = target.is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        return f"no such file: {printable(target, 200)}"
    if os.path.realpath(target) in here:
        return f"extends itself: {' → '.join(os.path.basename(p) for p in [*here, os.path.realpath(target)])}"
    return f"more than {MAX_EXTENDS} files extend one another" if len(here) >= MAX_EXTENDS else None


def _without_shorthand(node: Node, problems: list[Problem]) -> Node:
    node = _written_out(node, problems)
    arms = node.mapping.get("arms")
    if arms is None or not isinstance(arms.value, dict):
        return node
    written = {name: _written_out(arm, problems) for name, arm in arms.mapping.items()}
    return replace(node, value={**node.mapping, "arms": replace(arms, value=written)})


def _written_out(node: Node, problems: list[Problem]) -> Node:
    if "task" not in node.mapping:
        return node
    if "tasks" in node.mapping:
        text = "task is short for tasks: {main: ...}; use one of the two"
        problems.append(node.mapping["task"].problem(text, at_key=True))
        return node
    task = node.mapping["task"]
    tasks = Node({"main": task}, task.place, task.path, task.key)
    return replace(
        node, value={"tasks" if k == "task" else k: tasks if k == "task" else v for k, v in node.mapping.items()}
    )
