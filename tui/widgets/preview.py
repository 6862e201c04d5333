"""A look at the run under the cursor of the list: its loss, and what it is doing."""

from __future__ import annotations

import time

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from ctr.tui import colours, ticks
from ctr.tui.clean import clean
from ctr.tui.facts import Facts
from ctr.tui.follow import RunStore
from ctr.tui.picture import Picture
from ctr.tui.pictures import standard
from ctr.tui.rows import Row

from .chart import Chart

WAIT = 0.15  # seconds that the cursor must rest before a run's series are read


class Preview(Horizontal):
    """Facts beside a chart. Nothing is read while it is not displayed."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._row: Row | None = None
        self._store: RunStore | None = None
        self._since = 0.0
        self._drawn = 0.0

    def compose(self) -> ComposeResult:
        yield Static(id="facts")
        yield Chart("glance")

    @property
    def chart(self) -> Chart:
        return self.query_one("#glance", Chart)

    def show(self, row: Row | None) -> None:
        same = row is not None and self._row is not None and row.key == self._row.key
        self._row = row
        if not same:
            self._store, self._since = None, time.monotonic()
            self._drawn = 0.0
            self.chart.show(Picture(note=""))  # the run that was shown before must not stand for this one
        self._facts()

    def look(self) -> None:
        """Read on and draw, at most once a second; a run is opened when the cursor rests on it."""
        row, now = self._row, time.monotonic()
        if row is None or not self.display or not self.parent or not self.region.area:
            return
        if self._store is None and row.run is not None and now - self._since >= WAIT:
            self._store = RunStore(row.run.path, row.study.name)
        if self._store is not None:
            self._store.want(["train.loss", "val.loss"])
            new = self._store.poll(0.03)
            if (new and now - self._drawn >= 1.0) or self._drawn == 0.0:
                self._drawn = now
                self.chart.show(standard(self._store, ["train.loss", "val.loss"]))
                self._facts()
        elif row.run is None and self._drawn == 0.0:
            self._drawn = now
            self.chart.show(Picture(note=""))

    def _facts(self) -> None:
        row = self._row
        text = Text(end="")
        if row is not None and row.run is not None:
            text = about(row.run.facts, row.study.prefer(), self.app.current_theme.dark)
        elif row is not None:
            text.append_text(clean(row.study.name, "bold"))
            text.append("\n")
            text.append_text(clean(row.study.question, "italic"))
            text.append("\n\nenter: the study over its seeds", "dim")
        text.no_wrap = False
        self.query_one("#facts", Static).update(text)


def about(facts: Facts, prefer: str, dark: bool) -> Text:
    """Write what a run is doing in a few lines."""
    sign, colour = colours.status(facts.label, dark)
    text = Text(end="")
    text.append(f"{facts.name}\n", "bold")
    text.append(f"{sign} {facts.label}", colour)
    if facts.label == "stale":
        text.append(f", silent for {ticks.span(facts.age)}", colour)
    elif facts.doing and facts.label == "live":
        text.append(f", {facts.doing}")
    metric = facts.metric(prefer)
    lines = [
        ("step", f"{ticks.count(facts.step)} of {ticks.count(facts.total)}"),
        ("epoch", f"{facts.epoch if facts.epoch is not None else '–'} of {facts.epochs if facts.epochs else '–'}"),
        ("train loss", ticks.number(facts.train_loss)),
        (f"val {metric[0]}" if metric else "val", ticks.number(metric[1]) if metric else "–"),
        ("rate", ticks.number(facts.lr)),
        ("steps/s", ticks.number(facts.steps_per_second, 3)),
        ("time", ticks.span(facts.monotonic) if facts.monotonic else "–"),
    ]
    for name, value in lines:
        text.append(f"\n{name:<14}", "dim")
        text.append(value)
    if facts.error:
        text.append(f"\n{facts.error}", colour)
    return text
