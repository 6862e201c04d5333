"""Panels of plugins, asked for and shown: tables, series and text, all of it cleaned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.text import Text
from textual.widget import Widget
from textual.widgets import Static

from ctr.engine import panels
from ctr.engine.errors import CtrError
from ctr.engine.series import read_series
from ctr.tui import pictures
from ctr.tui.follow import RunStore

from . import ticks
from .clean import clean, fit, plain
from .texts import wrapped
from .widgets.chart import Chart

MOST_ROWS = 500


class _Records:
    """A run as panels may read it."""

    def __init__(self, store: RunStore) -> None:
        self.name = store.path.name
        self.events: Sequence[Mapping[str, Any]] = store.history.records
        self._path = store.path

    @property
    def spec(self) -> Mapping[str, Any]:
        from .specs import read_spec

        return read_spec(self._path)

    def series(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        try:
            return read_series(self._path, key)
        except (OSError, CtrError, ValueError):
            return np.empty(0, np.int64), np.empty(0, np.float64)


def ask(store: RunStore) -> list[panels.Section]:
    """Ask every installed panel about this run."""
    return panels.sections(_Records(store), panels.installed())


def widgets(sections: Sequence[panels.Section]) -> list[Widget]:
    """Make a widget for each section."""
    if not sections:
        return [Static(Text("No plugin of this run has anything to show here.", "dim"), classes="pad")]
    made: list[Widget] = []
    for section in sections:
        body = section.body
        widget: Widget
        if isinstance(body, panels.SeriesPlot):
            widget = SectionChart(body)
        elif isinstance(body, panels.Table):
            widget = SectionTable(body)
        else:
            text = Text("\n", end="").join([clean(line) for line in body.text.splitlines()[:MOST_ROWS]])
            widget = Static(text, classes="box")
        widget.border_title = plain(section.title, 80).replace("[", "\\[")
        made.append(widget)
    return made


class SectionTable(Static):
    """A table that a panel asked for, laid out for the room it has."""

    def __init__(self, body: panels.Table) -> None:
        super().__init__(classes="box")
        self.body = body

    def on_resize(self) -> None:
        self.update(table(self.body, max(self.content_size.width, 20)))


class SectionChart(Chart):
    """A chart that a panel asked for."""

    def __init__(self, body: panels.SeriesPlot) -> None:
        super().__init__(classes="box section-chart")
        self.body = body


def redraw(parent: Widget, store: RunStore) -> None:
    for chart in parent.query(SectionChart):
        chart.show(pictures.standard(store, list(chart.body.keys)[:8], log=chart.body.log))


def table(body: panels.Table, width: int) -> Text:
    """Write a table with aligned columns, numbers to the right; a last column of text goes on below itself."""
    rows = [[_cell(value) for value in row] for row in body.rows[:MOST_ROWS]]
    heads = [plain(c, 60) for c in body.columns]
    columns = range(len(heads))
    widths = [max([cell_len(heads[k]), *(min(cell_len(row[k]), 70) for row in rows)]) for k in columns]
    numeric = [bool(body.rows) and not any(isinstance(row[k], str) for row in body.rows) for k in columns]
    left = sum(widths[:-1]) + 2 * (len(heads) - 1)
    if heads and not numeric[-1]:
        widths[-1] = max(width - left, 10)
    out = Text(end="", no_wrap=True)
    out.append("  ".join(fit(heads[k], widths[k], numeric[k]) for k in columns), "bold")
    for row in rows:
        last = wrapped(row[-1], widths[-1]) if row and not numeric[-1] else row[-1:]
        cells = [fit(row[k], widths[k], numeric[k]) for k in columns[:-1]]
        out.append("\n" + "  ".join([*cells, fit(last[0] if last else "", widths[-1], numeric[-1])]), "")
        for more in last[1:]:
            out.append("\n" + " " * left + more)
    return out


def _cell(value: object) -> str:
    if isinstance(value, bool) or isinstance(value, str):
        return plain(value, 500)
    if isinstance(value, int):
        return ticks.count(value)
    return ticks.number(value)
