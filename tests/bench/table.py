"""A measured number beside its bar, and the table and JSON of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Row:
    """One number, and a second reading beside it: the paired median where the section says nothing else.

    The bar is a most, or a least where `least` says so.
    """

    what: str
    value: float
    unit: str
    median: float | None = None
    bar: float | None = None
    least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Say whether the bar is met; None where there is no bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.least else self.value <= self.bar

    def document(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Section:
    """What one topic found, and how it measured."""

    title: str
    method: str
    rows: Sequence[Row]
    columns: tuple[str, str] = ("measured", "median")

    def document(self) -> dict[str, Any]:
        rows = [row.document() for row in self.rows]
        return {"title": self.title, "method": self.method, "columns": list(self.columns), "rows": rows}


def draw(sections: Iterable[Section], console: Console) -> None:
    """Print every section with its method beneath the title."""
    for section in sections:
        console.print()
        console.print(Text(section.title, style="bold"))
        console.print(Text(section.method, style="dim"))
        console.print(_table(section))


def _table(section: Section) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for column in (*section.columns, "bar"):
        table.add_column(column, justify="right")
    table.add_column("")
    table.add_column("")
    for row in section.rows:
        bar = "" if row.bar is None else f"{'≥' if row.least else '≤'} {row.bar:g} {row.unit}"
        median = "" if row.median is None else _number(row.median, row.unit)
        verdict = {True: Text("met", style="green"), False: Text("missed", style="red"), None: Text("")}[row.met]
        table.add_row(
            Text(row.what), Text(_number(row.value, row.unit)), Text(median), Text(bar), verdict, Text(row.note)
        )
    return table


def _number(value: float, unit: str) -> str:
    digits = 3 if unit == "×" and value < 2 else 1 if abs(value) >= 10 or unit == "×" else 2
    return f"{value:.{digits}f} {unit}"


def document(about: Mapping[str, Any], sections: Mapping[str, Section]) -> dict[str, Any]:
    """Return all that was measured as plain data, by topic."""
    return {"about": dict(about), "topics": {name: section.document() for name, section in sections.items()}}
