"""The charts of a run: as many as fit, the rest a key away, all with one axis and one cursor."""

from __future__ import annotations

from collections.abc import Callable

from textual import on
from textual.app import ComposeResult
from textual.containers import Grid
from textual.message import Message

from ctr.tui.picture import Picture

from .chart import Chart

LEAST = 10  # rows of a chart that can be read
WIDEST = 100  # columns from which a second column of charts is worth it
MOST = 6
Draw = Callable[[list[str], str], Picture]


class Charts(Grid):
    """Up to six charts at once. `series` holds what each shows; `current` is the one that keys act on."""

    class Changed(Message):
        """Other series are visible now, or the cursor moved."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.series: list[list[str]] = []
        self.current = 0
        self.alone = False
        self.logs: set[int] = set()
        self.cursor: float | None = None
        self._first = 0
        self._filled = False

    def compose(self) -> ComposeResult:
        yield Chart("chart0")

    @property
    def widgets(self) -> list[Chart]:
        return list(self.query(Chart))

    def take(self, series: list[list[str]]) -> None:
        """Take the series of all charts."""
        self.series = series or [["train.loss"]]
        self.current = min(self.current, len(self.series) - 1)
        self._lay_out()

    def fill(self) -> None:
        """Show all charts that fit; until this is called only the first is there, so that it comes soon."""
        self._filled = True
        self._lay_out()

    def _shape(self) -> tuple[int, int]:
        """Return columns and rows of the grid for the room there is."""
        if self.alone:
            return 1, 1
        columns = 2 if self.size.width >= 2 * WIDEST - 40 and len(self.series) > 2 else 1
        rows = max(1, min(self.size.height // LEAST, MOST // columns, -(-len(self.series) // columns)))
        return columns, rows

    def on_screen(self) -> list[int]:
        """Return which charts are on the screen."""
        columns, rows = self._shape()
        room = columns * rows
        self._first = max(min(self._first, self.current), self.current - room + 1, 0)
        self._first = min(self._first, max(len(self.series) - room, 0))
        return list(range(self._first, min(self._first + room, len(self.series))))

    def shown_series(self) -> list[str]:
        return [key for place in self.on_screen() for key in self.series[place]]

    def _lay_out(self) -> None:
        if not self.is_mounted or not self.size.area:
            return
        columns, rows = self._shape()
        self.styles.grid_size_columns, self.styles.grid_size_rows = columns, rows
        shown = self.on_screen()
        # widgets are costly: as many as are seen, no more
        missing = range(len(self.widgets), len(shown) if self._filled else 0)
        if missing:
            self.mount_all([Chart(f"chart{k}") for k in missing])
            self.call_after_refresh(self.post_message, self.Changed())
        for k, chart in enumerate(self.widgets):
            chart.display = k < len(shown)
        if self.screen.focused is None or isinstance(self.screen.focused, Chart):
            self._focus()

    def _focus(self) -> None:
        shown = self.on_screen()
        if self.current in shown:
            self.widgets[shown.index(self.current)].focus()

    def on_resize(self) -> None:
        self._lay_out()
        self.post_message(self.Changed())

    def draw(self, make: Draw) -> None:
        """Draw what is visible."""
        shown = self.on_screen()
        for chart, place in zip(self.widgets, shown, strict=False):
            title = f"{place + 1}/{len(self.series)}" if len(self.series) > len(shown) else ""
            picture = make(self.series[place], title)
            chart.show(_logged(picture) if place in self.logs else picture)

    # keys, given on by the screen

    def step(self, by: int) -> None:
        self.current = (self.current + by) % max(len(self.series), 1)
        self._lay_out()
        self._focus()
        self.post_message(self.Changed())

    def maximize(self) -> None:
        self.alone = not self.alone
        self._lay_out()
        self._focus()
        self.post_message(self.Changed())

    def put(self, series: list[str]) -> None:
        """Give the current chart other series."""
        if self.series:
            self.series[self.current] = series
        self.post_message(self.Changed())

    def add(self, series: list[str]) -> None:
        self.series.append(series)
        self.current = len(self.series) - 1
        self.step(0)

    def drop(self) -> None:
        if len(self.series) > 1:
            del self.series[self.current]
            self.logs = {k - (k > self.current) for k in self.logs if k != self.current}
            self.current = min(self.current, len(self.series) - 1)
            self.step(0)

    def toggle_log(self) -> None:
        self.logs ^= {self.current}
        self.post_message(self.Changed())

    def move_cursor(self, x: float | None) -> None:
        self.cursor = x
        for chart in self.widgets:
            chart.set_cursor(x)

    def whole(self) -> None:
        """Show all of the axis again, as when its unit changes."""
        self.move_cursor(None)
        for chart in self.widgets:
            chart.look_at(None)

    @on(Chart.CursorMoved)
    def _cursor_moved(self, message: Chart.CursorMoved) -> None:
        self.move_cursor(message.x)
        self._take_focus(message.chart)
        self.post_message(self.Changed())

    @on(Chart.ScaleChanged)
    def _scale_changed(self, message: Chart.ScaleChanged) -> None:
        """Keep the axes of all charts on the same stretch."""
        message.stop()
        if isinstance(message.plot, Chart):
            self._take_focus(message.plot)
            view = message.plot.view if message.plot.zoomed else None
            for chart in self.widgets:
                if chart is not message.plot:
                    chart.look_at(view)

    def _take_focus(self, chart: Chart) -> None:
        shown = self.on_screen()
        place = self.widgets.index(chart)
        if place < len(shown):
            self.current = shown[place]


def _logged(picture: Picture) -> Picture:
    return picture._replace(log=True)
