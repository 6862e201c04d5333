"""How the rate and the loss of one step came about, read from the log alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UsageError
from .series import at, read_series, series_index
from .text import printable


def explain_step(run: Path, step: int) -> dict[str, Any]:
    """Return base rate, factors, ceilings, the binding one, and the terms of the loss at a step.

    Raises `UsageError` where the folder is no run or the step was not trained.
    """
    index = series_index(run)
    steps = read_series(run, "train.loss")[0]
    if not len(steps):
        raise UsageError(f"{printable(run)} holds no trained steps; give a run's folder, such as runs/study/arm-s42")
    if step not in steps:
        raise UsageError(f"step {step} is not in the log of {printable(run)}; it holds {steps.min()} to {steps.max()}")
    owners = sorted(
        {key.split(".")[0] for key in index if key.split(".")[1].split("[")[0] in ("scale", "ceiling", "why")}
    )
    loss = _point(run, "train.loss", step)
    terms = [_term(run, key, step) for key in sorted(index) if ".term." in key]
    return {
        "run": run.name,
        "step": step,
        "epoch": _point(run, "train.epoch", step),
        "loss": {"task": loss, "terms": terms, "total": _point(run, "train.total", step) if terms else loss},
        "rates": [_group(run, index, owners, step, group) for group in _groups(index)],
        "grad_norm": _point(run, "train.grad_norm", step),
    }


def _groups(index: dict[str, Any]) -> list[str]:
    return ["", *sorted(key[9:-1] for key in index if key.startswith("train.lr[") and key.endswith("]"))]


def _group(run: Path, index: dict[str, Any], owners: list[str], step: int, group: str) -> dict[str, Any]:
    used = _point(run, f"train.lr[{group}]" if group else "train.lr", step)
    factors = [_factor(run, index, owner, step, group) for owner in owners]
    lowest = min((f["ceiling"] for f in factors if f["ceiling"] is not None), default=math.inf)
    product = math.prod(f["scale"] for f in factors)
    base = _point(run, f"train.base_lr[{group}]" if group else "train.base_lr", step)
    binding = next((f["plugin"] for f in factors if f["ceiling"] == lowest == used), None)
    return {
        "group": group or "first",
        "base": base,
        "factors": factors,
        "product": product,
        "binding": binding,
        "used": used,
    }


def _factor(run: Path, index: dict[str, Any], owner: str, step: int, group: str) -> dict[str, Any]:
    def held(what: str) -> Any:
        for key in ([f"{owner}.{what}[{group}]"] if group else []) + [f"{owner}.{what}"]:
            if key in index:
                return at(run, key, step)
        return None

    scale, ceiling = held("scale"), held("ceiling")
    finite = isinstance(ceiling, float) and ceiling < math.inf
    why = held("why")
    return {
        "plugin": owner,
        "scale": 1.0 if scale is None else scale,
        "ceiling": ceiling if finite else None,
        "why": why,
    }


def _term(run: Path, key: str, step: int) -> dict[str, Any]:
    owner, name = key.split(".term.", 1)
    value, weight = _point(run, key, step), at(run, f"{owner}.weight.{name}", step)
    weighted = value * weight if value is not None and isinstance(weight, float) else None
    return {"plugin": owner, "term": name, "value": value, "weight": weight, "weighted": weighted}


def _point(run: Path, key: str, step: int) -> float | None:
    steps, values = read_series(run, key)
    rows = np.flatnonzero(steps == step)
    return float(values[rows[-1]]) if len(rows) else None


def render(facts: dict[str, Any]) -> Any:
    """Draw the facts of a step for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def number(value: Any) -> str:
        return "–" if value is None else f"{value:.6g}"

    parts: list[Any] = [
        Text(f"{printable(facts['run'])}, step {facts['step']} (epoch {number(facts['epoch'])})", "bold")
    ]
    for rate in facts["rates"]:
        table = Table(
            box=None, padding=(0, 2, 0, 0), title=f"rate of group {printable(rate['group'])}", title_justify="left"
        )
        for column in ("who", "factor", "ceiling", "why"):
            table.add_column(column)
        table.add_row("base rate", number(rate["base"]), "", "train.schedule")
        for f in rate["factors"]:
            mark = " ← binds" if rate["binding"] == f["plugin"] else ""
            why = printable(f["why"] or "")
            table.add_row(Text(f["plugin"]), f"× {number(f['scale'])}", Text(number(f["ceiling"]) + mark), Text(why))
        table.add_row("used", number(rate["used"]), "", "")
        parts.append(table)
    loss = Table(box=None, padding=(0, 2, 0, 0), title="loss", title_justify="left")
    for column in ("what", "value", "weight", "weighted"):
        loss.add_column(column)
    loss.add_row("task loss", number(facts["loss"]["task"]), "1", number(facts["loss"]["task"]))
    for term in facts["loss"]["terms"]:
        name = Text(f"{term['plugin']}.{term['term']}")
        loss.add_row(name, number(term["value"]), number(term["weight"]), number(term["weighted"]))
    loss.add_row("total", number(facts["loss"]["total"]), "", number(facts["loss"]["total"]))
    return Group(*parts, loss)
