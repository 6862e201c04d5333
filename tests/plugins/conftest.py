"""Small stand-ins for what hooks are given: an epoch, a step, and a sink that remembers what was logged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from ctr.engine.events import Epoch, Step, TrainSums


@dataclass
class Sink:
    """Remembers every record as (kind, step, what was said)."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def number(self, owner: str, name: str, step: int, value: Any) -> None:
        self.rows.append(("number", step, name, value))

    def state(self, owner: str, name: str, step: int, value: str) -> None:
        self.rows.append(("state", step, name, value))

    def mark(self, owner: str, name: str, step: int, why: str) -> None:
        self.rows.append(("mark", step, name, why))

    def level(self, owner: str, series: str, step: int, value: float, name: str) -> None:
        self.rows.append(("level", step, series, value, name))

    def of(self, kind: str, name: str) -> list[Any]:
        """Return (step, value) of every record of a kind and name."""
        return [(row[1], row[3]) for row in self.rows if row[0] == kind and row[2] == name]


@dataclass
class Scored:
    """An evaluation of which only mean and standard error are known."""

    loss: float
    spread: float = 0.0

    def mean(self, name: str = "loss") -> float:
        return self.loss

    def se(self, name: str = "loss") -> float:
        return self.spread


@dataclass
class Bench:
    """Drives one plugin through a run of `per_epoch` steps an epoch and keeps what was in force at each step."""

    plugin: Any
    owner: str = "phase_controller"
    per_epoch: int = 3
    spec_accum: int = 1
    base_lr: float | None = 0.01
    groups: tuple[str, ...] = ("base",)
    sink: Sink = field(default_factory=Sink)
    step: int = 0
    advice: Any = None
    scales: list[Any] = field(default_factory=list)
    accums: list[int] = field(default_factory=list)

    def start(self, epochs: int = 9) -> None:
        self.advice = self._ask("start", None, 0, 0, epochs, None, None)

    def train(self, epoch: int, phase: int = 0, name: str = "main") -> None:
        """Take the steps of one epoch."""
        self.accums.append((self.advice.grad_accum if self.advice else None) or self.spec_accum)
        for _ in range(self.per_epoch):
            base = dict.fromkeys(self.groups, self.base_lr)
            step = Step(name, phase, epoch, self.step, self.sink, epoch + 0.5, base, lambda: None, lambda: {})  # type: ignore[arg-type, return-value]
            step.owner = self.owner
            self.scales.append(self.plugin.schedule_lr(step))
            self.step += 1

    def rest(
        self, epoch: int, train: float | None, val: Any = None, phase: int = 0, epochs: int = 9, name: str = "main"
    ) -> Any:
        """End one epoch and keep its advice."""
        self.advice = self._ask("epoch", name, phase, epoch, epochs, train, val)
        return self.advice

    def end_phase(self, phase: int, epochs: int, name: str = "main") -> None:
        self._ask("phase", name, phase, epochs, epochs, None, None)
        self.advice = None

    def run(self, losses: list[tuple[float, float | None]]) -> None:
        """Run one phase with these train and eval losses."""
        self.start(len(losses))
        for epoch, (train, val) in enumerate(losses):
            self.train(epoch)
            self.rest(epoch, train, None if val is None else Scored(val), epochs=len(losses))

    def _ask(
        self, kind: str, name: str | None, phase: int, epoch: int, epochs: int, train: float | None, val: Any
    ) -> Any:
        sums = None if train is None else TrainSums(train, train, 100)
        evaluations: Any = {} if val is None else {"val": val}
        base = self.base_lr if kind == "epoch" else None
        accum = self.accums[-1] if self.accums else self.spec_accum
        nothing: Any = None
        event = Epoch(
            name, phase, epoch, self.step, self.sink, kind, epochs, sums, evaluations, base, accum, self.spec_accum,
            {}, None, nothing, nothing,
        )  # fmt: skip
        event.owner = self.owner
        return self.plugin.on_epoch_end(event)


@pytest.fixture
def bench() -> Callable[..., Bench]:
    return Bench


@pytest.fixture
def scored() -> Callable[..., Scored]:
    return Scored
