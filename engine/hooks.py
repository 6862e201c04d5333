"""The contract: four hooks, their answers, and the laws by which answers combine.

Answers are values and combine without order: shuffling the registration of plugins changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, Union

import pluggy

from .errors import GuardError, PluginError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from .events import Boundary, Epoch, Forward, Step

PROJECT = "ctr"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")
Number: TypeAlias = Union[float, "Tensor"]
ByGroup: TypeAlias = Union[Number, Mapping[str, Number]]
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


@dataclass(slots=True)
class Rates:
    """The rate of each group and how it came about; `binding` names the plugin whose ceiling set it, if one did."""

    lr: dict[str, Number]
    advice: Named[LrAdvice]

    def binding(self, group: str) -> str | None:
        """Name the plugin whose ceiling set the rate of `group`; reads tensors, so not for the hot path."""
        lowest = sorted((float(pick(a.ceiling, group, math.inf)), name) for name, a in self.advice)
        return lowest[0][1] if lowest and lowest[0][0] < math.inf and float(self.lr[group]) == lowest[0][0] else None


def pick(value: ByGroup, group: str, default: float) -> Number:
    """Return what `value` says about `group`; a group that a map does not name gets `default`."""
    return value.get(group, default) if isinstance(value, Mapping) else value


def resolve_lr(base: Mapping[str, float | None], advice: Named[LrAdvice]) -> Rates:
    """Combine rates: base × Π scale in sorted-name order, then the lowest ceiling, for each group.

    A tensor in any answer makes that group's rate a tensor, and nothing waits for it. Raises `GuardError` for a
    host-side number that is negative or not finite, `PluginError` where neither a base rate nor a ceiling exists.
    """
    rates: dict[str, Number] = {}
    for group, start in base.items():
        rate: Number = math.inf if start is None else start
        ceiling: Number = math.inf
        for name, answer in advice:
            scale, bound = pick(answer.scale, group, 1.0), pick(answer.ceiling, group, math.inf)
            _check_rate(name, "scale", group, scale)
            _check_rate(name, "ceiling", group, bound)
            rate = rate * scale
            ceiling = _lower(ceiling, bound)
        rates[group] = rate = _lower(rate, ceiling)
        if isinstance(rate, float | int) and rate == math.inf:
            text = f"group {group} has no base rate and no ceiling: set train.optimizer.base_lr, or name a plugin that answers a ceiling"
            raise PluginError(text, hook="schedule_lr")
    return Rates(rates, advice)


def _lower(left: Number, right: Number) -> Number:
    if isinstance(left, float | int):
        if left == math.inf:
            return right
        return min(left, right) if isinstance(right, float | int) else right.clamp(max=left)
    if isinstance(right, float | int):
        return left if right == math.inf else left.clamp(max=right)
    return left.minimum(right)


def _check_rate(plugin: str, what: str, group: str, value: Number) -> None:
    if isinstance(value, float | int) and not (0 <= value < math.inf or (what == "ceiling" and value == math.inf)):
        text = f"plugin {plugin}: schedule_lr answered {what} {value} for group {group}; it must be finite and not negative"
        raise GuardError(text, culprit=f"rate {what} of plugin {plugin}")


def resolve_terms(task_loss: Tensor, terms: Named[LossTerm]) -> Tensor:
    """Return task loss + Σ weight·value in sorted-name order; a weight of 0 leaves the graph untouched."""
    total = task_loss
    for _, term in terms:
        if term.weight != 0:
            total = total + (term.value if term.weight == 1 else term.weight * term.value)
    return total


def resolve_reset(answers: Named[Reset]) -> tuple[str, Reset] | None:
    """Return the one answer with its owner, or None; two answers are a `PluginError` that names both."""
    if len(answers) > 1:
        names = " and ".join(name for name, _ in answers)
        raise PluginError(f"plugins {names} both answered adapter_reset; a reset has one owner", hook="adapter_reset")
    return answers[0] if answers else None


def resolve_epoch(answers: Named[EpochAdvice]) -> dict[str, Any]:
    """Combine advice: the largest `grad_accum`, every `save` with its plugin, whether any stops the phase."""
    saves: dict[str, str] = {}
    for name, answer in answers:
        if answer.save is not None:
            if answer.save in saves:
                text = f"plugins {saves[answer.save]} and {name} both save a snapshot named {answer.save}"
                raise PluginError(text, plugin=name, hook="on_epoch_end")
            saves[answer.save] = name
    asked = {name: a.grad_accum for name, a in answers if a.grad_accum is not None}
    stops = [name for name, a in answers if a.stop_phase]
    return {"grad_accum": max(asked.values(), default=None), "asked": asked, "save": saves, "stop": stops}
