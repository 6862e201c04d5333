"""A study over its seeds: a mean with its interval for each arm, and what the pairs say so far."""

from __future__ import annotations

import time
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Footer, Static

from ctr.tui import groups, verdicts
from ctr.tui.bindings import bindings
from ctr.tui.catalog import StudyEntry
from ctr.tui.clean import clean
from ctr.tui.picture import Axis, Picture
from ctr.tui.rows import counts
from ctr.tui.widgets.chart import Chart

from .base import ViewerScreen

REDRAW = 1.0


class StudyScreen(ViewerScreen):
    """Updates as seeds finish; runs that come later are taken in."""

    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("study"))

    def __init__(self, study: StudyEntry) -> None:
        super().__init__()
        self.study = study
        self.log_scale = False
        self.metric: str | None = None  # None: what the study compares on, or validation until that exists
        self.key = f"val.{study.prefer() or 'loss'}"
        self._drawn = 0.0
        self._dirty = True
        self._runs: tuple[str, ...] = ()
        self._regroup()

    def _regroup(self) -> None:
        self._runs = tuple(self.study.runs)
        self.groups = [
            groups.group(arm, k, [r for r in self.study.runs.values() if r.facts.arm == arm])
            for k, arm in enumerate(self.study.arms())
        ]
        self.follower = groups.Follower(self.groups)
        self._want()

    def _want(self) -> None:
        for each in self.groups:
            each.want(self.key, "epoch")

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="question")
        with Container(id="split"):
            yield Chart("bands")
            with VerticalScroll(id="verdict"):
                yield Static(id="pairs")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#bands").focus()
        self.follower.poll(0.3)
        self.call_after_refresh(self._draw)

    def look(self, changed: bool) -> None:
        if tuple(self.study.runs) != self._runs:
            self._regroup()
            self._dirty = True
        self._dirty |= self.follower.poll() or changed
        if self._dirty and time.monotonic() - self._drawn >= REDRAW:
            self._draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        self._drawn, self._dirty = time.monotonic(), False
        head = Text(" ", end="", no_wrap=True)
        head.append_text(clean(self.study.name, "bold", 60)).append("  ")
        head.append_text(counts(self.study.runs.values(), self.dark))
        if self.study.gone:
            head.append("∅ gone", "bold")
        head.append_text(clean(self.key, "bold", 60))
        head.append(" over seeds, mean and 95 % t interval", "dim")
        self.query_one("#head", Static).update(head)
        self.query_one("#question", Static).update(clean(" " + self.study.question, "italic"))
        bands = [groups.band(g, self.key, "epoch") for g in self.groups]
        picture = Picture("", Axis("epoch"), bands=[b for b in bands if len(b.x)], log=self.log_scale)
        self.query_one("#bands", Chart).show(picture)
        self._verdict()

    def _verdict(self) -> None:
        scroll = self.query_one("#verdict")
        width = max(min(scroll.size.width - 3, 90), 20)
        metric, found = self._contrasts()
        text = Text(end="", no_wrap=True)
        if metric.startswith("val."):
            text.append("on validation, at the last epoch both have reached\n\n", "italic dim")
        text.append_text(verdicts.panel(found, width, self.dark))
        self.query_one("#pairs", Static).update(text)

    def _contrasts(self) -> tuple[str, list[groups.Contrast]]:
        """Return the metric to show and its contrasts: validation stands in until the first pair has finished."""
        choices = groups.metrics(self.study)
        if self.metric is not None:
            return self.metric, groups.contrasts(self.study, self.groups, self.metric)
        for metric in choices:
            found = groups.contrasts(self.study, self.groups, metric)
            if any(c.result.n for c in found):
                return metric, found
        return choices[0], groups.contrasts(self.study, self.groups, choices[0])

    # keys

    def action_metric(self) -> None:
        choices = groups.metrics(self.study)
        shown = self._contrasts()[0]
        self.metric = choices[(choices.index(shown) + 1) % len(choices)] if shown in choices else choices[0]
        self._draw()

    def action_log(self) -> None:
        self.log_scale = not self.log_scale
        self._draw()

    def action_series(self) -> None:
        from .picker import Picker

        names = list(dict.fromkeys(key for g in self.groups for key in g.keys()))

        def take(picked: list[str] | None) -> None:
            if picked:
                self.key = picked[0]
                self._want()
                self.follower.poll(0.3)
                self.query_one("#bands", Chart).look_at(None)
                self._draw()

        self.app.push_screen(Picker("Series over seeds", names, [self.key], many=False), take)

    def action_runs(self) -> None:
        from .runs import RunsScreen

        self.app.push_screen(RunsScreen(self.viewer.catalog, self.study.name))

    def action_compare(self) -> None:
        from .compare import Chosen, CompareScreen

        chosen = [
            Chosen(f"{self.study.name} {arm}", tuple(r for r in self.study.runs.values() if r.facts.arm == arm), True)
            for arm in self.study.arms()
        ]
        self.app.push_screen(CompareScreen([c for c in chosen if c.runs], self.viewer.catalog))
