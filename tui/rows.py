"""The rows of the list of runs: what is shown, in which order, and what stands in each column."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from rich.text import Text

from . import colours, ticks
from .catalog import Catalog, RunEntry, StudyEntry
from .clean import fit
from .facts import ORDER, Facts

Kind = Literal["study", "arm", "run"]
Key = tuple[str, str, str]


class Row(NamedTuple):
    """One line: a study, an arm of it, or a run."""

    kind: Kind
    study: StudyEntry
    arm: str = ""
    run: RunEntry | None = None
    runs: tuple[RunEntry, ...] = ()  # of a study or an arm
    folded: bool = False
    place: int = 0  # of the arm among the study's arms, for its colour

    @property
    def key(self) -> Key:
        return (self.study.path.name, self.arm, self.run.path.name if self.run else "")


class Column(NamedTuple):
    """One column: its head, its width, how much it matters when room is short, and what sorts it."""

    head: str
    width: int
    rank: int  # 0 is always shown
    cell: Callable[[Facts, str], str]
    order: Callable[[Facts, str], float | str | None]
    right: bool = True


def _epoch(f: Facts, _: str) -> str:
    return "–" if f.epoch is None else f"{f.epoch}/{f.epochs}" if f.epochs is not None else str(f.epoch)


def _phase(f: Facts, _: str) -> str:
    many = f.phases is not None and f.phases > 1 and f.phase_index is not None
    return f"{f.phase} {(f.phase_index or 0) + 1}/{f.phases}" if many else f.phase or "–"


def _metric(f: Facts, prefer: str) -> str:
    found = f.metric(prefer)
    return ticks.number(found[1]) if found else "–"


def bar(share: float | None, width: int) -> str:
    """Draw a share as a line of halves."""
    if share is None:
        return "╌" * width
    full, half = divmod(round(min(max(share, 0.0), 1.0) * width * 2), 2)
    text = "━" * full + "╸" * half
    return text + "╌" * (width - len(text))


def _progress(f: Facts, _: str) -> str:
    return bar(f.progress, 6) + (f"{math.floor(f.progress * 100):>4}%" if f.progress is not None else "    –")


def _eta(f: Facts, _: str) -> str:
    return ticks.span(f.eta_seconds) if f.label == "live" else "–"


def _metric_order(f: Facts, prefer: str) -> float | None:
    found = f.metric(prefer)
    return found[1] if found else None


COLUMNS = (
    Column(
        "status",
        10,
        0,
        lambda f, _: f"{colours.status(f.label)[0]} {f.label}",
        lambda f, _: ORDER.index(f.label),
        False,
    ),
    Column("phase", 11, 4, _phase, lambda f, _: f.phase, False),
    Column("epoch", 7, 1, _epoch, lambda f, _: f.epoch),
    Column("progress", 11, 2, _progress, lambda f, _: f.progress),
    Column("ETA", 7, 2, _eta, lambda f, _: f.eta_seconds),
    Column("loss", 8, 0, lambda f, _: ticks.number(f.train_loss), lambda f, _: f.train_loss),
    Column("val", 8, 0, _metric, _metric_order),
    Column("rate", 8, 3, lambda f, _: ticks.number(f.lr, 3), lambda f, _: f.lr),
    Column("steps/s", 7, 3, lambda f, _: ticks.number(f.steps_per_second, 3), lambda f, _: f.steps_per_second),
    Column("memory", 6, 5, lambda f, _: ticks.size(f.memory_bytes), lambda f, _: f.memory_bytes),
    Column("time", 7, 6, lambda f, _: ticks.span(f.monotonic or None), lambda f, _: f.monotonic),
    Column("step", 9, 7, lambda f, _: ticks.count(f.step), lambda f, _: f.step),
    Column("host", 12, 8, lambda f, _: f.host, lambda f, _: f.host, False),
)
NAME_LEAST = 22
GAP = 2


def fitting(width: int) -> list[Column]:
    """Return the columns that have room beside the name, the most needed first, in their order."""
    left = width - NAME_LEAST - 1
    chosen: set[str] = set()
    for column in sorted(COLUMNS, key=lambda c: c.rank):
        if left - column.width - GAP < 0:
            break
        left -= column.width + GAP
        chosen.add(column.head)
    return [c for c in COLUMNS if c.head in chosen]


def build(catalog: Catalog, words: str, sort: str, reverse: bool, folded: set[Key]) -> list[Row]:
    """Return the rows: studies, newest first; in each its arms and seeds, or its runs in the order of a column."""
    rows: list[Row] = []
    wanted = words.casefold().split()
    for study in sorted(catalog.studies.values(), key=_newest, reverse=True):
        runs = [r for r in study.runs.values() if _holds(r.facts, wanted)]
        if not runs and (wanted or not study.index):
            continue
        head = Row("study", study, runs=tuple(runs), folded=(study.path.name, "", "") in folded)
        rows.append(head)
        if not head.folded:
            rows.extend(_inside(study, runs, sort, reverse, folded))
    return rows


def _inside(study: StudyEntry, runs: list[RunEntry], sort: str, reverse: bool, folded: set[Key]) -> Iterable[Row]:
    if sort:
        for run in _sorted(runs, sort, reverse, study.prefer()):
            yield Row("run", study, run.facts.arm, run)
        return
    by_arm: dict[str, list[RunEntry]] = {arm: [] for arm in study.arms()}
    for run in runs:
        by_arm.setdefault(run.facts.arm, []).append(run)
    places = {arm: k for k, arm in enumerate(by_arm)}
    for arm in reversed(by_arm) if reverse else by_arm:
        members = sorted(by_arm[arm], key=lambda r: (r.facts.point, r.facts.seed or 0, r.facts.name), reverse=reverse)
        if not members:
            continue
        shut = (study.path.name, arm, "") in folded
        yield Row("arm", study, arm, runs=tuple(members), folded=shut, place=places[arm])
        if not shut:
            yield from (Row("run", study, arm, r) for r in members)


def _sorted(runs: list[RunEntry], sort: str, reverse: bool, prefer: str) -> list[RunEntry]:
    column = next((c for c in COLUMNS if c.head == sort), COLUMNS[0])

    def place(run: RunEntry) -> tuple[bool, float | str]:
        value = column.order(run.facts, prefer)
        if isinstance(value, str):
            return (value == "") != reverse, value
        lacking = value is None or math.isnan(value)
        return lacking != reverse, 0.0 if lacking or value is None else value

    return sorted(runs, key=place, reverse=reverse)


def _holds(facts: Facts, words: list[str]) -> bool:
    if not words:
        return True
    text = f"{facts.study} {facts.name} {facts.arm} s{facts.seed} {facts.label} {facts.phase} {facts.host}".casefold()
    return all(word in text for word in words)


def _newest(study: StudyEntry) -> tuple[float, str]:
    return max((r.order for r in study.runs.values()), default=0.0), study.name


def counts(runs: Iterable[RunEntry], dark: bool = True) -> Text:
    """Count runs by status: `3● 2✔ 1✖`."""
    found = Counter(r.facts.label for r in runs)
    out = Text(no_wrap=True, end="")
    for label in ORDER:
        if found[label]:
            sign, colour = colours.status(label, dark)
            out.append(f"{sign} {found[label]}  ", colour)
    return out


def name_cell(row: Row, width: int, dark: bool, picked: bool) -> Text:
    """Write the first column: a tree of study, arm and seed."""
    mark = "◆ " if picked else ""
    if row.kind == "study":
        out = Text(("▸ " if row.folded else "▾ ") + mark, end="", no_wrap=True)
        out.append(row.study.name, "bold")
    elif row.kind == "arm":
        out = Text("  " + ("▸ " if row.folded else "▾ ") + mark, end="", no_wrap=True)
        out.append("━ ", colours.series(row.place, dark))
        out.append(row.arm, "italic")
    else:
        assert row.run is not None
        facts = row.run.facts
        seed = f"seed {facts.seed}" if facts.seed is not None else facts.name
        out = Text("      " + mark, end="", no_wrap=True)
        out.append(seed + (f" {facts.point}" if facts.point else ""))
    out.truncate(width, overflow="ellipsis", pad=True)
    return out


def cells(row: Row, columns: list[Column], dark: bool) -> list[Text]:
    """Write the other columns of a run."""
    assert row.run is not None
    facts, prefer = row.run.facts, row.study.prefer()
    out = []
    for column in columns:
        style = colours.status(facts.label, dark)[1] if column.head in ("status", "progress") else ""
        out.append(Text(fit(column.cell(facts, prefer), column.width, column.right), style, end="", no_wrap=True))
    return out


def summary(row: Row, width: int, dark: bool) -> Text:
    """Write what stands beside a study's or an arm's name: how many runs in which state, means, the question."""
    out = counts(row.runs, dark)
    if row.study.gone:
        out.append("∅ gone  ", colours.status("gone", dark)[1])
    if row.kind == "arm":
        whole = [r.facts.metric(row.study.prefer()) for r in row.runs if r.facts.status == "finished"]
        found = [m for m in whole if m and math.isfinite(m[1]) and m[0] == (row.study.prefer() or m[0])]
        if found:
            mean = ticks.number(sum(value for _, value in found) / len(found))
            out.append(f"val {found[0][0]} {mean}, mean of {len(found)} finished  ", "dim")
    elif row.study.question:
        out.append(row.study.question, "dim italic")
    out.truncate(width, overflow="ellipsis", pad=True)
    return out
