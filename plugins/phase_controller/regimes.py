"""What every rule shares: the four regimes, what is observed, what is remembered, and what a regime recommends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

Regime: TypeAlias = Literal["S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH"]
Growth: TypeAlias = Literal["keep", "linear", "sqrt"]
REGIMES: tuple[Regime, ...] = ("S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH")


@dataclass(frozen=True, slots=True)
class Observation:
    """What is seen at the end of an epoch: losses per item, the standard error of the eval loss, the mean rate."""

    train_loss: float
    eval_loss: float | None = None
    eval_se: float | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What the controller remembers between two observations; bounded, whatever the length of the run.

    `losses` and `rates` hold the last window + 1 observations. `line` is the history line of the last observation,
    empty where it changed no regime. `peak`, `streak`, `held` and `blind` belong to the improved rule: the fastest
    descent so far, for how many observations in a row the pending test has held, and how many train and eval losses
    were not finite.
    """

    regime: Regime = "S0_EXPLORE"
    seen: int = 0
    losses: tuple[float, ...] = ()
    rates: tuple[float | None, ...] = ()
    deriv: float = 0.0
    best: float = math.inf
    no_improve: int = 0
    line: str = ""
    peak: float = 0.0
    streak: int = 0
    held: int = 0
    blind: int = 0


@dataclass(frozen=True, slots=True)
class Policy:
    """What each regime recommends: a factor on the base rate and a multiple of the accumulation."""

    factors: tuple[float, float, float, float] = (1.0, 1.1, 0.5, 0.1)
    accum: tuple[int, int, int, int] = (1, 1, 2, 2)
    growth: Growth = "keep"


def recommend(regime: Regime, policy: Policy) -> tuple[float, int]:
    """Return (scale, accum) of a regime: scale = factor * g(accum).

    g is 1 for `keep`, accum for `linear`, sqrt(accum) for `sqrt`. With accum = m an epoch has 1/m of the updates, so
    `keep` moves the weights factor/m as far per epoch, `linear` factor as far; `sqrt` keeps the variance of an
    epoch's movement. Assumes that nobody else asks for a larger accumulation.
    """
    index = REGIMES.index(regime)
    factor, accum = policy.factors[index], policy.accum[index]
    growth = {"keep": 1.0, "linear": float(accum), "sqrt": math.sqrt(accum)}[policy.growth]
    return factor * growth, accum


def ramp(old: float, new: float, done: int, steps: int) -> float:
    """Return the scale after `done` of `steps` steps of a straight way from `old` to `new`."""
    return new if done >= steps else old + (new - old) * (done / steps)


def history_line(index: int, old: Regime, new: Regime, deriv: float) -> str:
    """Return the source's line for a change of regime, or nothing where there was none; `index` counts from 0."""
    return "" if old == new else f"Epoch {index}: {old} -> {new} (dL={deriv:.4f})"


def to_json(state: State) -> dict[str, Any]:
    """Return the state as JSON holds it; `best` may be infinite, losses of the faithful rule may be NaN."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(state).items()}


def from_json(tree: Mapping[str, Any]) -> State:
    """Take back what `to_json` gave."""
    parts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in tree.items()}
    return State(**parts)
