"""One run: charts with a cursor, what set the rate and the loss, who decided what, and the files behind it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.widgets import Footer, Static

from ctr.tui import colours, pictures, readings, texts, ticks
from ctr.tui.bindings import bindings
from ctr.tui.catalog import Catalog, RunEntry
from ctr.tui.clean import clean, plain
from ctr.tui.control import Control
from ctr.tui.follow import AXES, RunStore
from ctr.tui.messages import Choose, OpenStudy
from ctr.tui.picture import Picture
from ctr.tui.rows import bar
from ctr.tui.widgets.bar import TabBar
from ctr.tui.widgets.charts import Charts

from .base import ViewerScreen

if TYPE_CHECKING:
    from ctr.tui.widgets.panes import Pane

TABS = ("charts", "rates", "why", "events", "matrix", "spec", "origin", "panels")
SMOOTH = (0, 10, 100, 1000)
REDRAW = 1.0  # seconds between pictures while a run is followed


class RunScreen(Control, ViewerScreen):
    """Follows one run; reads only the series that are on the screen."""

    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("run"))

    def __init__(self, run: RunEntry, catalog: Catalog) -> None:
        super().__init__()
        self.run, self.catalog = run, catalog
        self._open_store()
        self.tab = "charts"
        self.axis = "step"
        self.smooth = 0
        self._arranged = False
        self.held = True
        self._painted = False  # the first chart is on the screen
        self._drawn = 0.0
        self._dirty = True

    def _open_store(self) -> None:
        self.store = RunStore(self.run.path, self.run.facts.study, self.run.planned)
        self.store.poll(0.05)

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield TabBar(TABS, "tabs")
        with Container(id="body"):
            with Horizontal(id="pane-charts"):
                with Vertical(id="left"):
                    yield Charts("charts")
                    yield Static(id="readout")
                with VerticalScroll(id="side", can_focus=False):
                    yield Static("at the cursor", id="where", classes="caption")
                    yield Static(id="rates", classes="box")
                    yield Static(id="losses", classes="box")
                    yield Static(id="recent", classes="box")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        for name, title in (("rates", "rate"), ("losses", "loss"), ("recent", "last decisions")):
            self.query_one(f"#{name}").border_title = title
        self._arrange()
        self.call_after_refresh(self._first_look)

    def _first_look(self) -> None:
        """Put the first chart on the screen before any other series is read."""
        self.charts._focus()
        self.store.want(pictures.needed(self.charts.series[self.charts.current], self.axis))
        self.store.poll(0.08)
        self._draw()
        self.release()
        self.call_after_refresh(self._second_look)

    def _second_look(self) -> None:
        self._painted = True
        self.charts.fill()
        self.follow_visible()
        self.store.poll(0.08)
        self._draw()

    @property
    def charts(self) -> Charts:
        return self.query_one("#charts", Charts)

    @property
    def side_shown(self) -> bool:
        return bool(self.query_one("#side").region.width)

    # following

    def look(self, changed: bool) -> None:
        if not self._painted:
            return
        self._dirty |= self.store.poll(0.03) or changed
        now = time.monotonic()
        if self._dirty and now - self._drawn >= REDRAW:
            self._arrange()
            self.follow_visible()
            self._draw()

    def _arrange(self) -> None:
        """Choose the first charts once the run has said which series it has."""
        if not self._arranged:
            self._arranged = bool(self.store.index)
            self.charts.take(pictures.default_charts(self.store.keys()))

    def follow_visible(self) -> None:
        wanted = pictures.needed(self.charts.shown_series(), self.axis) if self.tab == "charts" else []
        need = readings.keys(self.store.keys())
        if self.tab in ("charts", "rates"):
            wanted += [*need.rate, *need.loss, "train.epoch"]
        if self.tab == "panels":
            pane = self._pane("panels")
            wanted += pane.series() if pane is not None else []
        self.store.want(wanted)

    # drawing

    def _draw(self) -> None:
        self._drawn, self._dirty = time.monotonic(), False
        self._head()
        if self.tab == "charts":
            self.charts.draw(self._picture)
            self._panels()
            return
        pane = self._pane(self.tab)
        if pane is not None:
            pane.draw()

    def _picture(self, keys: list[str], title: str) -> Picture:
        return pictures.standard(self.store, keys, axis=self.axis, smooth=self.smooth, title=title)

    def step_at_cursor(self) -> float:
        """Return the step that the panels speak of: under the cursor, or the newest."""
        x = self.charts.cursor
        if x is None:
            return float(self.store.newest())
        import numpy as np

        return float(self.store.axis(self.axis).steps(np.array([x]))[0])

    def colour_places(self) -> dict[str, int]:
        return colours.assign(
            sorted(
                {s.owner for s in self.store.history.spans}
                | {
                    k.split(".", 1)[0]
                    for k in self.store.keys()
                    if k.split(".", 1)[0] not in ("train", "val", "clock", "test")
                }
            )
        )

    def _panels(self) -> None:
        step = self.step_at_cursor()
        need = readings.keys(self.store.keys())
        rates, loss = readings.rates(self.store, need, step), readings.loss(self.store, need, step)
        where = self.where(step)
        names = self.colour_places()
        if self.side_shown:
            self.query_one("#where", Static).update(where)
            self.query_one("#rates", Static).update(texts.rate_panel(rates, names, self.dark))
            self.query_one("#losses", Static).update(texts.loss_panel(loss, names, self.dark))
            self.query_one("#recent", Static).update(self._recent(step))
        readout = Text(" ", end="", no_wrap=True)
        readout.append_text(where)
        readout.append("   ")
        readout.append_text(texts.loss_line(loss))
        readout.append("\n ")
        readout.append_text(texts.rate_line(rates[0]))
        self.query_one("#readout", Static).update(readout)

    def where(self, step: float) -> Text:
        text = Text(f"step {ticks.count(round(step))}", "bold", end="", no_wrap=True)
        row = self.store.data("train.epoch").at(step)
        if row:
            text.append(f"  epoch {ticks.number(row[1], 3)}")
        standing = [s for s in self.store.history.standing(step)][:3]
        for span in standing:
            text.append(f"  {span.value}", "italic " + colours.series(0, self.dark))
        if self.charts.cursor is None:
            text.append("  newest", "dim")
        return text

    def _recent(self, step: float) -> Text:
        made = [d for d in self.store.history.decisions if d.step <= step][-6:]
        width = max(self.query_one("#recent").size.width, 20)
        return texts.recent(list(reversed(made)), self.colour_places(), self.dark, width)

    def _head(self) -> None:
        self.query_one("#head", Static).update(head(self.run, self.store, self.dark, self.size.width))

    # tabs

    def _pane(self, name: str) -> Pane | None:
        from ctr.tui.widgets.panes import Pane  # not before a tab is opened

        found = self.query(f"#pane-{name}")
        return found.first(Pane) if found and name != "charts" else None

    async def action_tab(self, place: int) -> None:
        await self._open_tab(place)

    async def _open_tab(self, place: int) -> None:
        name = TABS[place]
        body = self.query_one("#body")
        if not body.query(f"#pane-{name}"):
            from ctr.tui.widgets.panes import PANES

            await body.mount(PANES[name](self, id=f"pane-{name}"))
        self.tab = name
        for child in body.children:
            child.display = child.id == f"pane-{name}"
        self.query_one(TabBar).show(place)
        pane = self._pane(name)
        if pane is not None:
            pane.take_focus()
        else:
            self.charts._focus()
        self.follow_visible()
        self.store.poll(0.05)
        self._draw()
        self.call_after_refresh(self._draw)

    @on(Choose)
    async def _tab_chosen(self, message: Choose) -> None:
        await self._open_tab(message.place)

    # keys

    @on(Charts.Changed)
    def _charts_changed(self) -> None:
        if not self._painted:
            return
        self.follow_visible()
        self.store.poll(0.05)
        self._draw()

    def action_next_chart(self) -> None:
        self.charts.step(1)

    def action_series(self) -> None:
        self._pick("Series of this chart", self.charts.series[self.charts.current], self.charts.put)

    def action_new_chart(self) -> None:
        self._pick("Series of a new chart", [], self.charts.add)

    def _pick(self, title: str, chosen: list[str], then: object) -> None:
        from .picker import Picker

        def take(picked: list[str] | None) -> None:
            if picked and callable(then):
                then(picked)

        self.app.push_screen(Picker(title, self.store.keys(), chosen), take)

    def action_drop_chart(self) -> None:
        self.charts.drop()

    def action_maximize(self) -> None:
        self.charts.maximize()

    def action_log(self) -> None:
        self.charts.toggle_log()

    def action_smooth(self) -> None:
        self.smooth = SMOOTH[(SMOOTH.index(self.smooth) + 1) % len(SMOOTH)]
        self._charts_changed()
        self.viewer.say("Smoothing", f"mean over {self.smooth} rows" if self.smooth else "off")

    def action_axis(self) -> None:
        names = [name for name, key in AXES.items() if not key or key in self.store.index]
        place = names.index(self.axis) if self.axis in names else 0
        self.axis = names[(place + 1) % len(names)]
        self.charts.whole()
        self._charts_changed()

    def action_study(self) -> None:
        self.post_message(OpenStudy(self.run.path))

    def action_neighbour(self, by: int) -> None:
        study = self.catalog.study_of(self.run.path)
        runs = [r for r in study.runs.values() if r.stamp is not None] if study else []
        if len(runs) < 2:
            return
        place = next((k for k, r in enumerate(runs) if r.path == self.run.path), 0)
        self.run = runs[(place + by) % len(runs)]
        self._open_store()
        self.charts.whole()
        for name in TABS:
            pane = self._pane(name)
            if pane is not None:
                pane.forget()
        if self.tab == "charts":
            self._painted = False
            self._first_look()
        else:
            self._charts_changed()


def head(run: RunEntry, store: RunStore, dark: bool, width: int) -> Text:
    """Write the first line: who, status, where in the run, how fast, until when."""
    facts = run.facts
    sign, colour = colours.status("gone" if store.gone else facts.label, dark)
    text = Text(" ", end="", no_wrap=True)
    if width >= 100:
        text.append_text(clean(facts.study, "dim", 40)).append(" › ", "dim")
    text.append(plain(facts.name, 60), "bold")
    text.append(f"  {sign} {'gone' if store.gone else facts.label}", colour)
    if facts.label == "stale":
        text.append(f" {ticks.span(facts.age)}", colour)
    if facts.doing and facts.label == "live" and facts.doing != "training":
        text.append(f" {facts.doing}", "italic")
    if facts.phases and facts.phases > 1:
        text.append(f"  phase {facts.phase} {(facts.phase_index or 0) + 1}/{facts.phases}")
    if facts.epochs:
        text.append(f"  epoch {facts.epoch}/{facts.epochs}")
    text.append(f"  {ticks.count(facts.step)}/{ticks.count(facts.total)} ")
    text.append(bar(facts.progress, 12 if width >= 100 else 6), colour)
    if facts.label == "live":
        text.append(f"  ETA {ticks.span(facts.eta_seconds)}", "bold")
        text.append(f"  {ticks.number(facts.steps_per_second, 3)}/s")
    if facts.error:
        text.append(f"  {facts.error}", colour)
    text.truncate(max(width, 10), overflow="ellipsis")
    return text
