"""Resolved specs as trees, and the difference between several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctr.engine.errors import CtrError

from .clean import plain

LACKING = "–"


def read_spec(folder: Path) -> Mapping[str, Any]:
    """Return the resolved spec of a run; empty where there is none or it cannot be read."""
    from ctr.engine.yaml_reader import read

    try:
        tree = read(folder / "spec.yaml").data
    except (OSError, CtrError, ValueError, AttributeError):
        return {}
    return tree if isinstance(tree, dict) else {}


def flat(tree: Any, prefix: str = "") -> dict[str, str]:
    """Return every leaf of a tree by its path; all printable."""
    if isinstance(tree, Mapping) and tree:
        found: dict[str, str] = {}
        for key, value in tree.items():
            found |= flat(value, f"{prefix}.{plain(key, 80)}" if prefix else plain(key, 80))
        return found
    if isinstance(tree, list) and any(isinstance(item, (Mapping, list)) for item in tree):
        found = {}
        for k, item in enumerate(tree):
            name = item.get("name") if isinstance(item, Mapping) else None
            found |= flat(item, f"{prefix}[{plain(name, 40) if isinstance(name, str) else k}]")
        return found
    return {prefix: plain(tree, 300)}


def differences(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the paths at which the trees differ, each with the value of every tree."""
    flats = [flat(tree) for tree in trees]
    paths = dict.fromkeys(path for one in flats for path in one)
    rows = [(path, [one.get(path, LACKING) for one in flats]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]
