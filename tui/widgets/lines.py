"""A list of any length of which only the visible lines are built: events, decisions, specs."""

from __future__ import annotations

from collections.abc import Callable

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

Build = Callable[[int, int], Text]  # (line, width) -> text


class Lines(ScrollView, can_focus=True):
    """Lines made on demand. While the view is at the end, it stays there as lines come."""

    def __init__(self, id: str | None = None, classes: str | None = None, *, follow: bool = False) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._count = 0
        self._build: Build | None = None
        self._follow = follow
        self.empty_text = "nothing yet"

    def show(self, count: int, build: Build) -> None:
        at_end = self._follow and (self._count == 0 or self.scroll_y >= self.max_scroll_y - 1)
        changed = count != self._count
        self._count, self._build = count, build
        self.virtual_size = Size(self.size.width, count)
        if changed and at_end:
            self.call_after_refresh(self.scroll_end, animate=False)
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, style = self.scrollable_content_region.width, self.rich_style
        line = round(self.scroll_y) + y
        if self._build is None or line >= self._count:
            if y == 0 and not self._count:
                return self._strip(Text(" " + self.empty_text, "dim", end=""), style)
            return Strip.blank(width, style)
        return self._strip(self._build(line, width), style)

    def _strip(self, text: Text, style: Style) -> Strip:
        width = self.scrollable_content_region.width
        text.truncate(width, overflow="ellipsis")
        segments = Segment.apply_style(list(text.render(self.app.console)), style)
        return Strip(segments).adjust_cell_length(width, style)

    def on_resize(self) -> None:
        self.virtual_size = Size(self.size.width, self._count)
