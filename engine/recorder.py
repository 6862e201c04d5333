"""The log of a run while it runs: device scalars wait together and cross to the host in one transfer.

A flush is due after so many steps or so much time. Sums are taken on the host in float64, in the order of training, so
that the cadence of flushing changes no bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .errors import PluginError
from .events import TrainSums
from .hooks import LossTerm, LrAdvice, Named, Number
from .text import printable, slug_problem

if TYPE_CHECKING:
    from .combine import Rates
    from .events_log import EventLog
    from .series import SeriesWriter
    from .task import Evaluation, Metric

RESERVED = ("scale", "ceiling", "why", "term", "weight")


def _plain(advice: LrAdvice) -> bool:
    return isinstance(advice.scale, float | int) and isinstance(advice.ceiling, float | int)


class Recorder:
    """Collects what a run says and writes it as series and events; see `Kernel` for who calls what."""

    def __init__(
        self,
        series: SeriesWriter,
        events: EventLog,
        *,
        steps: int = 64,
        seconds: float = 0.5,
        offsets: Sequence[int] = (0,),
        metrics: Mapping[str, Metric] | None = None,
        flag: Tensor | None = None,
    ) -> None:
        self.series, self.events = series, events
        self._most, self._seconds, self._offsets = steps, seconds, offsets
        self._flag = flag if flag is not None and flag.device.type != "cpu" else None
        self.sums_state: dict[str, float] = {}
        self.items = 0
        self.elapsed = 0.0
        self.last: dict[str, Any] = {}
        self._started = self._flushed = time.monotonic()
        self._advice: dict[str, LrAdvice] = {}
        self._weights: dict[str, float] = {}
        self._names: set[tuple[str, str]] = set()
        self._clear()
        self.begin_epoch()
        self._about: dict[str, dict[str, Any]] = {
            "train.loss": {"better": "lower"},
            "train.total": {"better": "lower"},
            "clock.seconds": {"unit": "s", "volatile": True},
        }
        for split in ("val", "calibration", "test"):
            self._about[f"{split}.loss"] = {"better": "lower"}
            for name, metric in (metrics or {}).items():
                self._about[f"{split}.{name}"] = {"unit": metric.unit, "better": metric.better}
        self._known = set(series.lengths())

    def _append(self, key: str, steps: Any, values: Any) -> None:
        if key not in self._known:
            self._known.add(key)
            self.series.declare(key, **self._about.get(key, {}))
        self.series.append(key, steps, values)

    def _clear(self) -> None:
        self._scalars: list[Tensor] = []
        self._micros: list[tuple[int, int, int]] = []
        self._rows: list[tuple[int, float, float, float, int, float, int]] = []
        self._points: list[tuple[str, int, float, int, float]] = []  # key, step, number, scalar or -1, share
        self._holds: list[tuple[str, int, float | str, int]] = []
        self._flags: list[int] = []

    def _wait(self, value: Tensor) -> int:
        self._scalars.append(value.detach())
        return len(self._scalars) - 1

    # ------------------------------------------------------------------------------------------- from the loop
    def micro(self, loss: Tensor, total: Tensor | None, count: int) -> None:
        """Note one micro-batch's mean loss over `count` items, and its total where terms exist."""
        self._scalars.append(loss)
        at = len(self._scalars) - 1
        self._micros.append((at, at if total is None else self._wait(total), count))

    def terms(self, step: int, terms: Named[LossTerm], share: float) -> None:
        """Note raw values and weights of terms; over the micro-batches of a step values are weighted by `share`."""
        for owner, term in terms:
            self._points.append((f"{owner}.term.{term.name}", step, 0.0, self._wait(term.value), share))
            key = f"{owner}.weight.{term.name}"
            if self._weights.get(key) != term.weight:
                self._weights[key] = float(term.weight)
                self._holds.append((key, step, float(term.weight), -1))

    def step(
        self,
        step: int,
        phase: int,
        epoch: int,
        micro: int,
        batches: int,
        base: Mapping[str, float | None],
        rates: Rates,
        norm: Tensor | None,
    ) -> None:
        """Close a step: its rates and advice, and where on each axis of a chart it lies."""
        (first, rate), *others = rates.lr.items()
        if isinstance(rate, Tensor):
            self._points.append(("train.lr", step, 0.0, self._wait(rate), 1.0))
            rate = math.nan
        start = base[first]
        where = self._offsets[phase] + epoch + micro / batches
        now = time.monotonic() - self._started
        row = (step, rate, math.nan if start is None else start, where, len(self._micros), now, self.items)
        self._rows.append(row)
        for group, other in others:
            self._point(f"train.lr[{group}]", step, other)
        if norm is not None:
            self._points.append(("train.grad_norm", step, 0.0, self._wait(norm), 1.0))
        for owner, advice in rates.advice:
            before = self._advice.get(owner)
            if before is not advice and not (before and _plain(advice) and _plain(before) and before == advice):
                self._advise(owner, step, advice)
        if self._flag is not None:
            self._flags.append(self._wait(self._flag.clone()))

    def _advise(self, owner: str, step: int, advice: LrAdvice) -> None:
        self._advice[owner] = advice
        for what, default in (("scale", 1.0), ("ceiling", math.inf)):
            value = getattr(advice, what)
            named = value.items() if isinstance(value, Mapping) else (("", value),)
            for group, number in named:
                key = f"{owner}.{what}" + (f"[{group}]" if group else "")
                if isinstance(number, Tensor):
                    self._holds.append((key, step, 0.0, self._wait(number)))
                elif what == "scale" or number != default or key in self._known:
                    self._holds.append((key, step, float(number), -1))
        self._holds.append((f"{owner}.why", step, printable(advice.why, 200), -1))

    def due(self) -> bool:
        return len(self._rows) >= self._most or time.monotonic() - self._flushed > self._seconds

    def flush(self, sync: bool = False, flagged: int | None = None) -> int | None:
        """Bring what waits on the device over, write it, and return the first step that the guard flagged, if any.

        Nothing of the flagged step, nor of any after it, is written.
        """
        self._flushed = time.monotonic()
        values = self._fetch()
        if flagged is None:
            flagged = next((row[0] for row, at in zip(self._rows, self._flags, strict=False) if values[at]), None)
        end = math.inf if flagged is None else flagged
        self._write_rows([row for row in self._rows if row[0] < end], values)
        self._write_points([point for point in self._points if point[1] < end], values)
        for key, step, value, at in self._holds:
            if step < end:
                if key not in self._known:
                    self._known.add(key)
                    self.series.declare(key, kind="hold")
                self.series.hold(key, step, value if at < 0 else values[at])
        self._clear()
        self.series.flush(sync)
        return flagged

    def _fetch(self) -> list[float]:
        if not self._scalars:
            return []
        kinds = {scalar.dtype for scalar in self._scalars}
        scalars = self._scalars if len(kinds) == 1 else [scalar.double() for scalar in self._scalars]
        rows: list[float] = torch.stack([scalar.reshape(()) for scalar in scalars]).double().tolist()
        return rows

    def _write_rows(self, rows: list[tuple[int, float, float, float, int, float, int]], values: list[float]) -> None:
        steps, losses, totals, items = [], [], [], []
        sums, done = self.sums_state, 0
        for step, lr, base, _, end, _, _ in rows:
            items.append(self.items)
            loss, total, count = self._sum(self._micros[done:end], values)
            done = end
            steps.append(step)
            losses.append(loss / count)
            totals.append(total / count)
            sums["base"] += base
            sums["updates"] += 1
            self.last = {"train_loss": loss / count, "lr": lr}
        self._sum(self._micros[done:], values)
        if not rows:
            return
        at = np.array(steps, dtype=np.int64)
        columns = np.array([row[1:4] for row in rows])
        append = self._append
        append("train.loss", at, np.array(losses))
        if totals != losses:
            append("train.total", at, np.array(totals))
        if not np.isnan(columns[:, 0]).all():
            append("train.lr", at, columns[:, 0])
        if not np.isnan(columns[:, 1]).all():
            append("train.base_lr", at, columns[:, 1])
        append("train.epoch", at, columns[:, 2])
        append("train.items", at, np.array(items, dtype=np.float64))
        append("clock.seconds", at, np.array([row[5] + self.elapsed for row in rows]))

    def _sum(self, micros: Sequence[tuple[int, int, int]], values: list[float]) -> tuple[float, float, int]:
        loss = total = 0.0
        count = 0
        sums = self.sums_state
        for at, other, n in micros:
            part, whole = values[at] * n, values[other] * n
            loss, total, count = loss + part, total + whole, count + n
            sums["loss"] += part
            sums["total"] += whole
            sums["items"] += n
        self.items += count
        return loss, total, count

    def _write_points(self, points: list[tuple[str, int, float, int, float]], values: list[float]) -> None:
        columns: dict[str, tuple[list[int], list[float]]] = {}
        for key, step, number, at, share in points:
            steps, numbers = columns.setdefault(key, ([], []))
            value = number if at < 0 else values[at] * share
            if share != 1 and steps and steps[-1] == step:
                numbers[-1] += value
            else:
                steps.append(step)
                numbers.append(value)
        for key, (steps, numbers) in columns.items():
            self._append(key, np.array(steps, dtype=np.int64), np.array(numbers))

    # ------------------------------------------------------------------------------------------- from plugins
    def number(self, owner: str, name: str, step: int, value: Number) -> None:
        """Log a number under a plugin's name; a tensor waits on the device until the flush."""
        if (owner, name) not in self._names:
            problem = slug_problem(name)
            if problem or name.split(".")[0] in RESERVED:
                why = problem or "is one that ctr writes itself"
                raise PluginError(f"logs a number whose name {printable(name, 80)} {why}")
            self._names.add((owner, name))
        if isinstance(value, Tensor) and value.numel() != 1:
            raise PluginError(f"logs {name} with a tensor of shape {tuple(value.shape)}; a single number is expected")
        if not isinstance(value, Tensor | int | float | np.number):
            raise PluginError(f"logs {name} with {type(value).__name__}; a number is expected")
        self._point(f"{owner}.{name}", step, value)

    def _point(self, key: str, step: int, value: Number) -> None:
        at = self._wait(value) if isinstance(value, Tensor) else -1
        self._points.append((key, step, 0.0 if at >= 0 else float(value), at, 1.0))

    def state(self, owner: str, name: str, step: int, value: str) -> None:
        self.event("state", step, owner=owner, name=name, value=value)

    def mark(self, owner: str, name: str, step: int, why: str) -> None:
        self.event("mark", step, owner=owner, name=name, why=why)

    def level(self, owner: str, series: str, step: int, value: float, name: str) -> None:
        self.event("level", step, owner=owner, series=series, value=value, name=name)

    # ------------------------------------------------------------------------------------------- at rest
    def event(self, kind: str, step: int, /, **fields: Any) -> None:
        self.events.write(kind, step, **fields)

    def evaluations(self, step: int, evaluations: Mapping[str, Evaluation]) -> None:
        """Write each evaluation's means as series, at the number of updates the weights have had."""
        at = np.array([step], dtype=np.int64)
        for split, evaluation in evaluations.items():
            for name in ("loss", *sorted(evaluation.metrics)):
                self._append(f"{split}.{name}", at, np.array([evaluation.mean(name)]))

    def begin_epoch(self) -> None:
        """Start the sums of an epoch anew."""
        self.sums_state = {"loss": 0.0, "total": 0.0, "items": 0, "base": 0.0, "updates": 0}

    def sums(self) -> TrainSums | None:
        """Return the means over the epoch so far; None before anything was trained."""
        self.flush()
        sums = self.sums_state
        if not sums["items"]:
            return None
        return TrainSums(sums["loss"] / sums["items"], sums["total"] / sums["items"], int(sums["items"]))

    def mean_base_lr(self) -> float | None:
        sums = self.sums_state
        mean = sums["base"] / sums["updates"] if sums["updates"] else math.nan
        return None if math.isnan(mean) else mean

    def seconds(self) -> float:
        """Return the seconds this run has trained, over all its processes."""
        return self.elapsed + time.monotonic() - self._started

    def epoch(self, kernel: Any, kind: str, plan: Any, train: TrainSums | None, accum: int, advice: Any) -> None:
        """Write the record of a moment of rest, with every evaluation and every answer."""
        at = kernel.position
        shown = kernel.evaluations if kind in ("start", "epoch") else {}
        self.event(
            "epoch", at.step, kind=kind, phase=plan.phase.name if plan else None, phase_index=at.phase, epoch=at.epoch,
            items=self.items, seconds=self.seconds(), lr=self.last.get("lr"), grad_accum=accum,
            batches=at.micro if kind == "epoch" else None,
            train={"loss": train.loss, "total": train.total, "items": train.items} if train else None,
            evaluations={split: one.summary() for split, one in shown.items()}, advice=advice,
        )  # fmt: skip

    def memory(self) -> dict[str, Any]:
        """Return what a resumed run must know; a flush must have come first."""
        return {"sums": dict(self.sums_state), "items": self.items, "seconds": self.seconds(), "last": dict(self.last)}

    def restore(self, memory: Mapping[str, Any]) -> None:
        self.sums_state = dict(memory["sums"])
        self.items, self.elapsed, self.last = memory["items"], memory["seconds"], dict(memory["last"])
        self._started = time.monotonic()
