"""Which snapshot is kept: a pure verdict from named numbers, that can be given again from a log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Gate:
    """A bound that a metric must keep. The slack is in the metric's unit; a negative one demands an improvement."""

    metric: str
    lower: bool
    threshold: float
    relative_to: str = "none"  # none, baseline, best


@dataclass(frozen=True)
class Rule:
    """Gates that must all be passed, so many observations in a row, and the metric that ranks what passed."""

    gates: Sequence[Gate]
    select: str
    lower: bool = True
    min_delta: float = 0.0
    consecutive: int = 1
    keep: int = 1


@dataclass(frozen=True)
class Verdict:
    """What one observation led to. `bounds` are what each gate asked, `slot` the place it takes, if it is kept."""

    passed: bool
    bounds: tuple[float | None, ...] = ()
    slot: int | None = None
    replaced: float | None = None
    why: str = ""


@dataclass(frozen=True)
class State:
    """What is known before the next observation; `kept` holds the selection metric by slot."""

    baseline: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    streak: int = 0
    kept: Sequence[float] = ()
    verdict: Verdict | None = None


def begin(values: Mapping[str, float | None]) -> State:
    """Return the state before training: what the metrics are without it."""
    return State({name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)})


def bound(gate: Gate, state: State) -> float | None:
    """Return the number that a gate's metric is held against: threshold, or reference ± threshold; None if unknown.

    A reference is the metric before training (`baseline`) or its best so far (`best`); worse than it by `threshold` at
    most passes.
    """
    if gate.relative_to == "none":
        return gate.threshold
    known = (state.baseline if gate.relative_to == "baseline" else state.best).get(gate.metric)
    return None if known is None else known + gate.threshold * (1 if gate.lower else -1)


def passes(gate: Gate, value: float | None, limit: float | None) -> bool:
    """Say whether a value keeps a bound; a value or a bound that is missing or not finite never passes."""
    if value is None or limit is None or not (math.isfinite(value) and math.isfinite(limit)):
        return False
    return value <= limit if gate.lower else value >= limit


def advance(state: State, values: Mapping[str, float | None], rule: Rule) -> State:
    """Return the state after an observation, its verdict included.

    A snapshot is eligible when every gate passed in `consecutive` observations in a row. It takes a free slot of
    `keep`, else that of the worst kept one, if it is better than that by more than `min_delta`. Of gates relative to
    the best, the first observation sets the reference and passes.
    """
    best = dict(state.best)
    for gate in rule.gates:
        value = values.get(gate.metric)
        if value is not None and math.isfinite(value):
            known = best.get(gate.metric, value)
            best[gate.metric] = min(known, value) if gate.lower else max(known, value)
    seen = replace(state, best=best)
    limits = tuple(bound(gate, seen) for gate in rule.gates)
    failed = [
        f"{gate.metric} {_said(values.get(gate.metric))} is beyond {_said(limit)}"
        for gate, limit in zip(rule.gates, limits, strict=True)
        if not passes(gate, values.get(gate.metric), limit)
    ]
    streak = 0 if failed else state.streak + 1
    passed = not failed and streak >= rule.consecutive
    waiting = f"passed {streak} of {rule.consecutive} in a row"
    verdict = Verdict(passed, limits, why="; ".join(failed) or ("" if passed else waiting))
    kept, verdict = _place(state.kept, values.get(rule.select), rule, verdict)
    return State(state.baseline, best, streak, kept, verdict)


def _place(kept: Sequence[float], value: float | None, rule: Rule, verdict: Verdict) -> tuple[Sequence[float], Verdict]:
    """Return what is kept after a verdict, and the verdict with the slot it takes."""
    if not verdict.passed:
        return kept, verdict
    if value is None or not math.isfinite(value):
        return kept, replace(verdict, why=f"{rule.select} {_said(value)} ranks nothing")
    if len(kept) < rule.keep:
        return (*kept, value), replace(verdict, slot=len(kept), why="passed, and a place is free")
    sign = 1 if rule.lower else -1
    worst = max(range(len(kept)), key=lambda slot: sign * kept[slot])
    if sign * (kept[worst] - value) <= rule.min_delta:
        return kept, replace(verdict, why=f"passed, but {_said(value)} is no better than {_said(kept[worst])}")
    now = [value if slot == worst else old for slot, old in enumerate(kept)]
    return tuple(now), replace(verdict, slot=worst, replaced=kept[worst], why=f"better than {_said(kept[worst])}")


def _said(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"
