"""What hooks are given. `owner` is set by the host before each call, so that every number logged has an owner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from .hooks import Number
    from .matrix import Matrix
    from .probe import Evaluator, Probe
    from .task import Batch, Evaluation, Outputs


class Log(Protocol):
    """Where numbers, spans, marks and threshold lines go; the kernel knows no more of it."""

    def number(self, owner: str, name: str, step: int, value: Number) -> None: ...
    def state(self, owner: str, name: str, step: int, value: str) -> None: ...
    def mark(self, owner: str, name: str, step: int, why: str) -> None: ...
    def level(self, owner: str, series: str, step: int, value: float, name: str) -> None: ...
    def record(self, owner: str, name: str, step: int, data: Mapping[str, Any]) -> None: ...


@dataclass
class Event:
    """Where in the run a hook is called: phase, epoch within the phase, and the updates done so far."""

    phase: str | None
    phase_index: int
    epoch: int
    step: int
    sink: Log = field(repr=False)
    owner: str = field(default="", init=False)

    @cached_property
    def log(self) -> Any:
        return OwnedLog(self)


class OwnedLog:
    """Logs under the name of the plugin that is being asked; calling it logs a number."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, name: str, value: Number) -> None:
        event = self._event
        event.sink.number(event.owner, name, event.step, value)

    number = __call__

    def state(self, name: str, value: str) -> None:
        """Begin a span: `name` has `value` until the next state of that name."""
        self._event.sink.state(self._event.owner, name, self._event.step, value)

    def mark(self, name: str, why: str) -> None:
        self._event.sink.mark(self._event.owner, name, self._event.step, why)

    def record(self, name: str, **data: Any) -> None:
        """Keep data of any shape that JSON has, for panels and reports; numbers for charts go through `number`."""
        self._event.sink.record(self._event.owner, name, self._event.step, data)

    def level(self, series: str, value: float, name: str = "") -> None:
        """Draw a threshold line at `value` over the series `series`."""
        self._event.sink.level(self._event.owner, series, self._event.step, value, name)


class Adapted:
    """An event that shows the adapter in training: its pairs as they are, not copied, and each A when the run began."""

    _adapter: Any
    factors = property(lambda self: self._adapter.factors if self._adapter else ())
    start = property(lambda self: self._adapter.start if self._adapter else {})


@dataclass
class Forward(Event):
    """A forward pass, before its backward; `outputs` hold what the plugin's `needs` asked for."""

    outputs: Outputs
    batch: Batch


@dataclass
class Step(Adapted, Event):
    """The moment between backward and update. What is lazy here is computed when first asked."""

    epoch_float: float
    base_lr: Mapping[str, float | None]
    _grad_norm: Callable[[], Tensor] = field(repr=False)
    direction: Callable[[], Mapping[str, list[Tensor]]] = field(repr=False)
    _adapter: Any = field(repr=False, default=None)

    @cached_property
    def grad_norm(self) -> Tensor:
        """The global L2 norm of the gradients before clipping, 0-d on the device."""
        return self._grad_norm()


@dataclass
class Boundary(Adapted, Event):
    """The beginning of a run, a phase, an epoch or a set of documents; `slots` are those it concerns.

    `index` counts phases, epochs of the phase or sets of documents, from 0.
    """

    kind: str
    index: int = 0
    slots: Sequence[int] = ()
    _adapter: Any = field(repr=False, default=None)


@dataclass(frozen=True)
class TrainSums:
    """Means over the items of an epoch, measured while the weights moved; `total` includes the terms."""

    loss: float
    total: float
    items: int


@dataclass
class Epoch(Adapted, Event):
    """A moment of rest; `kind` is `start`, `epoch`, `phase` or `run`.

    `snapshots` hold the adapter at `start` and `end` of each phase that trained it, as `<target>.a` and `<target>.b`;
    of phases before the adapter was folded into the base there are none.
    """

    kind: str
    epochs: int
    train: TrainSums | None
    evaluations: Mapping[str, Evaluation]
    base_lr: float | None
    grad_accum: int
    spec_grad_accum: int
    snapshots: Mapping[str, Mapping[str, Mapping[str, Tensor]]]
    matrix: Matrix | None
    evaluate: Evaluator
    probe: Probe
    _adapter: Any = field(repr=False, default=None)
