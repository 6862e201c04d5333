"""Runs that belong together, such as the seeds of an arm: their mean with its interval, and pairs for the verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ctr.engine.errors import CtrError
from ctr.engine.stats import Paired, judge, paired, t_interval

from .catalog import RunEntry, StudyEntry
from .clean import plain
from .facts import mapping, text
from .follow import RunStore
from .picture import Axis, Band, Line
from .pyramid import Floats

GRID = 160  # positions at which a mean over seeds is taken for series that are logged at every step


@dataclass
class Member:
    """One run of a group, followed."""

    run: RunEntry
    store: RunStore


@dataclass
class Group:
    """An arm of a study (or one run), with a label and a place in the palette."""

    label: str
    colour: int
    members: list[Member] = field(default_factory=list)

    def want(self, key: str, axis: str) -> None:
        """Follow what a mean of `key` needs: validation numbers stand in the event log already."""
        from .pictures import needed

        for member in self.members:
            of_log = _split_of(key) == "val" and axis == "epoch"
            member.store.want([] if of_log else needed([key], axis))

    def keys(self) -> list[str]:
        return list(dict.fromkeys(key for m in self.members for key in m.store.keys()))


def group(label: str, colour: int, runs: Iterable[RunEntry]) -> Group:
    """Make a group of those runs that have a folder."""
    members = [Member(r, RunStore(r.path, r.facts.study, r.planned)) for r in runs]
    return Group(plain(label, 80), colour, members)


class Follower:
    """Reads on in many runs, a slice of them at each look."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._turn = 0

    def poll(self, seconds: float = 0.04) -> bool:
        stores = [m.store for g in self.groups for m in g.members]
        deadline = time.perf_counter() + seconds
        new = False
        for k in range(len(stores)):
            new |= stores[(self._turn + k) % len(stores)].poll(seconds)
            if time.perf_counter() > deadline:
                self._turn += k + 1
                break
        return new


def curve(member: Member, key: str, axis: str) -> tuple[Floats, Floats]:
    """Return positions and values of a series of one run; validation numbers against epochs come from the log."""
    store = member.store
    if _split_of(key) == "val" and axis == "epoch":
        name = key.split(".", 1)[1]
        rows = [r for r in store.history.epochs if r.kind == "epoch" and r.epoch is not None and name in r.val]
        found = {float(_nth(r.epoch) + 1): r.val[name] for r in rows}
        return np.array(list(found), np.float64), np.array(list(found.values()), np.float64)
    data = store.data(key)
    if not data.size:
        return np.empty(0), np.empty(0)
    x = store.axis(axis)
    if data.size <= GRID:
        return np.array([x.position(float(s)) for s in data.steps]), data.values.copy()
    steps = np.linspace(float(data.steps[0]), float(data.steps[-1]), GRID)
    positions = np.array([x.position(s) for s in steps])
    return positions, data.smooth(steps, max(data.size // GRID, 1))


def _nth(epoch: int | None) -> int:
    return epoch if epoch is not None else 0


def band(of: Group, key: str, axis: str) -> Band:
    """Return the mean over the seeds with its 95 % t interval, wherever two or more seeds have been."""
    curves = [(x, y) for m in of.members for x, y in [curve(m, key, axis)] if len(x)]
    if not curves:
        nothing = np.empty(0)
        return Band(of.label, of.colour, nothing, nothing, nothing, nothing)
    grid = _grid([x for x, _ in curves])
    table = np.array([np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in curves])
    rows = [_interval(column[np.isfinite(column)]) for column in table.T]
    mean, low, high = (np.array(part, np.float64) for part in zip(*rows, strict=True))
    return Band(f"{of.label} {_many(table)}", of.colour, grid, mean, low, high)


def _grid(positions: list[Floats]) -> Floats:
    every = np.unique(np.concatenate(positions))
    every = every[np.isfinite(every)]
    if len(every) <= GRID:
        return every
    return np.linspace(every[0], every[-1], GRID)


def _interval(values: Floats) -> tuple[float, float, float]:
    if not len(values):
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    found = t_interval(values) if len(values) > 1 else None
    return (mean, *found) if found else (mean, mean, mean)


def _many(table: Floats) -> str:
    """Say over how many seeds the mean goes: a mean over fewer seeds is another mean."""
    counts = np.isfinite(table).sum(axis=0)
    least, most = int(counts[counts > 0].min(initial=len(table))), int(counts.max(initial=0))
    return f"n={most}" if least == most else f"n={least}–{most}"


def line(of: Group, key: str, axis: str, smooth: int) -> Line:
    """Draw a single run as it is."""
    store = of.members[0].store
    about = store.about(key)
    own: Axis = store.axis(axis)
    return Line(of.label, of.colour, store.data(key), about.hold, float(store.newest()), smooth, own)


# pairs


@dataclass(frozen=True)
class Contrast:
    """One arm held against another on one metric, at one point of a sweep."""

    a: str
    b: str
    point: str
    metric: str
    unit: str
    better: str
    result: Paired
    waiting: int  # seeds that have no value of both arms yet


def metrics(study: StudyEntry) -> list[str]:
    """Return what can be paired: what the study compares on, then the same and the loss on validation so far."""
    on = study.index.get("on")
    named = [text(m, 80) for m in (on if isinstance(on, list) else [on]) if isinstance(m, str)]
    so_far = [f"val.{m.split('.', 1)[1]}" for m in named if "." in m]
    return [m for m in dict.fromkeys([*named, *so_far, "val.loss"]) if m]


def contrasts(study: StudyEntry, groups: Sequence[Group], metric: str) -> list[Contrast]:
    """Pair the arms by seed and judge all contrasts of the metric together."""
    about = mapping(mapping(study.index.get("metrics")).get(metric))
    better = "lower" if about.get("better") == "lower" or (not about and metric.endswith("loss")) else "higher"
    found: list[Contrast] = []
    for a, b in _pairs(study, groups):
        for point in _points(groups, a, b):
            pairs, waiting = _values(groups, a, b, point, metric)
            try:
                result = paired(pairs, "lower" if better == "lower" else "higher", (a, b))
            except (CtrError, ValueError, OverflowError):
                continue
            found.append(Contrast(a, b, point, metric, text(about.get("unit"), 12), better, result, waiting))
    judged = judge([c.result for c in found])
    return [_with(c, r) for c, r in zip(found, judged, strict=True)]


def _with(contrast: Contrast, result: Paired) -> Contrast:
    from dataclasses import replace

    return replace(contrast, result=result)


def _pairs(study: StudyEntry, groups: Sequence[Group]) -> list[tuple[str, str]]:
    listed = study.index.get("contrasts")
    pairs = [p for p in listed if isinstance(p, list) and len(p) == 2] if isinstance(listed, list) else []
    named = [(text(a, 80), text(b, 80)) for a, b in pairs]
    known = {g.label for g in groups}
    good = [(a, b) for a, b in named if a in known and b in known]
    return good or [(g.label, groups[0].label) for g in groups[1:]]


def _points(groups: Sequence[Group], a: str, b: str) -> list[str]:
    found = [m.run.facts.point for g in groups if g.label in (a, b) for m in g.members]
    named = [p for p in dict.fromkeys(found) if p]
    return named or [""]


def _values(
    groups: Sequence[Group], a: str, b: str, point: str, metric: str
) -> tuple[dict[int, tuple[float | None, float | None]], int]:
    """Return for each seed the value of both arms; on validation both at the last epoch that both have reached."""
    pairs: dict[int, tuple[float | None, float | None]] = {}
    waiting = 0
    one, two = _by_seed(groups, a, point), _by_seed(groups, b, point)
    for seed in dict.fromkeys([*one, *two]):
        left, right = one.get(seed), two.get(seed)
        if left is None or right is None:
            continue
        x, y = _pair(left, right, metric)
        over = all(m.run.facts.label in ("finished", "failed", "stopped") for m in (left, right))
        if (x is None or y is None) and not over:
            waiting += 1
        else:
            pairs[seed] = (x, y)
    return pairs, waiting


def _by_seed(groups: Sequence[Group], arm: str, point: str) -> dict[int, Member]:
    members = [m for g in groups if g.label == arm for m in g.members if m.run.facts.seed is not None]
    at = [m for m in members if m.run.facts.point == point] or [m for m in members if not m.run.facts.point]
    return {m.run.facts.seed: m for m in at if m.run.facts.seed is not None}


def _pair(left: Member, right: Member, metric: str) -> tuple[float | None, float | None]:
    if _split_of(metric) != "val":
        return _read(left, metric), _read(right, metric)
    name = metric.split(".", 1)[1]
    ours, theirs = _epochs(left, name), _epochs(right, name)
    both = set(ours) & set(theirs)
    return (ours[max(both)], theirs[max(both)]) if both else (None, None)


def _read(member: Member, metric: str) -> float | None:
    split, _, name = metric.partition(".")
    found = member.store.history.latest(split, "selected")
    return found.values.get(name) if found else None


def _epochs(member: Member, name: str) -> dict[int, float]:
    rows = [r for r in member.store.history.epochs if r.kind == "epoch"]
    return {k: r.val[name] for k, r in enumerate(rows) if name in r.val}


def _split_of(key: str) -> str:
    return key.split(".", 1)[0]
