"""Writes `docs/gallery.md` from the cards that lie beside plugins: `python -m tests.gallery`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from ctr.engine.candidates import candidates
from ctr.engine.host import implementations

ROOT = Path(__file__).parents[1]
HEAD = """\
# Gallery

What plugins there are, from their cards: `ctr plugins NAME` prints a whole one. Built-ins enter by the same door as the
others, and all pass the same laws. This page is written by `python -m tests.gallery`.
"""


def text() -> str:
    """Return the page for what is built in, and for the third-party plugins that lie in `tests/fixtures`."""
    built_in = sorted(distribution("ctr-engine").entry_points.select(group="ctr.plugins"))
    strangers = [one for folder in sorted((ROOT / "tests/fixtures").glob("ctr-*")) for one in candidates(str(folder))]
    before = list(sys.path)
    try:
        parts = ["## Built in", *(part for point in built_in for part in _entry(point.name, point.load()))]
        parts += ["## Made with the kit", *(part for one in strangers for part in _entry(one.name, one.load()))]
    finally:
        sys.path[:] = before
    return HEAD + "\n" + "\n\n".join(parts) + "\n"


def _entry(name: str, kind: Any) -> Iterator[str]:
    yield f"### {name}"
    yield (kind.__doc__ or "").strip().splitlines()[0]
    yield f"Hooks: {', '.join(f'`{hook}`' for hook in implementations(kind))}."
    source = Path(str(sys.modules[kind.__module__].__file__)).parent / "README.md"
    card = source.read_text(encoding="utf-8")
    yield card.split("## When\n")[1].split("\n## ")[0].strip()


if __name__ == "__main__":
    (ROOT / "docs" / "gallery.md").write_text(text(), encoding="utf-8")
