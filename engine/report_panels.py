"""The panels of plugins in the report: the same sections that the viewer shows, as tables, text and small charts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape as _escape
from typing import TYPE_CHECKING, Any

from . import panels
from .text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .report_read import Run

WIDTH, HEIGHT, MOST_POINTS, MOST_ROWS = 640, 120, 320, 200


@dataclass(frozen=True)
class Records:
    """What a panel may read of a run, from the folder that the report reads."""

    run: Run

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        return self.run.events

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.run.spec

    def series(self, key: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        from .series import read_series

        return read_series(self.run.folder, key)


def sections(run: Run) -> list[dict[str, Any]]:
    """Ask every installed panel about a run, and return plain data that report.json can hold."""
    if not run.events:
        return []
    return [_plain(section, Records(run)) for section in panels.sections(Records(run), panels.installed())]


def _plain(section: panels.Section, records: Records) -> dict[str, Any]:
    body, title = section.body, printable(section.title, 200)
    if isinstance(body, panels.Text):
        return {"title": title, "text": [printable(line, 500) for line in body.text.splitlines()[:MOST_ROWS]]}
    if isinstance(body, panels.Table):
        rows = [[_cell(cell) for cell in row] for row in body.rows[:MOST_ROWS]]
        return {"title": title, "columns": [printable(column, 80) for column in body.columns], "rows": rows}
    return {"title": title, "log": body.log, "series": {printable(key, 80): _thin(records, key) for key in body.keys}}


def _cell(cell: panels.Cell) -> str:
    return "–" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else printable(cell, 200)


def _thin(records: Records, key: str) -> list[tuple[int, float]]:
    """Return at most so many finite points of a series, evenly spread; the last is always there."""
    steps, values = records.series(key)
    every = max(1, -(-len(steps) // MOST_POINTS))
    rows = list(zip(steps.tolist(), values.tolist(), strict=True))
    return [row for i, row in enumerate(rows) if (i % every == 0 or i == len(rows) - 1) and math.isfinite(row[1])]


def html(run: Mapping[str, Any]) -> str:
    """Return the sections of a run as HTML; empty where no panel had anything to say."""
    return "".join(f"<h3>{_text(section['title'])}</h3>{_body(section)}" for section in run["panels"])


def _text(value: object) -> str:
    return _escape(printable(value), quote=True)


def _body(section: Mapping[str, Any]) -> str:
    if "text" in section:
        return "".join(f"<p>{_text(line)}</p>" for line in section["text"])
    if "rows" in section:
        head = "".join(f"<th>{_text(column)}</th>" for column in section["columns"])
        rows = ("".join(f"<td>{_text(cell)}</td>" for cell in row) for row in section["rows"])
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return "".join(_chart(key, rows, section["log"]) for key, rows in section["series"].items())


def _chart(key: str, rows: Sequence[tuple[int, float]], log: bool) -> str:
    points = [(step, math.log10(value) if log else value) for step, value in rows if value > 0 or not log]
    if not points:
        return f"<p>{_text(key)}: no rows</p>"
    (x0, x1), (y0, y1) = ((min(column), max(column)) for column in zip(*points, strict=True))
    x_unit, y_unit = WIDTH / ((x1 - x0) or 1), (HEIGHT - 8) / ((y1 - y0) or 1)
    line = " ".join(f"{(x - x0) * x_unit:.1f},{HEIGHT - 4 - (y - y0) * y_unit:.1f}" for x, y in points)
    label = f"{key}: {rows[-1][1]:.4g} at step {rows[-1][0]}" + (" (logarithmic)" if log else "")
    return (
        f'<figure><figcaption>{_text(label)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" width="100%">'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg></figure>'
    )


def lines(run: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sections of a run as plain lines, for Markdown."""
    for section in run["panels"]:
        if "text" in section:
            told = section["text"]
        elif "rows" in section:
            told = [" · ".join(section["columns"]), *(" · ".join(row) for row in section["rows"])]
        else:
            told = [
                f"{key}: {rows[-1][1]:.4g} at step {rows[-1][0]}" for key, rows in section["series"].items() if rows
            ]
        yield from (f"{section['title']}: {line}" for line in told)
