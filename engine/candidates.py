"""Which plugin a user means: one that is installed, by name, or one that lies in a folder, by path. Loads no torch."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UsageError, guess
from .host import claim_problem
from .text import printable

GROUP = "ctr.plugins"


@dataclass(frozen=True)
class Candidate:
    """A plugin that may or may not load. `paths` must be importable from for it; `place` is where it is named."""

    name: str
    target: str
    source: str
    paths: tuple[str, ...] = ()
    place: str | None = None
    problem: str | None = None

    def document(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Candidate:
        return cls(**{**document, "paths": tuple(document["paths"])})

    def load(self) -> Any:
        """Return the class; raises whatever its module raises."""
        for path in self.paths:
            if path not in sys.path:
                sys.path.insert(0, path)
        return EntryPoint(self.name, self.target, GROUP).load()


def candidates(given: str) -> list[Candidate]:
    """Return what `given` names: an installed plugin, or every plugin of the project in a folder.

    Raises `UsageError` where there is none.
    """
    path = Path(given)
    if path.is_dir() or path.name == "pyproject.toml":
        return _project(path if path.is_dir() else path.parent)
    points = sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))
    found = [point for point in points if given in (point.name, printable(point.name, 80))]
    if not found:
        known = sorted({printable(point.name, 80) for point in points})
        text = f"no plugin {printable(given, 80)} is installed, and no such folder is here; installed: "
        raise UsageError(f"{text}{', '.join(known) or 'none'}.{guess(given, known)}")
    return [_installed(found[0], twice=len(found) > 1)]


def _installed(point: EntryPoint, twice: bool) -> Candidate:
    source = f"{point.dist.metadata['Name']} {point.dist.version}" if point.dist else "?"
    problem = claim_problem(point.name, twice)
    return Candidate(point.name, point.value, printable(source, 120), place=_file_of(point.module), problem=problem)


def _file_of(module: str) -> str | None:
    try:
        found = find_spec(module)
    except BaseException:  # a stranger's package may raise anything while its child is looked for
        return None
    return f"{printable(found.origin, 300)}:1" if found is not None and found.origin else None


def _project(folder: Path) -> list[Candidate]:
    """Return the plugins that a project's `pyproject.toml` names, whether it is installed or not."""
    file = folder / "pyproject.toml"
    try:
        text = file.read_text(encoding="utf-8")
        points = tomllib.loads(text).get("project", {}).get("entry-points", {}).get(GROUP, {})
    except (OSError, ValueError) as error:
        raise UsageError(f"{printable(file)}: cannot be read as a project: {printable(error, 300)}") from error
    if not isinstance(points, Mapping) or not points:
        raise UsageError(f'{printable(file)}: names no plugin under [project.entry-points."{GROUP}"]')
    return list(_named(folder.resolve(), text, points))


def _named(folder: Path, text: str, points: Mapping[str, Any]) -> Iterator[Candidate]:
    roots = tuple(str(path) for path in (folder, folder / "src") if path.is_dir())
    lines = text.splitlines()
    for name, target in sorted(points.items()):
        marks = (name, name.encode("unicode_escape").decode())
        line = next((i for i, row in enumerate(lines, 1) if str(target) in row or any(m in row for m in marks)), 1)
        place = f"{printable(folder / 'pyproject.toml', 300)}:{line}"
        problem = claim_problem(name, False) or (None if isinstance(target, str) else "its target must be a text")
        yield Candidate(name, str(target), printable(folder, 200), roots, place, problem)
