"""What every topic is given: a folder of its own, and what is found out once and shared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from .digits import Size, find_size


@dataclass
class Bench:
    """One run of the bench. `scale` multiplies the number of rounds."""

    root: Path
    scale: float
    tell: Callable[[str], None]

    @cached_property
    def size(self) -> Size:
        self.tell("finding the size of a step")
        return find_size()

    def folder(self, name: str) -> Path:
        """Return a fresh folder."""
        path = self.root / f"{len(list(self.root.iterdir()))}-{name}"
        path.mkdir()
        return path

    def rounds(self, usual: int) -> int:
        return max(3, round(usual * self.scale))
