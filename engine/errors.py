"""Every error that ctr raises on purpose, with the exit code it ends a command with.

CtrError                 1   something in ctr itself
├── UsageError           2   a command was called wrongly
├── SpecError            3   a spec is wrong; carries every problem found
├── DataError            3   data are missing, malformed, or not what the spec says
├── MissingDependency    4   an optional package is not installed
├── GuardError           5   a number that must be finite is not; carries the culprit
├── VerificationError    6   something that should be equal is not
├── FolderOwned          7   another process, or another identity, owns the run folder
├── StorageError         1   the disk refused; carries path and reason
│   └── CheckpointError  1   no checkpoint can be read, or one could not be written
├── PluginError          1   a plugin broke its contract or raised; names plugin, hook, phase, step
└── Interrupted        130   asked to stop; a checkpoint was committed first
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class CtrError(Exception):
    """The base of every error above."""

    exit_code = 1


class UsageError(CtrError):
    exit_code = 2


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong in a spec: `file:line:column: path: what`, with what was given and what is allowed."""

    file: str
    line: int
    column: int
    path: str
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.path + ': ' if self.path else ''}{self.text}"


class SpecError(CtrError):
    """A spec is wrong. `problems` holds all that was found, in the order of the file."""

    exit_code = 3

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(problems)
        super().__init__("\n".join(map(str, self.problems)))


class DataError(CtrError):
    exit_code = 3


class MissingDependency(CtrError):
    exit_code = 4


class GuardError(CtrError):
    """A number that must be finite is not. `culprit` names the part; nothing moved from `step` on."""

    exit_code = 5

    def __init__(self, text: str, *, culprit: str = "", step: int | None = None) -> None:
        super().__init__(text)
        self.culprit = culprit
        self.step = step


class VerificationError(CtrError):
    exit_code = 6


class FolderOwned(CtrError):
    exit_code = 7


class StorageError(CtrError):
    """The disk refused. The message holds the path and the operating system's reason."""


class CheckpointError(StorageError):
    pass


class PluginError(CtrError):
    """A plugin broke its contract or raised; the message names plugin, hook, phase and step where known."""

    def __init__(
        self, text: str, *, plugin: str = "", hook: str = "", phase: str | None = None, step: int | None = None
    ) -> None:
        super().__init__(text)
        self.plugin, self.hook, self.phase, self.step = plugin, hook, phase, step


class Interrupted(CtrError):
    exit_code = 130


def guess(given: str, known: Iterable[str]) -> str:
    """Return `Did you mean X?` with a leading space, or nothing when no known name is close."""
    close = get_close_matches(given[:64], sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]}?" if close else ""
