"""The log of a run while it runs: device scalars wait together and cross to the host in one transfer.

A flush is due after so many steps or so much time. Sums are taken on the host in float64, in the order of training, so
that the cadence of flushing changes no bit.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from .combine import pick
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


def plain(advice: LrAdvice) -> bool:
    """Say whether an answer is made of host-side numbers that hold for every group."""
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
        declared: Mapping[str, Mapping[str, Metric]] | None = None,
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
        self._columns: dict[str, tuple[list[int], list[Any]]] = {}
        self._owned: dict[tuple[str, str], tuple[list[int], list[Any]]] = {}
        self._rates: Rates | None = None
        self._has_terms = False
        self._held = set(series.lengths())
        self._others: list[tuple[str, str]] = []
        self._base, self._lr = math.nan, cast(Number, math.nan)
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
        for owner, named in (declared or {}).items():
            for name, metric in named.items():
                self._about[f"{owner}.{name}"] = {"unit": metric.unit, "better": metric.better}
        self._known = set(series.lengths())

    def _append(self, key: str, steps: Any, values: Any) -> None:
        if key not in self._known:
            self._known.add(key)
            family = ".".join(key.split(".")[:2])  # what a plugin says of `rank` holds for its `rank.layer3` too
            self.series.declare(key, **self._about.get(key, self._about.get(family, {})))
        self.series.append(key, steps, values)

    def _clear(self) -> None:
        self._waiting: list[tuple[list[Any], int]] = []
        self._losses: list[Any] = []
        self._totals: list[Any] = []
        self._counts: list[int] = []
        self._rows: list[tuple[int, float, float, int, float]] = []
        self._lrs: list[Any] = []
        self._holds: list[tuple[str, int, list[Any]]] = []
        self._flags: list[Any] = []
        for steps, values in self._columns.values():
            steps.clear()
            values.clear()

    def _put(self, into: list[Any], value: Number, copy: bool = False) -> None:
        """Note a number; a scalar on the host is read at once, one on a device waits for the transfer.

        What a plugin may change in place meanwhile is copied.
        """
        if type(value) is float:
            into.append(value)
        elif not isinstance(value, Tensor):
            into.append(float(value))
        elif value.dim():  # a rate per slot is told as its mean
            self._put(into, value.detach().float().mean(), copy)
        elif value.is_cpu:
            into.append((value.detach() if value.requires_grad else value).item())
        else:
            self._waiting.append((into, len(into)))
            into.append(value.detach().clone() if copy else value.detach())

    def _column(self, key: str) -> tuple[list[int], list[Any]]:
        column = self._columns.get(key)
        if column is None:
            column = self._columns[key] = ([], [])
        return column

    # ------------------------------------------------------------------------------------------- from the loop
    def micro(self, loss: Tensor, total: Tensor | None, count: int) -> None:
        """Note one micro-batch's mean loss over `count` items, and its total where terms exist."""
        self._put(self._losses, loss)
        if total is not None or not loss.is_cpu:
            self._put(self._totals, loss if total is None else total)
        else:
            self._totals.append(self._losses[-1])
        self._counts.append(count)

    def terms(self, step: int, terms: Named[LossTerm], share: float) -> None:
        """Note raw values and weights of terms; over the micro-batches of a step values are weighted by `share`."""
        self._has_terms = True
        for owner, term in terms:
            steps, values = self._column(f"{owner}.term.{term.name}")
            if share == 1:
                steps.append(step)
                self._put(values, term.value)
            elif steps and steps[-1] == step:
                values[-1] = (
                    values[-1] + float(term.value.detach()) * share
                    if term.value.is_cpu
                    else (values[-1] + term.value.detach() * share)
                )
            else:
                steps.append(step)
                self._put(values, term.value.detach() * share)
            key = f"{owner}.weight.{term.name}"
            if self._weights.get(key) != term.weight:
                self._weights[key] = float(term.weight)
                self._holds.append((key, step, [float(term.weight)]))

    def step(
        self,
        step: int,
        phase: int,
        epoch: int,
        micro: int,
        batches: int,
        rates: Rates,
        norm: Tensor | None,
    ) -> None:
        """Close a step: its rates and advice, and where on each axis of a chart it lies."""
        if rates is not self._rates:
            self._note_rates(step, rates)
        self._put(self._lrs, self._lr)
        for group, key in self._others:
            self._point(f"train.lr[{group}]", step, rates.lr[group])
            self._point(key, step, math.nan if (base := rates.base[group]) is None else base)
        where = self._offsets[phase] + epoch + micro / batches
        now = time.monotonic() - self._started
        self._rows.append((step, self._base, where, len(self._counts), now))
        if norm is not None:
            self._point("train.grad_norm", step, norm)
        if self._flag is not None:
            self._put(self._flags, self._flag.clone())

    def _note_rates(self, step: int, rates: Rates) -> None:
        """Take rates that are not those of the step before; the same object says the same."""
        self._rates = rates
        first, rate = next(iter(rates.lr.items()))
        base = rates.base[first]
        self._base = math.nan if base is None else base
        self._lr = rate
        self._others = [(group, f"train.base_lr[{group}]") for group in rates.lr if group != first]
        for owner, advice in rates.advice:
            before = self._advice.get(owner)
            same = before is advice or (before and plain(before) and before == advice)
            if not (plain(advice) and same):  # a tensor may have changed in place
                self._advise(owner, step, advice, first, rates.lr)

    def _advise(self, owner: str, step: int, advice: LrAdvice, first: str, groups: Iterable[str]) -> None:
        """Hold what an answer says: the first group without a name, another where it was ever told apart."""
        self._advice[owner] = advice
        for what, default in (("scale", 1.0), ("ceiling", math.inf)):
            value = getattr(advice, what)
            for group in groups:
                number = pick(value, group, default)
                key = f"{owner}.{what}" if group == first else f"{owner}.{what}[{group}]"
                told = key in self._held
                apart = what == "scale" or isinstance(number, Tensor) or number != default
                if told or (apart and (group == first or isinstance(value, Mapping))):
                    self._held.add(key)
                    held: list[Any] = []
                    self._put(held, number, copy=True)
                    self._holds.append((key, step, held))
        self._holds.append((f"{owner}.why", step, [printable(advice.why, 200)]))

    def due(self) -> bool:
        return len(self._rows) >= self._most or time.monotonic() - self._flushed > self._seconds

    def flush(self, sync: bool = False, flagged: int | None = None) -> int | None:
        """Bring what waits on the device over, write it, and return the first step that the guard flagged, if any.

        Nothing of the flagged step, nor of any after it, is written.
        """
        self._flushed = time.monotonic()
        try:
            self._fetch()
            if flagged is None:
                flagged = next((row[0] for row, flag in zip(self._rows, self._flags, strict=False) if flag), None)
            self._write(sys.maxsize if flagged is None else flagged)
        finally:
            self._clear()  # what could not be written once must not be tried again on top of later rows
        self.series.flush(sync)
        return flagged

    def _write(self, end: int) -> None:
        """Hand everything of the steps before `end` to the series."""
        self._write_rows([row for row in self._rows if row[0] < end])
        for key, (steps, values) in self._columns.items():
            if steps and steps[-1] >= end:
                kept = [at for at, step in enumerate(steps) if step < end]
                self._append(key, [steps[at] for at in kept], [values[at] for at in kept])
            elif steps:
                self._append(key, steps, values)
        for key, step, held in self._holds:
            if step < end:
                if key not in self._known:
                    self._known.add(key)
                    self.series.declare(key, kind="hold")
                self.series.hold(key, step, held[0])

    def _fetch(self) -> None:
        """Put a number in the place of every scalar that waits on the device, by one transfer."""
        if self._waiting:
            scalars = [into[at].reshape(()) for into, at in self._waiting]
            if len({scalar.device for scalar in scalars}) > 1:
                scalars = [scalar.cpu() for scalar in scalars]
            if len({scalar.dtype for scalar in scalars}) > 1:
                scalars = [scalar.double() for scalar in scalars]
            for (into, at), value in zip(self._waiting, torch.stack(scalars).double().tolist(), strict=True):
                into[at] = value

    def _write_rows(self, rows: list[tuple[int, float, float, int, float]]) -> None:
        losses, totals, items, done = [], [], [], 0
        base_sum = self.sums_state["base"]
        for _, base, _, end, _ in rows:
            items.append(self.items)
            loss, total, count = self._sum(done, end)
            done = end
            losses.append(loss / count)
            totals.append(total / count)
            base_sum += base
        self._sum(done, len(self._counts))
        if not rows:
            return
        self.sums_state["base"] = base_sum
        self.sums_state["updates"] += len(rows)
        steps, bases, where, _, clock = zip(*rows, strict=True)
        lrs = self._lrs[: len(rows)]
        at = np.array(steps, dtype=np.int64)
        self.last = {"train_loss": losses[-1], "lr": lrs[-1]}
        self._append("train.loss", at, losses)
        if self._has_terms:
            self._append("train.total", at, totals)
        self._append("train.lr", at, lrs)
        if bases[0] == bases[0]:
            self._append("train.base_lr", at, bases)
        self._append("train.epoch", at, where)
        self._append("train.items", at, items)
        self._append("clock.seconds", at, np.array(clock) + self.elapsed)

    def _sum(self, start: int, end: int) -> tuple[float, float, int]:
        """Add micro-batches to the sums of the epoch, one after the other; return loss, total and items of these."""
        if start == end:
            return 0.0, 0.0, 0
        sums = self.sums_state
        loss = total = 0.0
        count = 0
        for at in range(start, end):
            n = self._counts[at]
            if not n:  # scored, not trained; 0 x NaN would poison the sums
                continue
            part, whole = self._losses[at] * n, self._totals[at] * n
            loss, total, count = loss + part, total + whole, count + n
            sums["loss"] += part
            sums["total"] += whole
        sums["items"] += count
        self.items += count
        return loss, total, count

    # ------------------------------------------------------------------------------------------- from plugins
    def number(self, owner: str, name: str, step: int, value: Number) -> None:
        """Log a number under a plugin's name; a tensor on a device waits there until the flush."""
        steps, values = self._owned.get((owner, name)) or self._new_name(owner, name)
        if type(value) is not float:
            value = self._checked(name, value)
        steps.append(step)
        if type(value) is float:
            values.append(value)
        else:
            self._put(values, value, copy=True)

    def _checked(self, name: str, value: Any) -> Number:
        """Return a number as a float, a device scalar as it is; refuse everything else."""
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex() or value.is_meta:
                shown = f"a tensor of shape {tuple(value.shape)}, {value.dtype}, on {value.device}"
                raise PluginError(f"logs {name} with {shown}; a single number is expected")
            if not value.is_cpu:
                return value
            return float((value.detach() if value.requires_grad else value).item())
        if not isinstance(value, int | float | np.number):
            raise PluginError(f"logs {name} with {type(value).__name__}; a number is expected")
        return float(value)

    def _new_name(self, owner: str, name: str) -> tuple[list[int], list[Any]]:
        problem = slug_problem(name)
        if problem or name.split(".")[0] in RESERVED:
            why = problem or "is one that ctr writes itself"
            raise PluginError(f"logs a number whose name {printable(name, 80)} {why}")
        column = self._owned[(owner, name)] = self._column(f"{owner}.{name}")
        return column

    def _point(self, key: str, step: int, value: Number) -> None:
        steps, values = self._column(key)
        steps.append(step)
        self._put(values, value)

    def state(self, owner: str, name: str, step: int, value: str) -> None:
        self.event("state", step, owner=owner, name=name, value=value)

    def mark(self, owner: str, name: str, step: int, why: str) -> None:
        self.event("mark", step, owner=owner, name=name, why=why)

    def level(self, owner: str, series: str, step: int, value: float, name: str) -> None:
        self.event("level", step, owner=owner, series=series, value=value, name=name)

    def record(self, owner: str, name: str, step: int, data: Mapping[str, Any]) -> None:
        if problem := slug_problem(name):
            raise PluginError(f"keeps a record whose name {printable(name, 80)} {problem}")
        self.event("record", step, owner=owner, name=name, data=dict(data))

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
