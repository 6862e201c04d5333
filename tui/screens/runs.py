"""The first screen: studies, arms and seeds, with a look at the run under the cursor."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.events import Key as KeyEvent
from textual.widgets import Footer, Input, Static

from ctr.tui import rows as listing
from ctr.tui.bindings import bindings
from ctr.tui.catalog import Catalog
from ctr.tui.clean import clean
from ctr.tui.messages import OpenStudy
from ctr.tui.rows import Key
from ctr.tui.widgets.preview import Preview
from ctr.tui.widgets.run_table import RunTable

from .base import ViewerScreen

SORTS = ("", *(c.head for c in listing.COLUMNS))
REBUILD = 1.0  # seconds between looks at the order of rows


class RunsScreen(ViewerScreen):
    """A tree of studies, arms and seeds that follows the newest live run until somebody moves."""

    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("runs"))

    def __init__(self, catalog: Catalog, words: str = "") -> None:
        super().__init__()
        self.catalog = catalog
        self.following = True
        self.words = words
        self.sort = 0
        self.reverse = False
        self.folded: set[Key] = set()
        self._built = (-1, 0.0)

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield RunTable("table")
        yield Input(placeholder="text that a row must hold: arm, seed, status, host …", id="filter", classes="hidden")
        with Vertical(id="below"):
            yield Preview("preview")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#filter", Input).value = self.words
        self.table.focus()
        self._rebuild()
        self._follow()

    @property
    def table(self) -> RunTable:
        return self.query_one("#table", RunTable)

    def look(self, changed: bool) -> None:
        version, at = self._built
        if self.catalog.version != version and time.monotonic() - at >= REBUILD:
            self._rebuild()
            self._follow()
        self.query_one("#preview", Preview).look()

    def on_screen_resume(self) -> None:
        self._rebuild()

    def _rebuild(self) -> None:
        self._built = (self.catalog.version, time.monotonic())
        rows = listing.build(self.catalog, self.words, SORTS[self.sort], self.reverse, self.folded)
        table = self.table
        table.sort, table.reverse = SORTS[self.sort], self.reverse
        table.show(rows)
        self._head()

    def _head(self) -> None:
        head = Text(" ", no_wrap=True, end="")
        head.append_text(clean(self.catalog.root, "bold", 100))
        head.append("  ")
        if self.catalog.missing:
            head.append("∅ no such folder (yet, or any more)  ", "bold")
        head.append_text(listing.counts(self.catalog.runs(), self.dark))
        if self.words:
            head.append(f" filter: {self.words}", "italic")
        if self.table.picked:
            head.append(f" ◆ {len(self.table.picked)} picked, c compares", "bold")
        if self.following:
            head.append(" following the newest live run", "dim")
        self.query_one("#head", Static).update(head)

    def _follow(self) -> None:
        newest = self.catalog.newest_live() if self.following else None
        if newest is not None:
            study = self.catalog.study_of(newest.path)
            if study is not None:
                arm = newest.facts.arm
                self.folded -= {(study.path.name, "", ""), (study.path.name, arm, "")}
                self.table.go_to((study.path.name, arm, newest.path.name))

    @on(RunTable.Moved)
    def _moved(self, message: RunTable.Moved) -> None:
        if message.by_user and self.following:
            self.following = False
            self._head()
        self.query_one("#preview", Preview).show(message.row)

    # keys

    def action_move(self, by: int) -> None:
        self.table.move_to(self.table.cursor + by)

    def action_page(self, by: int) -> None:
        self.table.move_to(self.table.cursor + by * max(self.table.size.height - 2, 1))

    def action_jump(self, end: int) -> None:
        self.table.move_to(len(self.table.rows) - 1 if end else 0)

    def action_fold(self, shut: bool) -> None:
        row = self.table.current
        if row is None:
            return
        key = (row.study.path.name, row.arm if row.kind != "study" else "", "")
        if shut and (key in self.folded or (row.kind == "run" and self.sort)):
            key = (row.study.path.name, "", "")
        if shut:
            self.folded.add(key)
            self.following = False
        else:
            self.folded.discard(key)
        self._rebuild()
        self.table.go_to(key if shut else row.key)

    def action_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.remove_class("hidden")
        field.focus()

    def on_key(self, event: KeyEvent) -> None:
        field = self.query_one("#filter", Input)
        if event.key == "escape" and field.has_focus:
            event.stop()
            field.value = ""
            self._close_filter()

    @on(Input.Changed, "#filter")
    def _filtered(self, message: Input.Changed) -> None:
        self.words = message.value
        self._rebuild()

    @on(Input.Submitted, "#filter")
    def _close_filter(self) -> None:
        field = self.query_one("#filter", Input)
        field.set_class(not field.value, "hidden")
        self.table.focus()
        self._head()

    def action_sort(self) -> None:
        shown = {"", *(c.head for c in listing.fitting(self.size.width))}
        place = self.sort
        while True:
            place = (place + 1) % len(SORTS)
            if SORTS[place] in shown:
                break
        self._sort_by(SORTS[place])

    @on(RunTable.SortBy)
    def _head_clicked(self, message: RunTable.SortBy) -> None:
        if SORTS[self.sort] == message.head:
            self.action_reverse()
        else:
            self._sort_by(message.head)

    def _sort_by(self, head: str) -> None:
        self.sort = SORTS.index(head)
        self._rebuild()

    def action_reverse(self) -> None:
        self.reverse = not self.reverse
        self._rebuild()

    def action_follow(self) -> None:
        self.following = True
        self._follow()
        self._head()

    def action_pick(self) -> None:
        row = self.table.current
        if row is not None:
            self.table.picked ^= {row.key}
            self.table.move_to(self.table.cursor + 1)
            self._head()

    def action_compare(self) -> None:
        from .compare import CompareScreen, from_rows

        table = self.table
        picked = [row for row in table.rows if row.key in table.picked]
        picked = picked or ([table.current] if table.current else [])
        chosen = from_rows(picked)
        if len(chosen) < 2:
            self.viewer.say(
                "Compare", "Pick two or more runs or arms with space, or a study with two arms, then press c."
            )
            return
        self.app.push_screen(CompareScreen(chosen, self.catalog))

    def action_open(self) -> None:
        row = self.table.current
        if row is not None:
            self._open(row)

    @on(RunTable.Chosen)
    def _chosen(self, message: RunTable.Chosen) -> None:
        self._open(message.row)

    def _open(self, row: listing.Row) -> None:
        if row.run is not None:
            self.viewer.open_run(row.run)
        else:
            self.post_message(OpenStudy(row.study.path))

    def action_study(self) -> None:
        row = self.table.current
        if row is not None:
            self.post_message(OpenStudy(row.study.path))
