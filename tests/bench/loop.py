"""The kernel over a loop written by hand: bare, with plugins that set the rate, and with ten series a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ctr.engine.events import Step
from ctr.engine.hooks import hookimpl
from ctr.plugins.controls import ConstantScale
from ctr.plugins.phase_controller import PhaseController

from .bench import Bench
from .clock import Times, interleave, ratio, surplus
from .digits import BLOCK, WANTED, Engine, Hand, same_weights, steps
from .table import Row, Section

NAMES = tuple(f"series_{number}" for number in range(10))


class Silent:
    """Is asked at every step and says nothing: what the ten series are measured against."""

    @hookimpl
    def schedule_lr(self, step: Step) -> None:
        return None


class TenSeries:
    """Logs ten values a step, which lie ready."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = list(zip(NAMES, values, strict=True))

    @hookimpl
    def schedule_lr(self, step: Step) -> None:
        log = step.log
        for name, value in self.values:
            log(name, value)


def tensors() -> list[torch.Tensor]:
    return list(torch.arange(10.0).unbind())


def rate_plugins() -> dict[str, Any]:
    """Return the two plugins of the budget, which both speak at every step."""
    controller = PhaseController(PhaseController.Config.model_validate({"rule": "faithful"}), None)
    scale = ConstantScale(ConstantScale.Config.model_validate({"scale": 1.1}), None)
    return {"phase_controller": controller, "constant_scale": scale}


def measure(bench: Bench) -> Section:
    """Run every variant in turn and set each over the loop written by hand."""
    width, rounds = bench.size.width, bench.rounds(60)
    hand = Hand(width)
    engines = {
        "bare": Engine(bench.folder("bare"), width),
        "rates": Engine(bench.folder("rates"), width, rate_plugins()),
        "full": Engine(bench.folder("full"), width, {**rate_plugins(), "ten": TenSeries(tensors())}),
        "silent": Engine(bench.folder("silent"), width, {"ten": Silent()}),
        "ten tensors": Engine(bench.folder("tensors"), width, {"ten": TenSeries(tensors())}),
        "ten numbers": Engine(bench.folder("numbers"), width, {"ten": TenSeries([float(i) for i in range(10)])}),
    }
    contestants = {"hand": steps(hand.train), **{name: steps(engine.train) for name, engine in engines.items()}}
    times = interleave(contestants, rounds, warm_up=3)
    if not same_weights(hand, engines["bare"]):
        raise AssertionError("the kernel and the loop written by hand trained different weights: nothing to compare")
    for engine in engines.values():
        engine.close()
    step = 1e6 * min(times["hand"])
    within = "" if WANTED[0] <= step <= WANTED[1] else f", outside the {WANTED[0]:g} to {WANTED[1]:g} µs wanted"
    method = f"{bench.size}. CPU time per step: smallest of {rounds} interleaved blocks of {BLOCK} steps, and the "
    method += "median of the ratios within a round. Log to disk every 64 steps; same weights as by hand to the bit."
    silence = "over a plugin that logs nothing"
    rows = [
        Row("a step of the loop written by hand", step, "µs", note=within.lstrip(", ")),
        _over(times, "bare", "kernel, no plugin, guard on", 1.08),
        _over(times, "rates", "with phase controller and constant scale"),
        _over(times, "full", "with these and 10 series a step", 1.20, "; target 1.15"),
        Row("10 series a step, 0-d tensors", *_between(times, "ten tensors"), bar=5.0, note=silence),
        Row("10 series a step, Python numbers", *_between(times, "ten numbers"), bar=5.0, note=silence),
    ]
    return Section("The kernel over a loop written by hand", method, rows)


def _over(times: Times, name: str, shown: str, bar: float | None = None, more: str = "") -> Row:
    measured, median = ratio(times, name, "hand")
    return Row(shown, measured, "×", median, bar, note=f"+{surplus(times, name, 'hand')[0]:.1f} µs a step{more}")


def _between(times: Times, name: str) -> tuple[float, str, float]:
    measured, median = surplus(times, name, "silent")
    return measured, "µs", median
