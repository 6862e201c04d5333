"""The laws by which answers combine. None depends on order: shuffling the registration of plugins changes no bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import GuardError, PluginError, guess
from .hooks import ByGroup, EpochAdvice, LossTerm, LrAdvice, Named, Number, Reset

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class Rates:
    """The rate of each group and how it came about; `binding` names the plugin whose ceiling set it, if one did."""

    lr: dict[str, Number]
    advice: Named[LrAdvice]
    base: Mapping[str, float | None]

    def binding(self, group: str) -> str | None:
        """Name the plugin whose ceiling set the rate of `group`; reads tensors, so not for the hot path."""
        lowest = sorted((float(pick(a.ceiling, group, math.inf)), name) for name, a in self.advice)
        return lowest[0][1] if lowest and lowest[0][0] < math.inf and float(self.lr[group]) == lowest[0][0] else None


def same(rates: Rates, base: Mapping[str, float | None], advice: Named[LrAdvice]) -> bool:
    """Say whether `rates` came of this very base and of these very answers, all host-side numbers: cheap, and safe."""
    if rates.base is not base or len(rates.advice) != len(advice):
        return False
    return all(
        new is old and type(new.scale) is float and type(new.ceiling) is float
        for (_, new), (_, old) in zip(advice, rates.advice, strict=True)
    )


def pick(value: ByGroup, group: str, default: float) -> Number:
    """Return what `value` says about `group`; a group that a map does not name gets `default`."""
    if type(value) is float:  # by far the most frequent, and an abstract base class is slow to ask
        return value
    return value.get(group, default) if isinstance(value, Mapping) else value


def resolve_lr(base: Mapping[str, float | None], advice: Named[LrAdvice]) -> Rates:
    """Combine rates: base × Π scale in sorted-name order, then the lowest ceiling, for each group.

    A tensor in any answer makes that group's rate a tensor, and nothing waits for it. Raises `GuardError` for a
    host-side number that is negative or not finite, `PluginError` where neither a base rate nor a ceiling exists.
    """
    rates: dict[str, Number] = {}
    for name, answer in advice:
        for value in (answer.scale, answer.ceiling):
            unknown = [] if type(value) is float or not isinstance(value, Mapping) else sorted(set(value) - set(base))
            if unknown:
                text = f"plugin {name}: schedule_lr answered for group {unknown[0]}; this run has {', '.join(base)}"
                raise PluginError(text + "." + guess(unknown[0], base), plugin=name, hook="schedule_lr")
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
            text = f"group {group} has no base rate and no ceiling: set train.optimizer.base_lr, or name a plugin"
            text += " that answers a ceiling"
            raise PluginError(text, hook="schedule_lr")
    return Rates(rates, advice, base)


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
        text = f"plugin {plugin}: schedule_lr answered {what} {value} for group {group}"
        text += "; it must be finite and not negative"
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
