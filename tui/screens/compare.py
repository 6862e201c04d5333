"""Runs or arms of any studies on one series, and where their resolved specs differ."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Footer, Static

from ctr.tui import colours, groups, specs
from ctr.tui.bindings import bindings
from ctr.tui.catalog import Catalog, RunEntry
from ctr.tui.clean import fit, plain
from ctr.tui.follow import AXES
from ctr.tui.picture import Axis, Picture
from ctr.tui.rows import Row
from ctr.tui.widgets.chart import Chart
from ctr.tui.widgets.lines import Lines

from .base import ViewerScreen

MOST = 12
REDRAW = 1.0
SMOOTH = (0, 10, 100, 1000)
ORDER = ("epoch", "step", "items", "seconds")


@dataclass(frozen=True)
class Chosen:
    """One thing to compare: a run, or all seeds of an arm as their mean."""

    label: str
    runs: tuple[RunEntry, ...]
    mean: bool


def from_rows(rows: Sequence[Row]) -> list[Chosen]:
    """Turn rows of the list into things to compare; a study stands for its arms."""
    chosen: list[Chosen] = []
    for row in rows:
        if row.run is not None:
            chosen.append(Chosen(f"{row.study.name} {row.run.facts.name}", (row.run,), False))
        elif row.kind == "arm":
            chosen.append(Chosen(f"{row.study.name} {row.arm}", row.runs, True))
        else:
            for arm in row.study.arms():
                runs = tuple(r for r in row.runs if r.facts.arm == arm)
                if runs:
                    chosen.append(Chosen(f"{row.study.name} {arm}", runs, True))
    return chosen[:MOST]


class CompareScreen(ViewerScreen):
    """One chart over all, aligned on epochs, and the difference of the specs below it."""

    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("compare"))

    def __init__(self, chosen: Sequence[Chosen], catalog: Catalog) -> None:
        super().__init__()
        self.chosen, self.catalog = list(chosen), catalog
        self.groups = [groups.group(_short(c.label, chosen), k, c.runs) for k, c in enumerate(chosen)]
        self.follower = groups.Follower(self.groups)
        self.axis, self.log_scale, self.smooth = "epoch", False, 0
        self.key = ""
        self._drawn, self._dirty = 0.0, True

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Chart("overlay")
        yield Lines("spec-diff")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        self.query_one("#overlay").focus()
        self.follower.poll(0.3)
        names = self._names()
        self.key = next((k for k in ("val.loss", "train.loss") if k in names), names[0] if names else "train.loss")
        self._want()
        self._differences()
        self.call_after_refresh(self._draw)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(key for g in self.groups for key in g.keys()))

    def _want(self) -> None:
        for each, chosen in zip(self.groups, self.chosen, strict=True):
            if chosen.mean:
                each.want(self.key, self.axis)
            else:
                from ctr.tui.pictures import needed

                each.members[0].store.want(needed([self.key], self.axis))
        self.follower.poll(0.3)

    def look(self, changed: bool) -> None:
        self._dirty |= self.follower.poll()
        if self._dirty and time.monotonic() - self._drawn >= REDRAW:
            self._draw()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def _draw(self) -> None:
        self._drawn, self._dirty = time.monotonic(), False
        head = Text(f" compare {len(self.chosen)} on ", end="", no_wrap=True)
        head.append(plain(self.key, 60), "bold")
        head.append(f"  against {self.axis}", "dim")
        self.query_one("#head", Static).update(head)
        bands = [groups.band(g, self.key, self.axis) for g, c in zip(self.groups, self.chosen, strict=True) if c.mean]
        lines = [
            groups.line(g, self.key, self.axis, self.smooth)
            for g, c in zip(self.groups, self.chosen, strict=True)
            if not c.mean
        ]
        axis = Axis(self.axis)
        shown = Picture("", axis, lines, [b for b in bands if len(b.x)], log=self.log_scale)
        self.query_one("#overlay", Chart).show(shown)

    def _differences(self) -> None:
        """Write the paths at which the resolved specs differ, a column for each thing compared."""
        trees = [specs.read_spec(c.runs[0].path) for c in self.chosen]
        rows = specs.differences(trees)
        names = [g.label for g in self.groups]
        many = len(names)
        dark = self.dark

        def build(k: int, width: int) -> Text:
            first = max(20, min(40, width // 3))
            each = max((width - first - 2) // max(many, 1) - 1, 6)
            out = Text(" ", end="", no_wrap=True)
            if k == 0:
                out.append(fit("spec differs at" if rows else "specs are equal", first), "bold")
                for place, name in enumerate(names):
                    out.append(" " + fit(name, each), "bold " + colours.series(place, dark))
                return out
            path, values = rows[k - 1]
            out.append(fit(path, first), "dim")
            for value in values:
                out.append(" " + fit(value, each), "" if value != specs.LACKING else "dim")
            return out

        self.query_one("#spec-diff", Lines).show(len(rows) + 1, build)

    # keys

    def action_series(self) -> None:
        from .picker import Picker

        def take(picked: list[str] | None) -> None:
            if picked:
                self.key = picked[0]
                self._changed()

        self.app.push_screen(Picker("Series to overlay", self._names(), [self.key], many=False), take)

    def _changed(self) -> None:
        self._want()
        self.query_one("#overlay", Chart).look_at(None)
        self._draw()

    def action_axis(self) -> None:
        keys = set(self._names())
        names = [name for name in ORDER if not AXES[name] or AXES[name] in keys]
        self.axis = names[(names.index(self.axis) + 1) % len(names)] if self.axis in names else names[0]
        self._changed()

    def action_log(self) -> None:
        self.log_scale = not self.log_scale
        self._draw()

    def action_smooth(self) -> None:
        self.smooth = SMOOTH[(SMOOTH.index(self.smooth) + 1) % len(SMOOTH)]
        self._draw()

    def action_spec(self) -> None:
        chart, lines = self.query_one("#overlay"), self.query_one("#spec-diff")
        chart.display = not chart.display
        (lines if not chart.display else chart).focus()
        self._differences()


def _short(label: str, chosen: Sequence[Chosen]) -> str:
    """Leave out the study's name where all come from one."""
    studies = {c.label.split(" ", 1)[0] for c in chosen}
    return label.split(" ", 1)[-1] if len(studies) == 1 else label
