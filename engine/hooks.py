"""The contract: four hooks and the values they answer with. How answers combine stands in `combine`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, Union

import pluggy

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .events import Boundary, Epoch, Forward, Step

PROJECT = "ctr"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")
Number: TypeAlias = Union[float, "Tensor"]
ByGroup: TypeAlias = Union[Number, Mapping[str, Number]]  # noqa: UP007
Named: TypeAlias = Sequence[tuple[str, T]]


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A term added to the task loss: `weight * value`; `value` is a 0-d tensor on the device."""

    name: str
    value: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LrAdvice:
    """What a plugin makes of the rate: a factor on the base rate, and an upper bound.

    Each is a number, a 0-d tensor on the device (then nothing waits for it), or a map from parameter-group name to
    one of these. `why` is a constant label, logged on change.
    """

    scale: ByGroup = 1.0
    ceiling: ByGroup = math.inf
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """What a boundary does to the adapter: `a` is `keep`, `redraw` or a pure function of (now, at start, generator).

    `b` multiplies the factor B, `clear` names the factors whose optimizer state is forgotten, and `merge` folds
    scaling * B * A into the base weights first.
    """

    a: Literal["keep", "redraw"] | Callable[[Tensor, Tensor, Generator], Tensor] = "redraw"
    b: float = 0.0
    clear: frozenset[str] = frozenset({"a", "b"})
    merge: bool = False


@dataclass(frozen=True, slots=True)
class EpochAdvice:
    """What a plugin wants at a moment of rest: accumulation from the next epoch on, a snapshot, the phase's end."""

    grad_accum: int | None = None
    save: str | None = None
    stop_phase: bool = False
    why: str = ""


class Hooks:
    """The four moments at which a plugin may speak."""

    @hookspec
    def extra_loss(self, forward: Forward) -> Iterable[LossTerm]:  # type: ignore[empty-body]
        """Per micro-batch, after forward and before backward: terms to add to the task loss."""

    @hookspec
    def schedule_lr(self, step: Step) -> LrAdvice:  # type: ignore[empty-body]
        """Per step, after backward and clipping and before the update: factors and ceilings of the rate."""

    @hookspec
    def adapter_reset(self, boundary: Boundary) -> Reset | None:
        """At a boundary: what becomes of the adapter. Exclusive: one plugin may answer."""

    @hookspec
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        """At kind `start`, `epoch`, `phase` and `run`: look, log, advise."""


class Silence:
    """The hooks of a phase in which no plugin is asked."""

    plugins = extra_loss = schedule_lr = adapter_reset = on_epoch_end = None
