"""One line of tabs: a number, a name, and which is open. A click opens one."""

from __future__ import annotations

from rich.text import Text
from textual import events
from textual.widget import Widget

from ctr.tui.messages import Choose


class TabBar(Widget):
    """Names side by side; the screen decides what lies behind them."""

    def __init__(self, names: tuple[str, ...], id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.names = names
        self.open = 0

    def show(self, place: int) -> None:
        if place != self.open:
            self.open = place
            self.refresh()

    def _parts(self) -> list[str]:
        """Shorten names until the line fits; the open one keeps its name the longest."""
        width = max(self.size.width, 10)
        for longest in (20, 6, 4, 0):
            parts = [
                f" {k + 1} {name if k == self.open or longest >= len(name) else name[:longest]} ".replace("  ", " ")
                for k, name in enumerate(self.names)
            ]
            if sum(map(len, parts)) <= width:
                break
        return parts

    def render(self) -> Text:
        text = Text(end="", no_wrap=True)
        for k, part in enumerate(self._parts()):
            text.append(part, "bold reverse" if k == self.open else "")
        return text

    def on_click(self, event: events.Click) -> None:
        left = 0
        for k, part in enumerate(self._parts()):
            if left <= event.x < left + len(part):
                self.post_message(Choose(k))
            left += len(part)
