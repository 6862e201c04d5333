"""Expand a sweep into points: a grid over dotted keys, each point with values and a name that is safe as a file."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .nodes import Node, scalar_text, shown
from .overlay import canonical, merge, put, split_path
from .spec_problems import Checker, unknown
from .text import slug_problem
from .train_spec import MATCHED
from .yaml_reader import MAX_DEPTH

RUN_KEYS = ("model", "adapter", "task", "tasks", "train", "phases", "plugins")
MAX_POINTS = 1_000
_SAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Point:
    """One choice of values of a sweep, by dotted key."""

    values: Mapping[str, Node]

    @property
    def data(self) -> dict[str, Any]:
        return {key: node.data for key, node in self.values.items()}

    def applied(self, tree: Node) -> Node:
        """Return a run's tree with the point's values laid over it."""
        over: Node | None = None
        for key, node in self.values.items():
            over = put(over, tree, canonical(split_path(tree, key)), node)
        return merge(tree, over) if over else tree


def points(sweeps: Iterable[Node | None], tree: Node, checker: Checker) -> list[Point]:
    """Return the grid over the sweeps of a study and of an arm; one empty point where nothing is swept."""
    axes: dict[str, list[Node]] = {}
    for sweep in sweeps:
        for key, values in _axes(sweep, tree, checker).items():
            if key in axes:
                checker.add(values.problem("is swept at the top of the study too; keep one", at_key=True))
            axes[key] = [replace(value, key=values.key) for value in values.items]
    count = math.prod(map(len, axes.values()))
    if count > MAX_POINTS:
        widest = next(axis[0] for axis in axes.values() if axis)
        checker.add(widest.problem(f"the sweep has {count} points; {MAX_POINTS} are allowed"))
        return []
    found = [Point(dict(zip(axes, row, strict=True))) for row in itertools.product(*axes.values())]
    _check_names(found, checker)
    return found


def _axes(sweep: Node | None, tree: Node, checker: Checker) -> dict[str, Node]:
    if sweep is None or sweep.value is None:
        return {}
    if not isinstance(sweep.value, dict):
        checker.add(sweep.problem(f"must be a mapping of settings to lists of values, given {shown(sweep.data)}"))
        return {}
    axes: dict[str, Node] = {}
    for key, values in sweep.mapping.items():
        keys = split_path(tree, key)
        if not all(keys) or len(keys) > MAX_DEPTH:
            checker.add(values.problem("must be keys joined by dots, such as train.optimizer.base_lr", at_key=True))
        elif keys[0] not in RUN_KEYS:
            checker.add(values.problem(unknown(keys[0], RUN_KEYS), at_key=True))
        elif keys[0] == "train" and (len(keys) == 1 or keys[1] in MATCHED):
            checker.add(values.problem("is one for the whole study, so that runs are matched", at_key=True))
        elif not values.items:
            checker.add(values.problem(f"must be a list of one or more values, given {shown(values.data)}"))
        else:
            axes[key] = values
    return axes


def _check_names(found: Iterable[Point], checker: Checker) -> None:
    seen: dict[str, Point] = {}
    for point in found:
        name = point_name(point.data)
        if name.lower() in seen:
            clash = [node for key, node in point.values.items() if node is not seen[name.lower()].values.get(key)]
            checker.add(clash[-1].problem(f"makes a second point {name}; values must differ in their names"))
        seen.setdefault(name.lower(), point)


def point_name(values: Mapping[str, Any]) -> str:
    """Return the name of a point, the same whatever else is swept: `base_lr-0.01_width-8`; empty for no values."""
    last = [key.rsplit(".", 1)[-1] for key in values]
    shorts = [key if last.count(short) > 1 else short for key, short in zip(values, last, strict=True)]
    parts = [f"{_slug(short)}-{_value_slug(value)}" for short, value in zip(shorts, values.values(), strict=True)]
    name = "_".join(parts)
    return f"{name[:50].rstrip('.')}-{_hash(dict(values))}" if name and slug_problem(name) else name


def _value_slug(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        return _slug(value["kind"]) + (f"-{_hash(value)}" if len(value) > 1 else "")
    if isinstance(value, Mapping | list | tuple):
        return _hash(value)
    return _slug("none" if value is None else value if isinstance(value, str) else scalar_text(value).lstrip("."))


def _slug(text: str) -> str:
    safe = re.sub(r"\.\.+", ".", _SAFE.sub("-", text)).strip(".")[:40]
    return safe if safe == text else f"{safe}-{_hash(text)}".lstrip("-.")


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:6]
