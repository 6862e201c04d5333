"""Where `ctr` begins: a command with a short way of its own takes it, every other one is read by the command line.

Loading what reads a command line takes longer than loading the viewer. A package may therefore name a function in the
group `ctr.quick`, under the name of its command in `ctr.commands`: it is given the words after that name, and answers
whether it took them. Words that it does not take, such as options, go the whole way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

GROUP, WHOLE = "ctr.quick", "ctr.commands"
Quick = Callable[[Sequence[str]], bool]


def main() -> None:
    """Run `ctr` with the words of this process."""
    words = sys.argv[1:]
    quick = find(words[0]) if words else None
    if quick is None or not quick(words[1:]):
        from .cli import main as whole

        whole()


def find(name: str) -> Quick | None:
    """Return the short way of a command; None unless one package alone claims both the way and the command."""
    if not name.isidentifier():
        return None
    claims = [(owner, group, value) for owner, group, key, value in declared(sys.path) if key == name]
    ways = [(owner, value) for owner, group, value in claims if group == GROUP]
    commands = [owner for owner, group, _ in claims if group == WHOLE]
    if len(ways) != 1 or commands != [ways[0][0]]:
        return None
    module, _, attribute = ways[0][1].partition(":")
    try:
        found: Quick = getattr(import_module(module), attribute)
    except Exception:  # a broken package says so where its command is loaded
        return None
    return found


def declared(path: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Return (package, group, name, value) of the entry points of groups `ctr.…` of all packages on a path.

    What `importlib.metadata` would say of installed folders, without the fiftieth of a second that loading it takes.
    """
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    for folder in path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            stem, dot, kind = name.rpartition(".")
            owner = stem.partition("-")[0].lower().replace(".", "_")
            if kind in ("dist-info", "egg-info") and dot and owner not in found:
                found[owner] = _points(owner, os.path.join(folder or ".", name, "entry_points.txt"))
    return [point for points in found.values() for point in points]


def _points(owner: str, file: str) -> list[tuple[str, str, str, str]]:
    try:
        with open(file, encoding="utf-8", errors="replace") as source:
            text = source.read()
    except OSError:
        return []
    out, group = [], ""
    for line in text.splitlines() if "ctr." in text else ():
        line = line.strip()
        if line.startswith("["):
            group = line.strip("[] ")
        elif group.startswith("ctr.") and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            out.append((owner, group, name.strip(), value.partition("[")[0].strip()))
    return out
