"""What lies behind the tabs of a run, beside its charts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from ctr.engine.errors import CtrError
from ctr.engine.matrix import load
from ctr.tui import readings, texts
from ctr.tui.facts import document

from .lines import Lines

if TYPE_CHECKING:
    from ctr.tui.follow import RunStore

LONGEST = 1 << 20


class Host(Protocol):
    """What a pane needs of the screen it is part of."""

    store: RunStore

    @property
    def dark(self) -> bool: ...

    def step_at_cursor(self) -> float: ...

    def colour_places(self) -> dict[str, int]: ...

    def where(self, step: float) -> Text: ...

    def follow_visible(self) -> None: ...


class Pane(Widget):
    """One tab. `draw` shows what the store holds now; it is called only while the pane is visible."""

    def __init__(self, screen: Host, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.of = screen

    def draw(self) -> None:
        """Show what is known now."""

    def forget(self) -> None:
        """Another run is shown: nothing kept may stay."""

    def series(self) -> list[str]:
        """Return which series it needs besides those that are always followed."""
        return []

    def take_focus(self) -> None:
        found = self.query("Lines, VerticalScroll")
        if found:
            found.first(Widget).focus()


class RatesPane(Pane):
    """Rate and loss at the cursor, with room for every group and term."""

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="pane-where")
            yield Static(id="pane-rate", classes="box")
            yield Static(id="pane-loss", classes="box")

    def draw(self) -> None:
        store, step = self.of.store, self.of.step_at_cursor()
        need, names = readings.keys(store.keys()), self.of.colour_places()
        self.query_one("#pane-where", Static).update(self.of.where(step))
        rate, loss = self.query_one("#pane-rate", Static), self.query_one("#pane-loss", Static)
        rate.border_title, loss.border_title = "rate", "loss"
        rate.update(texts.rate_panel(readings.rates(store, need, step), names, self.of.dark))
        width = max(min(self.size.width - 6, 80), 24)
        loss.update(texts.loss_panel(readings.loss(store, need, step), names, self.of.dark, width))


class Decisions(Pane):
    """Everything that somebody decided, and why."""

    def compose(self) -> ComposeResult:
        lines = Lines("decision-list", follow=True)
        lines.empty_text = "Nobody has decided anything so far."
        yield lines

    def on_mount(self) -> None:
        self._made: tuple[int, int] = (-1, -1)
        self._lines: list[Text] = []

    def forget(self) -> None:
        self._made = (-1, -1)

    def draw(self) -> None:
        decisions = self.of.store.history.decisions
        made = (self.of.store.history.version, self.size.width)
        if made != self._made:
            self._made = made
            self._lines = texts.decision_lines(
                decisions[-5000:], self.of.colour_places(), self.of.dark, self.size.width
            )
        self.query_one(Lines).show(len(self._lines), lambda k, _: self._lines[k])


class Events(Pane):
    """The event log, record by record."""

    def compose(self) -> ComposeResult:
        yield Lines("event-list", follow=True)

    def draw(self) -> None:
        records, dark = self.of.store.history.records, self.of.dark
        self.query_one(Lines).show(len(records), lambda k, _: texts.event_line(records[k], dark))


class MatrixPane(Pane):
    """The evaluation matrix."""

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(id="matrix", classes="pad")

    def draw(self) -> None:
        try:
            matrix = load(self.of.store.path / "matrix.json")
        except (CtrError, OSError, ValueError):
            matrix = None
        shown = texts.matrix_text(matrix, self.of.dark) if matrix is not None and matrix.rows else None
        self.query_one("#matrix", Static).update(
            shown or Text("No matrix yet: its first row comes at the start.", "dim")
        )


class Spec(Pane):
    """The resolved spec, as the run wrote it."""

    def compose(self) -> ComposeResult:
        yield Lines("spec-lines")

    def on_mount(self) -> None:
        self._source: list[str] = []
        self._stamp: object = None

    def forget(self) -> None:
        self._stamp = None

    def draw(self) -> None:
        path = self.of.store.path / "spec.yaml"
        stamp = _stamp(path)
        if stamp != self._stamp or stamp is None:
            self._stamp, self._source = stamp, source_lines(path)
        self.query_one(Lines).show(len(self._source), lambda k, _: texts.yaml_line(self._source[k], self.of.dark))


class Origin(Pane):
    """Provenance: versions, hardware, fingerprints, hashes."""

    def compose(self) -> ComposeResult:
        yield Lines("origin-lines")

    def draw(self) -> None:
        content = document(self.of.store.path / "provenance.json")
        lines = texts.flat_lines(content) if isinstance(content, dict) else []
        self.query_one(Lines).show(len(lines), lambda k, _: lines[k])


class Plugins(Pane):
    """Panels that plugins bring along."""

    def compose(self) -> ComposeResult:
        yield VerticalScroll(id="sections")

    def on_mount(self) -> None:
        self._made: Any = None
        self._sections: list[Any] = []

    def forget(self) -> None:
        self._made = None

    def series(self) -> list[str]:
        from ctr.engine.panels import SeriesPlot

        return [key for s in self._sections if isinstance(s.body, SeriesPlot) for key in s.body.keys]

    def draw(self) -> None:
        from ctr.tui.sections import ask, widgets

        store = self.of.store
        if self._made != (store.path, store.history.version):
            self._made = (store.path, store.history.version)
            sections = ask(store)
            if sections != self._sections or not self.query_one("#sections").children:
                self._sections = sections
                scroll = self.query_one("#sections", VerticalScroll)
                scroll.remove_children()
                scroll.mount_all(widgets(sections))
                self.of.follow_visible()
        from ctr.tui.sections import redraw

        redraw(self, store)


PANES: dict[str, type[Pane]] = {
    "rates": RatesPane,
    "why": Decisions,
    "events": Events,
    "matrix": MatrixPane,
    "spec": Spec,
    "origin": Origin,
    "panels": Plugins,
}


def source_lines(path: Path) -> list[str]:
    """Return the lines of a text file, at most a megabyte of it."""
    try:
        with path.open("rb") as file:
            return file.read(LONGEST).decode("utf-8", "replace").splitlines()[:20000]
    except (OSError, ValueError):
        return []


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size
