"""The list of studies, arms and seeds: only the lines on the screen are ever built."""

from __future__ import annotations

from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ctr.tui import rows as listing
from ctr.tui.clean import fit
from ctr.tui.rows import Key, Row


class RunTable(ScrollView, can_focus=True, inherit_bindings=False):
    """Rows with a cursor. The first line is the head; a click on it asks for another order."""

    COMPONENT_CLASSES = {"table--head", "table--cursor", "table--group"}

    @dataclass
    class Moved(Message):
        row: Row | None
        by_user: bool

    @dataclass
    class Chosen(Message):
        row: Row

    @dataclass
    class SortBy(Message):
        head: str

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.rows: list[Row] = []
        self.cursor = 0
        self.picked: set[Key] = set()
        self.sort = ""
        self.reverse = False
        self._wanted: Key | None = None

    @property
    def current(self) -> Row | None:
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    def show(self, rows: list[Row]) -> None:
        """Take new rows; the cursor stays on the row it is on, wherever that went."""
        before = self.current
        self.rows = rows
        self.virtual_size = Size(self.size.width, len(rows) + 1)
        place = self._place(self._wanted or (before.key if before else None))
        if place is not None:
            self._wanted = None
            self.cursor = place
        else:
            self.cursor = min(self.cursor, max(len(rows) - 1, 0))
        after = self.current
        if (before.key if before else None) != (after.key if after else None):
            self.post_message(self.Moved(after, False))
        self._keep_in_view()
        self.refresh()

    def go_to(self, key: Key, by_user: bool = False) -> None:
        """Put the cursor on a row, now or when it appears."""
        place = self._place(key)
        if place is None:
            self._wanted = key
        else:
            self._wanted = None
            self.move_to(place, by_user)

    def move_to(self, place: int, by_user: bool = True) -> None:
        place = max(0, min(place, len(self.rows) - 1))
        before, self.cursor = self.cursor, place
        changed = place != before
        self._keep_in_view()
        self.refresh_line(before + 1)
        self.refresh_line(place + 1)
        if changed or by_user:
            self.post_message(self.Moved(self.current, by_user))

    def _place(self, key: Key | None) -> int | None:
        if key is None:
            return None
        if 0 <= self.cursor < len(self.rows) and self.rows[self.cursor].key == key:
            return self.cursor
        return next((k for k, row in enumerate(self.rows) if row.key == key), None)

    def _keep_in_view(self) -> None:
        height = max(self.size.height - 1, 1)
        top = round(self.scroll_y)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False)

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, len(self.rows) + 1)
        self.call_after_refresh(self._keep_in_view)

    # drawing

    def render_line(self, y: int) -> Strip:
        width = self._width
        columns = listing.fitting(width)
        if y == 0:
            return self._strip(self._head(columns, width), self.get_component_rich_style("table--head"))
        place = round(self.scroll_y) + y - 1
        if not 0 <= place < len(self.rows):
            return Strip.blank(width, self.rich_style)
        row = self.rows[place]
        style = self.rich_style
        if row.kind == "study":
            style = self.get_component_rich_style("table--group")
        if place == self.cursor:
            style += self.get_component_rich_style("table--cursor")
            style += Style(bold=self.has_focus, underline=self.app.no_color)
        return self._strip(self._line(row, columns, width), style)

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width

    def _strip(self, text: Text, style: Style) -> Strip:
        segments = list(text.render(self.app.console))
        return Strip(Segment.apply_style(segments, style)).adjust_cell_length(self._width, style)

    def _name_width(self, columns: list[listing.Column], width: int) -> int:
        return max(width - sum(c.width + listing.GAP for c in columns) - 1, 8)

    def _head(self, columns: list[listing.Column], width: int) -> Text:
        arrow = "▴" if self.reverse else "▾"
        name = "study · arm · seed" + ("" if self.sort else f" {arrow if self.reverse else ''}")
        text = Text(" " + fit(name, self._name_width(columns, width)), end="", no_wrap=True)
        for column in columns:
            head = column.head + (arrow if column.head == self.sort else "")
            text.append(" " * listing.GAP + fit(head, column.width, column.right))
        return text

    def _line(self, row: Row, columns: list[listing.Column], width: int) -> Text:
        dark = self.app.current_theme.dark
        name = self._name_width(columns, width)
        text = Text(" ", end="", no_wrap=True)
        text.append_text(listing.name_cell(row, name, dark, row.key in self.picked))
        text.append(" " * listing.GAP)
        if row.run is None:
            text.append_text(listing.summary(row, max(width - name - listing.GAP - 1, 0), dark))
            return text
        for k, cell in enumerate(listing.cells(row, columns, dark)):
            text.append(" " * listing.GAP if k else "")
            text.append_text(cell)
        return text

    # mouse

    def on_click(self, event: events.Click) -> None:
        if event.y == 0:
            self.post_message(self.SortBy(self._head_at(event.x)))
            return
        place = round(self.scroll_y) + event.y - 1
        if 0 <= place < len(self.rows):
            again = place == self.cursor
            self.move_to(place)
            if again or event.chain > 1:
                self.post_message(self.Chosen(self.rows[place]))

    def _head_at(self, x: int) -> str:
        columns = listing.fitting(self._width)
        left = 1 + self._name_width(columns, self._width)
        for column in columns:
            if left <= x < left + listing.GAP + column.width:
                return column.head
            left += listing.GAP + column.width
        return ""
