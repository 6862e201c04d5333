"""Optimizers, base-rate schedules, and what an optimizer would do next.

Optimizers are torch's fused ones; `foreach` and `fused` differ in the last bit, so the choice is no setting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter
    from torch.optim import Optimizer


def base_rate(schedule: Any, base_lr: float, unit: int, units: int, warmup: int) -> float:
    """Return the base rate of a unit (an epoch, or an update's first micro-batch), counted from 0.

    In warm-up (e + 1) / W of `base_lr`; after it, with x = (e - W) / max(E - W, 1): constant 1, linear 1 - x,
    cosine (1 + cos(pi x)) / 2. Source: the published controller's schedule, whose rate never reaches 0.
    """
    if unit < warmup:
        return base_lr * (unit + 1) / warmup
    if schedule.kind == "constant":
        return base_lr
    done = (unit - warmup) / max(units - warmup, 1)
    if schedule.kind == "linear":
        return base_lr * (1 - done)
    return base_lr * 0.5 * (1 + math.cos(math.pi * done))


class Rates:
    """The base rate of every group at a position of a phase; the schedule runs over its phase."""

    def __init__(self, train: Any, groups: Mapping[str, Any], batches: int) -> None:
        self._schedule, self._base_lr, self._epochs, self._batches = (
            train.schedule,
            train.optimizer.base_lr,
            train.epochs,
            batches,
        )
        chosen = train.optimizer.groups
        self._ratios = {name: chosen[name].lr_ratio if name in chosen else 1.0 for name in groups}
        self._seen: tuple[int, Mapping[str, float | None]] = (-1, {})

    def at(self, epoch: int, micro: int) -> Mapping[str, float | None]:
        """Return the base rate of each group at micro-batch `micro` of `epoch`; None where the spec gives none."""
        by_step = self._schedule.per == "step"
        unit = epoch * self._batches + micro if by_step else epoch
        if self._seen[0] != unit:
            rates = self._rates(unit, self._batches if by_step else 1)
            # the same object while nothing changes, by which the kernel and the log know that nothing changed
            self._seen = (unit, self._seen[1] if rates == self._seen[1] else MappingProxyType(rates))
        return self._seen[1]

    def _rates(self, unit: int, per_epoch: int) -> dict[str, float | None]:
        if self._base_lr is None:
            return dict.fromkeys(self._ratios)
        warmup = round(self._schedule.warmup_epochs * per_epoch)
        rate = base_rate(self._schedule, self._base_lr, unit, self._epochs * per_epoch, warmup)
        return {name: rate * ratio for name, ratio in self._ratios.items()}


def build_optimizer(spec: Any, groups: Mapping[str, list[Parameter]], own: Any = None) -> Optimizer:
    """Build the fused optimizer of a spec, one parameter group per name; refuses groups nobody has.

    `own(spec, rows, settings)` may make another one; None from it means that torch's will do.
    """
    import torch

    unknown = sorted(set(spec.groups) - set(groups))
    if unknown:
        text = f"train.optimizer.groups: no such group {', '.join(unknown)}; this task has {', '.join(groups)}"
        raise DataError(text)
    settings = spec.model_dump(exclude={"kind", "base_lr", "groups"})
    rows: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        row: dict[str, Any] = {"params": parameters, "name": name, "lr": 0.0}
        if name in spec.groups and spec.groups[name].weight_decay is not None:
            row["weight_decay"] = spec.groups[name].weight_decay
        rows.append(row)
    classes: dict[str, Callable[..., Optimizer]] = {
        "sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW,
    }  # fmt: skip
    if "betas" in settings:
        settings["betas"] = tuple(settings["betas"])
    made: Optimizer | None = own(spec, rows, settings) if own is not None else None
    return made if made is not None else classes[spec.kind](rows, fused=True, **settings)


def bare_step(optimizer: Optimizer) -> Callable[[], Any]:
    """Return the optimizer's step without torch's wrapper: a profiler label and step hooks, which nobody has here.

    The wrapper costs some 5 µs a step. Where torch wraps differently, the step itself is returned.
    """
    wrapped = type(optimizer).step
    bare = getattr(wrapped, "__wrapped__", None)
    return partial(bare, optimizer) if bare is not None else optimizer.step


def keep_moments(before: Optimizer, now: Optimizer, phase: str) -> None:
    """Carry moments over into a phase whose own settings hold; another kind of optimizer has other moments."""
    if type(before) is not type(now):
        text = f"phase {phase} keeps moments of {type(before).__name__}, but trains with {type(now).__name__}"
        raise DataError(f"{text}; set moments: clear")
    now.state.update({p: before.state[p] for g in now.param_groups for p in g["params"] if p in before.state})


def optimizer_state(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the moments by parameter name; `names` maps the identity of a parameter to its name."""
    return {names[id(p)]: dict(state) for p, state in optimizer.state.items() if state}


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Put moments back by parameter name, on the device of the parameter."""
    import torch

    optimizer.state.clear()
    for group in optimizer.param_groups:
        for p in group["params"]:
            kept = state.get(names[id(p)])
            if kept:
                moved = {k: v.to(p.device) if isinstance(v, torch.Tensor) else v for k, v in kept.items()}
                optimizer.state[p] = moved


def direction(optimizer: Optimizer) -> dict[str, list[Tensor]]:
    """Return what the optimizer would subtract per unit rate, by group; one tensor per parameter that has a gradient.

    SGD: the momentum buffer after this gradient (Nesterov: g + m·buffer); Adam: the bias-corrected ratio;
    AdamW adds weight_decay·p. Nothing in the optimizer changes.
    """
    own: Any = getattr(optimizer, "direction", None)
    if own is not None:
        found: dict[str, list[Tensor]] = own()
        return found
    kind = type(optimizer).__name__
    rule = _sgd if kind == "SGD" else _adam
    with_grad = {g["name"]: [p for p in g["params"] if p.grad is not None] for g in optimizer.param_groups}
    return {
        g["name"]: [rule(g, optimizer.state.get(p, {}), p.detach(), p.grad, kind) for p in with_grad[g["name"]]]
        for g in optimizer.param_groups
    }


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], p: Tensor, grad: Tensor, kind: str) -> Tensor:
    d = grad + group["weight_decay"] * p if group["weight_decay"] else grad.clone()
    m = group["momentum"]
    if not m:
        return d
    buffer = state.get("momentum_buffer")
    now = d if buffer is None else m * buffer + (1 - group["dampening"]) * d
    return d + m * now if group["nesterov"] else now


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], p: Tensor, grad: Tensor, kind: str) -> Tensor:
    import torch

    decoupled = kind == "AdamW"
    decay = group["weight_decay"]
    d = grad if decoupled or not decay else grad + decay * p
    b1, b2 = group["betas"]
    first = b1 * state.get("exp_avg", torch.zeros_like(p)) + (1 - b1) * d
    second = b2 * state.get("exp_avg_sq", torch.zeros_like(p)) + (1 - b2) * d * d
    t = float(state.get("step", 0.0)) + 1
    step: Tensor = (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + group["eps"])
    return step + decay * p if decoupled and decay else step
