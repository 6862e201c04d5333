"""What the parts of the viewer tell one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textual.message import Message


@dataclass
class OpenRun(Message):
    """Somebody wants to see a run."""

    path: Path


@dataclass
class OpenStudy(Message):
    """Somebody wants to see a study."""

    path: Path


@dataclass
class Choose(Message):
    """A tab was clicked."""

    place: int
