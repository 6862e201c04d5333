"""Naming the culprit of a number that is not finite, by running the flagged step again, part by part."""

from __future__ import annotations

import math
from typing import Any

import torch

from .events import Forward


def culprit(kernel: Any, plan: Any, micros: Any, first: int, rates: Any) -> tuple[str, list[Any]]:
    """Return what is to blame and the ids of the items in the batch.

    In this order: the data, the weights, the task loss, each term's value and weight, the gradient of the task loss
    or of a term, the rate. The step is run from its position with the same seeds; nothing is updated.
    """
    found = [_micro(kernel, plan, batch, first + i) for i, batch in enumerate(micros)]
    text = next((one for one in found if one), None) or _rate(rates) or "the sum of gradients over the batch"
    return text, [item for batch in micros for item in batch.ids]


def _micro(kernel: Any, plan: Any, batch: Any, index: int) -> str | None:
    at = kernel.position
    bad = _data(batch)
    if bad:
        return bad
    names = dict(kernel.module.named_parameters())
    broken = [name for name, p in names.items() if not torch.isfinite(p).all()]
    if broken:
        return f"weight {broken[0]}"
    kernel.reseed(at.phase, at.epoch, index)
    with kernel.cast:
        outputs = plan.task.forward(kernel.module, batch, kernel.needs)
    if not torch.isfinite(outputs.loss):
        return f"the task loss ({float(outputs.loss.detach())})"
    parts = [("the task loss", outputs.loss)]
    if kernel.hooks.extra_loss is not None:
        with kernel.cast:
            terms = kernel.hooks.extra_loss(forward=kernel.moment(Forward, plan, outputs, batch))
        for owner, term in terms:
            label = f"term {term.name} of plugin {owner}"
            if not math.isfinite(term.weight):
                return f"the weight of {label} ({term.weight})"
            if not torch.isfinite(term.value):
                return f"{label} ({float(term.value.detach())})"
            if term.weight != 0:
                parts.append((label, term.weight * term.value))
    return _gradient({n: p for n, p in names.items() if p.requires_grad}, parts)


def _data(batch: Any) -> str | None:
    for name, tensor in batch.tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            rows = (~torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)).nonzero().flatten().tolist()
            ids = [str(batch.ids[row]) for row in rows[:5]] if len(tensor) == len(batch.ids) else []
            return f"the data: {name}" + (f" of item {', '.join(ids)}" if ids else "")
    return None


def _gradient(names: dict[str, Any], parts: list[tuple[str, torch.Tensor]]) -> str | None:
    for label, value in parts:
        if not value.requires_grad:
            continue
        grads = torch.autograd.grad(value, list(names.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(names, grads, strict=True):
            if grad is not None and not torch.isfinite(grad).all():
                return f"the gradient of {label} in {name}"
    return None


def _rate(rates: Any) -> str | None:
    for owner, advice in rates.advice:
        for what in ("scale", "ceiling"):
            value = getattr(advice, what)
            for number in value.values() if isinstance(value, dict) else (value,):
                bad = math.isnan(float(number)) or float(number) < 0 or (what == "scale" and math.isinf(float(number)))
                if bad:
                    return f"the rate {what} of plugin {owner} ({float(number)})"
    for group, rate in rates.lr.items():
        if not math.isfinite(float(rate)):
            return f"the rate of group {group} ({float(rate)})"
    return None
