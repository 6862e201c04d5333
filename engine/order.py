"""What a run is asked to do, and how it ended; what passes between a study and the processes that train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """What to run and where.

    `sources` are the run folders that `RunRef` settings resolved to, `refs` the identities of these runs.
    """

    run: Any
    folder: Path
    identity: str
    fingerprints: Mapping[str, str]
    threads: int
    sources: Mapping[str, Path]
    take_over: bool = False
    refs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `kept`, `finished`, `failed` or `stopped`, with the exit code of its error."""

    name: str
    status: str
    code: int = 0
    error: str | None = None

    @property
    def good(self) -> bool:
        return self.status in ("kept", "finished")
