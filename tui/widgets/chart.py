"""A chart: textual-plot's limits, zoom and pan, with our own drawing.

The library drops values that are not finite (and so draws a line across the gap), cannot shade, parses labels as
markup and divides by zero on ranges that are too narrow; it also draws point by point, on seven widgets that each want
a style and a place. Drawing here is numpy on a pyramid and one widget of lines, so a chart of any length costs a few
milliseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from rich.cells import cell_len
from rich.style import Style
from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual_plot import PlotWidget

from ctr.tui import colours, raster, ticks
from ctr.tui.bindings import bindings
from ctr.tui.curves import Curve, cut_band, cut_line, least_of, value_at, wider
from ctr.tui.picture import Band, Line, Picture

from .canvas import Cells, Sheet

LEFT = 9
BAD = "×"


class Parts:
    """The plot with its axes, and the margins around it: a legend above, numbers to the left and below."""

    def __init__(self, width: int, height: int, top: int) -> None:
        self.top = Sheet(width, min(top, height))
        self.bottom = Sheet(width, min(1, height - self.top.height))
        rows = height - self.top.height - self.bottom.height
        self.left = Sheet(min(LEFT, width), rows)
        self.plot = Sheet(width - self.left.width, rows)

    def strips(self, base: Style) -> list[Strip]:
        middle = self.left.beside(self.plot)
        return [line for sheet in (self.top, middle, self.bottom) for line in sheet.strips(base)]


class Chart(PlotWidget, inherit_bindings=False):
    """One picture with a cursor. `cursor` is a position on the axis, or None while it follows the newest row."""

    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("chart"))

    @dataclass
    class CursorMoved(Message):
        chart: Chart
        x: float | None

    def __init__(self, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self.picture = Picture()
        self.cursor: float | None = None
        self.set_reactive(PlotWidget.margin_left, LEFT)
        self.set_reactive(PlotWidget.margin_top, 1)
        self.set_reactive(PlotWidget.margin_bottom, 1)
        self._pressed: tuple[int, int] | None = None
        self._scale_rectangle = Region(1, 0, 1, 1)
        self._lines: list[Strip] = []

    # what is shown

    def show(self, picture: Picture) -> None:
        """Take a picture and draw it at the next paint."""
        if picture.log != self.picture.log:
            self._auto_y_min = self._auto_y_max = True
        self.picture = picture
        self._fit_legend()
        self._rerender()

    def _fit_legend(self) -> None:
        """Give the legend a second and a third row where its names need them and the chart is high enough."""
        most = 3 if self.size.height >= 16 else 2 if self.size.height >= 9 else 1
        rows = min(max(len(self._legend_rows()), 1), most)
        if self.is_mounted and rows != self.margin_top:
            self.margin_top = rows

    def _legend_rows(self) -> list[list[Line | Band]]:
        """Break the legend into rows of items that fit the width."""
        rows: list[list[Line | Band]] = [[]]
        room = width = max(self.size.width - 6 - cell_len(self.picture.title), 12)
        items: list[Line | Band] = [*self.picture.lines, *self.picture.bands]
        for item in items:
            need = cell_len(item.label) + 14  # a sample, a value, and space
            if rows[-1] and need > room:
                rows.append([])
                room = width
            rows[-1].append(item)
            room -= need
        return rows

    def set_cursor(self, x: float | None) -> None:
        if x != self.cursor:
            self.cursor = x
            self._rerender()

    @property
    def view(self) -> tuple[float, float]:
        return self._x_min, self._x_max

    @property
    def zoomed(self) -> bool:
        return not self._auto_x_min

    def look_at(self, view: tuple[float, float] | None) -> None:
        """Set the visible stretch of the axis; None shows all and follows the end."""
        self._auto_x_min = self._auto_x_max = view is None
        if view is not None:
            self._x_min, self._x_max = view
        self._rerender()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._needs_rerender = True

    @on(events.Resize)
    def _resized(self) -> None:
        self._rerender()

    # drawing

    def compose(self) -> ComposeResult:
        """The library would make a widget of each margin; here they are parts of the lines."""
        return ()

    def _update_legend(self) -> None:
        """The legend is our own first row; the library's reads labels as markup."""

    def _position_legend(self) -> None:
        """See above."""

    def _update_margin_sizes(self) -> None:
        self._rerender()

    def render_line(self, y: int) -> Strip:
        if self._needs_rerender:
            self._render_plot()
        return self._lines[y] if y < len(self._lines) else Strip.blank(self.size.width, self.rich_style)

    def _render_plot(self) -> None:
        self._needs_rerender = False
        (all_width, all_height), top = self.size, self.margin_top
        parts = Parts(all_width, all_height, top)
        width, height = parts.plot.width - 1, parts.plot.height - 1
        if width < 7 or height < 2:
            self._scale_rectangle = Region(1, 0, 1, 1)  # the library divides by its sides
        else:
            self._scale_rectangle = Region(1, 0, width, height)
            with np.errstate(over="ignore", invalid="ignore"):  # a range near the largest float is still drawn
                self._draw(parts, width, height)
        self._lines = parts.strips(self.rich_style)

    def _draw(self, parts: Parts, width: int, height: int) -> None:
        if not self._filled():
            note = self.picture.note
            parts.plot.put(max((width - len(note)) // 2, 1), height // 2, note, self._foreground)
            return
        self._limit_x()
        curves = self._curves(width * 2)
        self._limit_y(curves)
        cells = Cells(width, height)
        self._shade(cells)
        for curve in curves:
            self._draw_curve(cells, curve)
        self._draw_levels(cells)
        self._name_shades(cells)
        self._draw_bad(cells, curves)
        self._draw_cursor(cells)
        cells.copy_to(parts.plot, 1, 0)
        self._draw_axes(parts, width, height)
        self._draw_legend(parts.top)

    def _filled(self) -> bool:
        """Say whether any row can be drawn."""
        return any(line.data.size for line in self.picture.lines) or any(len(b.x) for b in self.picture.bands)

    def _limit_x(self) -> None:
        low, high = self.picture.extent()
        if self._auto_x_min or not math.isfinite(self._x_min):
            self._x_min = low
        if self._auto_x_max or not math.isfinite(self._x_max):
            self._x_max = high
        self._x_min, self._x_max = wider(self._x_min, self._x_max, least=max((high - low) * 1e-6, 1e-6))

    def _curves(self, columns: int) -> list[Curve]:
        x = np.linspace(self._x_min, self._x_max, columns + 1)
        log = self.picture.log
        return [cut_line(line, self.picture.axis, x, log) for line in self.picture.lines] + [
            cut_band(band, x, log) for band in self.picture.bands
        ]

    def _limit_y(self, curves: list[Curve]) -> None:
        lows = [least_of(np.fmin, c.columns.low, c.columns.edge) for c in curves]
        highs = [least_of(np.fmax, c.columns.high, c.columns.edge) for c in curves]
        low = min((v for v in lows if math.isfinite(v)), default=0.0)
        high = max((v for v in highs if math.isfinite(v)), default=1.0)
        pad = (high - low) * 0.04
        if self._auto_y_min or not math.isfinite(self._y_min):
            self._y_min = low - pad if math.isfinite(low - pad) else low
        if self._auto_y_max or not math.isfinite(self._y_max):
            self._y_max = high + pad if math.isfinite(high + pad) else high
        size = max(abs(self._y_min), abs(self._y_max))
        self._y_min, self._y_max = wider(self._y_min, self._y_max, least=max(size * 1e-6, 1e-290) if size else 1e-6)

    @property
    def _dark(self) -> bool:
        return bool(self.app.current_theme.dark)

    @property
    def _paper(self) -> str:
        return self.background_colors[1].hex6.lower()

    def _mono(self) -> bool:
        return self.app.no_color

    def _shade(self, cells: Cells) -> None:
        for shade in self.picture.shades:
            first, last = self._column(shade.start, cells.width), self._column(shade.end, cells.width) - 1
            if last < 0 or first >= cells.width or last < first:
                continue
            colour = colours.mix(colours.series(shade.colour, self._dark), self._paper, 0.16)
            cells.shade(first, last, colour)

    def _name_shades(self, cells: Cells) -> None:
        """Write the name of each stretch where no line runs through it: above, or else below."""
        for shade in self.picture.shades:
            first = max(self._column(shade.start, cells.width), 0)
            room = min(self._column(shade.end, cells.width), cells.width) - first
            name = shade.name[: max(room, 0)]
            if room < 4:
                continue
            style = colours.mix(colours.series(shade.colour, self._dark), self._paper, 0.75)
            row = next((y for y in (0, cells.height - 1, 1) if cells.empty(first, y, cell_len(name))), None)
            if row is not None:
                cells.write(first, row, name, style)

    def _column(self, x: float, width: int) -> int:
        share = (x - self._x_min) / (self._x_max - self._x_min)
        return int(np.clip(math.floor(share * width), -1, width)) if math.isfinite(share) else -1

    def _draw_curve(self, cells: Cells, curve: Curve) -> None:
        colour = colours.series(curve.item.colour, self._dark)
        rows = cells.height * 4
        pattern = curve.item.colour if self._mono() else 0
        if isinstance(curve.item, Band):
            area = raster.fill(curve.columns.low, curve.columns.high, self._y_min, self._y_max, rows)
            at = np.add.outer(np.arange(rows) * 2, np.arange(area.shape[1]))
            cells.dots(area & (at % 4 == 0), colours.mix(colour, self._paper, 0.6))
        dots = raster.line(curve.columns, self._y_min, self._y_max, rows)
        if isinstance(curve.item, Line):
            faint = curve.smooth is not None
            cells.dots(raster.dashed(dots, pattern), colours.mix(colour, self._paper, 0.4) if faint else colour)
        if curve.smooth is not None:
            cells.dots(
                raster.dashed(raster.line(curve.smooth, self._y_min, self._y_max, rows), pattern), f"bold {colour}"
            )

    def _draw_levels(self, cells: Cells) -> None:
        for level in self.picture.levels:
            y = math.log10(level.y) if self.picture.log and level.y > 0 else level.y
            row = raster.rows_of(np.array([y]), self._y_min, self._y_max, cells.height)[0]
            if not (math.isfinite(row) and -0.5 <= row < cells.height - 0.5):
                continue
            style = colours.mix(self._foreground, self._paper, 0.5)
            line = max(0, round(float(row)))
            for x in range(0, cells.width, 2):
                if cells.empty(x, line, 1):
                    cells.write(x, line, "╌", style)
            cells.write(max(cells.width - cell_len(level.name) - 1, 0), line, level.name, style)

    @property
    def _foreground(self) -> str:
        return "#e8edf5" if self._dark else "#1c2430"

    def _draw_bad(self, cells: Cells, curves: list[Curve]) -> None:
        """Mark every column that holds a value which is not finite: the gap alone could be taken for missing data."""
        style = "bold " + colours.status("failed", self._dark)[1]
        for curve in curves:
            bad = curve.columns.bad
            if not bad.any():
                continue
            for x in np.unique(np.flatnonzero(bad) // 2).tolist():
                cells.write(int(x), cells.height - 1, BAD, style)

    def _draw_cursor(self, cells: Cells) -> None:
        if self.cursor is None:
            return
        x = self._column(self.cursor, cells.width)
        if 0 <= x < cells.width:
            cells.shade(x, x, colours.mix(self._foreground, self._paper, 0.22))
            for y in range(cells.height):
                if cells.empty(x, y, 1):
                    cells.write(x, y, "┊", self._foreground)

    def _draw_axes(self, parts: Parts, width: int, height: int) -> None:
        plot, left, bottom = parts.plot, parts.left, parts.bottom
        frame = colours.mix(self._foreground, self._paper, 0.9 if self.has_focus else 0.35)
        words = colours.mix(self._foreground, self._paper, 0.7)
        for y in range(height):
            plot.put(0, y, "│", frame)
        plot.put(0, height, "└" + "─" * width, frame)
        numbers = ticks.decades if self.picture.log else ticks.nice
        at = numbers(self._y_min, self._y_max, max(2, height // 3))
        for tick, text in zip(at, ticks.labels(at, self.picture.log), strict=True):
            row = round(float(raster.rows_of(np.array([tick]), self._y_min, self._y_max, height)[0]))
            if 0 <= row < height:
                plot.put(0, row, "┤", frame)
                left.put(max(LEFT - 1 - len(text), 0), row, text, words)
        at = ticks.nice(self._x_min, self._x_max, max(2, width // 14))
        free = 0
        name = self.picture.axis.name
        for tick, text in zip(at, ticks.labels(at), strict=True):
            x = self._column(tick, width)
            start = LEFT + 1 + x - len(text) // 2
            if 0 <= x < width and start >= free and start + len(text) < LEFT + width - len(name):
                plot.put(x + 1, height, "┬", frame)
                bottom.put(start, 0, text, words)
                free = start + len(text) + 1
        bottom.put(LEFT + 1 + width - len(name), 0, name, frame)
        for mark in self.picture.marks:
            x = self._column(mark.x, width)
            if 0 <= x < width:
                plot.put(x + 1, height, mark.sign, "bold " + colours.series(5, self._dark))

    def _draw_legend(self, top: Sheet) -> None:
        width, start = top.width, 1
        if self.picture.title:
            top.put(start, 0, self.picture.title, f"bold {self._foreground}")
            start += cell_len(self.picture.title) + 2
        rows = self._legend_rows()
        for y, row in enumerate(rows[: top.height]):
            x = start
            for item in row:
                text, colour = f"{item.label} {self._value_text(item)}", colours.series(item.colour, self._dark)
                top.put(x, y, _sample(item.colour, self._mono()), f"bold {colour}")
                top.put(x + 3, y, text, colour)
                x += cell_len(text) + 5
        hidden = sum(map(len, rows[top.height :]))
        note = (f"+{hidden} " if hidden else "") + ("log" if self.picture.log else "")
        top.put(width - len(note.strip()) - 1, top.height - 1, note.strip(), f"bold {self._foreground}")

    def _value_text(self, item: Line | Band) -> str:
        value = value_at(item, self.picture.axis, self.cursor)
        return ticks.number(value) if value is not None else ""

    # keys and mouse

    def action_cursor(self, columns: int) -> None:
        """Move the cursor by columns of cells; past the newest row it follows again."""
        width = max(self._scale_rectangle.width, 1)
        cell = (self._x_max - self._x_min) / width
        low, high = self.picture.extent()
        x = (self.cursor if self.cursor is not None else min(high, self._x_max)) + columns * cell
        if x < self._x_min and self.zoomed:
            self._pan(abs(columns), 0)
        if x > self._x_max and self.zoomed:
            self._pan(-abs(columns), 0)
        self._move_to(None if x > high + cell / 2 else max(low, x))

    def action_cursor_end(self, end: str) -> None:
        self._move_to(self.picture.extent()[0] if end == "first" else None)

    def _move_to(self, x: float | None) -> None:
        self.set_cursor(x)
        self.post_message(self.CursorMoved(self, x))

    def action_zoom(self, factor: float, vertical: bool = False) -> None:
        """Zoom about the cursor, or about the newest row while it follows."""
        x = self.cursor if self.cursor is not None else self._x_max
        y = (self._y_min + self._y_max) / 2
        self._zoom(x, y, factor, zoom_x=not vertical, zoom_y=vertical)

    def action_pan(self, x: float, y: float) -> None:
        self._pan(x * self._scale_rectangle.width, y * self._scale_rectangle.height)

    def action_reset_scales(self) -> None:
        self._auto_y_min = self._auto_y_max = True
        self.look_at(None)
        self._move_to(None)
        self.post_message(self.ScaleChanged(self, self._x_min, self._x_max, self._y_min, self._y_max))

    @on(events.MouseDown)
    def _press(self, event: events.MouseDown) -> None:
        self._pressed = (event.screen_x, event.screen_y)

    @on(events.MouseUp)
    def _release(self, event: events.MouseUp) -> None:
        """A click without a drag puts the cursor there."""
        pressed, self._pressed = self._pressed, None
        x = event.x - LEFT
        if pressed == (event.screen_x, event.screen_y) and x >= 1 and self._part(event.x, event.y) == "plot":
            self._move_to(self.get_coordinate_from_pixel(x, 0)[0])

    def _part(self, x: int, y: int) -> str:
        """Return which part of the chart a cell belongs to."""
        if y < self.margin_top:
            return "top"
        if y >= self.size.height - 1:
            return "bottom"
        return "left" if x < LEFT else "plot"

    def _zoom_with_mouse(self, event: events.MouseEvent, factor: float) -> None:
        """Zoom about the pointer: in the plot both ways, on an axis along it."""
        part = self._part(event.x, event.y)
        x, y = self.get_coordinate_from_pixel(event.x - LEFT, event.y - self.margin_top)
        self._zoom(x, y, factor, part in ("plot", "bottom"), part in ("plot", "left"))

    def _pan_plot_with_mouse(self, event: events.MouseMove) -> None:
        part = self._part(event.x, event.y)
        self._pan(event.delta_x if part in ("plot", "bottom") else 0, event.delta_y if part in ("plot", "left") else 0)


def _sample(colour: int, mono: bool) -> str:
    return ("━━", "╍╍", "┅┅", "┉┉", "═ ")[colour % 5] if mono else "━━"
