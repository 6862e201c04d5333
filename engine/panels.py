"""What a plugin adds to viewer and report: sections of tables, series and text, made from a run's records.

An entry point of the group `ctr.panels` names a function `records -> list of Section`. It is called for every run that
is shown, reads nothing but the records it is given, and answers with an empty list where it has nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from .text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GROUP = "ctr.panels"
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows of equal length. Numbers are given as numbers; the renderer writes and aligns them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class SeriesPlot:
    """Series of the run, drawn over steps in one chart."""

    keys: Sequence[str]
    log: bool = False


@dataclass(frozen=True)
class Text:
    """Plain text; line breaks count, nothing else is interpreted."""

    text: str


@dataclass(frozen=True)
class Section:
    """One titled piece of a panel."""

    title: str
    body: Table | SeriesPlot | Text


class Records(Protocol):
    """What a panel may read of a run."""

    @property
    def name(self) -> str: ...

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """The records of the event log that still count, in order."""

    @property
    def spec(self) -> Mapping[str, Any]:
        """The resolved spec, empty where it cannot be read."""

    def series(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return steps and values of a series, both empty where there is none."""


Panel = Callable[[Records], list[Section]]


def installed() -> dict[str, Panel | Exception]:
    """Return every installed panel by name; one that cannot be loaded is its error, for display."""
    found: dict[str, Panel | Exception] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # a stranger's import may raise anything, and must not take the viewer down
            found[entry.name] = error
    return dict(sorted(found.items()))


def sections(records: Records, panels: Mapping[str, Panel | Exception]) -> list[Section]:
    """Ask every panel; what fails, or answers with something else, becomes a section that says so."""
    made: list[Section] = []
    for name, panel in panels.items():
        try:
            made += _asked(records, panel)
        except Exception as error:  # see above
            text = f"The panel failed: {type(error).__name__}: {printable(error, 500)}"
            made.append(Section(printable(name, 80), Text(text)))
    return made


def _asked(records: Records, panel: Panel | Exception) -> list[Section]:
    if isinstance(panel, Exception):
        raise panel
    answer = panel(records)
    if not isinstance(answer, list) or not all(_is_section(s) for s in answer):
        raise TypeError("a panel answers with a list of Section, each with a Table, SeriesPlot or Text")
    return answer


def _is_section(section: object) -> bool:
    if not isinstance(section, Section) or not isinstance(section.body, (Table, SeriesPlot, Text)):
        return False
    body = section.body
    return not isinstance(body, Table) or all(len(row) == len(body.columns) for row in body.rows)
