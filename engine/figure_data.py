"""What the figures draw of one run: a few hundred points of each series, over epochs, and the spans between them.

Contrasts align on epochs, never on steps: with more accumulation an epoch has fewer steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .errors import CtrError
from .report_content import epoch_value
from .report_read import Run, number, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

MOST_POINTS = 600


class Line(NamedTuple):
    """A curve over epochs."""

    x: Numbers
    y: Numbers


class Span(NamedTuple):
    """A stretch of epochs in which a plugin's state had a value."""

    start: float
    end: float
    value: str


class Mark(NamedTuple):
    """A moment that a plugin marked."""

    x: float
    name: str
    why: str


@dataclass
class Trace:
    """One run, ready to be drawn. `spans` are of the state named `regime`, as it was applied."""

    arm: str
    seed: int
    point: str
    end: float
    metric: Line
    loss: Line
    epoch_loss: Line
    lr: Line
    watched: Line
    spans: list[Span] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)


EMPTY = Line(np.empty(0), np.empty(0))


class Axis:
    """Turns steps into epochs by the series `train.epoch`: the epochs done before a step."""

    def __init__(self, steps: NDArray[np.int64], epochs: Numbers) -> None:
        self.steps, self.epochs = steps, epochs
        self.end = float(np.floor(epochs[-1]) + 1) if len(epochs) else 0.0

    def place(self, steps: Any) -> Numbers:
        """Return where the state before each step lies; after the last step, at the end of its epoch."""
        at = np.searchsorted(self.steps, np.asarray(steps, dtype=np.float64))
        return np.append(self.epochs, self.end)[at]

    def closed(self, step: float) -> float:
        """Return the end of the epoch whose last update came before `step`."""
        at = int(np.searchsorted(self.steps, step))
        return float(np.floor(self.epochs[at - 1]) + 1) if at else 0.0


def trace(run: Run, metric: str, watched: str | None) -> Trace:
    """Read what the figures need of a run; a series that is missing or cannot be read is empty, and named."""
    axis = Axis(*_series(run, "train.epoch"))
    lines = {key: _line(run, axis, key) for key in ("train.loss", "train.lr")}
    seen = _line(run, axis, watched) if watched else EMPTY
    return Trace(
        run.arm,
        run.seed,
        run.point,
        axis.end,
        _over_epochs(run, axis, metric, ("start", "epoch")),
        thin(lines["train.loss"]),
        _over_epochs(run, axis, "train.loss", ("epoch",), -0.5),
        _corners(lines["train.lr"], axis.end),
        seen,
        _spans(run, axis),
        [Mark(_x(axis, e), text(e.get("name")), text(e.get("why"))) for e in run.of("mark")],
        [
            (v, text(e.get("name")))
            for e in run.of("level")
            if _key(e) == watched and (v := _finite(e.get("value"))) is not None
        ],
    )


def watched_series(runs: Sequence[Run]) -> str | None:
    """Choose the series that the third panel shows: one with threshold lines, that most runs have.

    Of several, the one with most lines, then the first by name.
    """
    levels = Counter(key for run in runs for e in run.of("level") if (key := _key(e)))
    held = {key: sum(_has(run, key) for run in runs) for key in levels}
    return min(levels, key=lambda key: (-held[key], -levels[key], key), default=None)


def change(line: Line) -> Line:
    """Return the difference of each epoch's mean to the one before at the epoch's end; for runs that log no slope."""
    return Line(line.x[1:] + 0.5, np.diff(line.y)) if len(line.x) > 1 else EMPTY


def thin(line: Line) -> Line:
    """Return at most 600 points, each the mean of its share of the steps; NaN stays visible."""
    n = len(line.x)
    if n <= MOST_POINTS:
        return line
    edges = np.linspace(0, n, MOST_POINTS + 1).astype(np.int64)
    counts = np.diff(edges)
    x, y = (np.add.reduceat(values, edges[:-1]) / counts for values in line)
    return Line(x, y)


def _corners(line: Line, end: float) -> Line:
    """Return a rate up to the run's end without the points inside flat stretches, so that jumps stay jumps."""
    if not len(line.x):
        return line
    line = Line(np.append(line.x, end), np.append(line.y, line.y[-1]))
    y = line.y
    keep = np.ones(len(y), dtype=bool)
    keep[1:-1] = ~((y[1:-1] == y[:-2]) & (y[1:-1] == y[2:]))
    kept = Line(line.x[keep], y[keep])
    every = max(1, len(kept.x) // (4 * MOST_POINTS))
    return Line(kept.x[::every], kept.y[::every])


def _series(run: Run, key: str) -> tuple[NDArray[np.int64], Numbers]:
    from .series import read_series

    try:
        steps, values = read_series(run.folder, key)
        return steps, values
    except (CtrError, OSError, ValueError) as error:
        problem = f"series {key}: {error}"
        if run.events and problem not in run.problems:
            run.problems.append(problem)
        return np.empty(0, np.int64), np.empty(0)


def _has(run: Run, key: str) -> bool:
    from .series import series_index

    try:
        return key in series_index(run.folder)
    except (CtrError, OSError, ValueError):
        return False


def _line(run: Run, axis: Axis, key: str) -> Line:
    if not _has(run, key):
        return EMPTY
    steps, values = _series(run, key)
    return Line(axis.place(steps), values)


def _over_epochs(run: Run, axis: Axis, metric: str, kinds: tuple[str, ...], shift: float = 0.0) -> Line:
    """Return a metric of the epoch records at the ends of the epochs; a mean over an epoch belongs to its middle."""
    points = []
    for event in run.of("epoch"):
        value, step = epoch_value(event, metric), number(event.get("step"))
        if event.get("kind") in kinds and value is not None and step is not None:
            points.append((axis.closed(step) + shift, value))
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    return Line(columns[:, 0], columns[:, 1])


def _spans(run: Run, axis: Axis) -> list[Span]:
    states = [e for e in run.of("state") if e.get("name") == "regime"]
    owner = text(states[0].get("owner")) if states else ""
    states = [e for e in states if text(e.get("owner")) == owner]
    starts = [_x(axis, e) for e in states]
    ends = [*starts[1:], axis.end]
    return [Span(a, b, text(e.get("value"))) for a, b, e in zip(starts, ends, states, strict=False) if b > a]


def _x(axis: Axis, event: dict[str, Any]) -> float:
    return float(axis.place(number(event.get("step")) or 0.0))


def _key(event: dict[str, Any]) -> str:
    owner, series = text(event.get("owner")), text(event.get("series"))
    return series if series.startswith(f"{owner}.") else f"{owner}.{series}"


def _finite(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and np.isfinite(found) else None
