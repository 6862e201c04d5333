"""The log alone: what noting a step costs, and what ten more series cost, with their transfer and their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import torch

from ctr.engine.combine import Rates
from ctr.engine.events import Event
from ctr.engine.events_log import EventLog
from ctr.engine.recorder import Recorder
from ctr.engine.series import SeriesWriter

from .bench import Bench
from .clock import interleave, surplus
from .digits import BATCH, BLOCK, RATE, steps
from .loop import NAMES, tensors
from .table import Row, Section

FLUSH = 64


def logging_loop(bench: Bench, name: str, values: Sequence[Any]) -> Callable[[], None]:
    """Return a function that logs a block of steps as the kernel does, and `values` as a plugin does."""
    folder = bench.folder(name)
    log = Recorder(SeriesWriter(folder), EventLog(folder), steps=FLUSH, seconds=60.0, offsets=[0, 1])
    loss, numbers = torch.ones(()), count()
    rates, named = Rates({"base": RATE}, (), {"base": RATE}), list(zip(NAMES, values, strict=False))

    def work() -> None:
        for step in (next(numbers) for _ in range(BLOCK)):
            event = Event("main", 0, 0, step, log)
            event.owner = "ten"
            say = event.log
            for series, value in named:
                say(series, value)
            log.micro(loss, None, BATCH)
            log.step(step, 0, 0, step, 1_000_000_000, rates, None)
            if log.due():
                log.flush()

    return work


def measure(bench: Bench) -> Section:
    rounds = bench.rounds(60)
    lists: dict[str, list[Any]] = {"plain": [], "tensors": tensors(), "numbers": [float(i) for i in range(10)]}
    times = interleave({name: steps(logging_loop(bench, name, v)) for name, v in lists.items()}, rounds, warm_up=3)
    ten, numbers = (surplus(times, name, "plain") for name in ("tensors", "numbers"))
    rows = [
        Row("a step without further series", 1e6 * min(times["plain"]), "µs", note="loss, rates, epoch, items, clock"),
        Row("10 series a step, 0-d tensors", ten[0], "µs", ten[1], bar=5.0),
        Row("10 series a step, Python numbers", numbers[0], "µs", numbers[1], bar=5.0),
    ]
    method = f"The recorder without a kernel, flushed to files every {FLUSH} steps. CPU time per step, smallest of "
    method += f"{rounds} interleaved blocks of {BLOCK} steps, and the paired median."
    return Section("The log alone", method, rows)
