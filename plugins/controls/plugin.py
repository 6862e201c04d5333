"""Three controls at their moments: a constant factor, another run's factors, and regimes at times drawn by lot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, Field, model_validator

from ctr.engine.errors import DataError
from ctr.engine.events_log import read_events
from ctr.engine.hooks import EpochAdvice, LrAdvice, hookimpl
from ctr.engine.series import read_series, series_index
from ctr.engine.spec import RunRef

from .replay import Timeline, latest, merge

if TYPE_CHECKING:
    from torch import Generator

    from ctr.engine.events import Epoch, Step

REGIMES = ("S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH")


class ConstantScale:
    """Multiplies the rate by one number, from an epoch of the phase on."""

    trial: ClassVar[Mapping[str, Any]] = {"active": {"scale": 1.7, "from_epoch": 1}, "inert": {"scale": 1.0}}

    class Config(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
        scale: float = Field(ge=0, description="the factor on the base rate")
        from_epoch: int = Field(0, ge=0, description="the epoch of each phase, from 0, at whose start it begins")

    def __init__(self, config: Config, generator: Generator | None) -> None:
        self.from_epoch = config.from_epoch
        self._waiting = LrAdvice(why="waiting")
        self._advice = LrAdvice(scale=config.scale, why="constant")

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        return self._advice if step.epoch >= self.from_epoch else self._waiting


class RandomRegimes:
    """Goes through the controller's four regimes at epochs drawn by lot: same treatment, no reaction."""

    trial: ClassVar[Mapping[str, Any]] = {
        "active": {"last": 4, "first": 1},
        "inert": {"last": 4, "first": 1, "factors": [1.0] * 4, "accum": [1] * 4},
    }

    class Config(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
        first: int = Field(3, ge=1, description="the earliest epoch of a phase at which a regime may begin")
        last: int = Field(
            le=1_000_000, description="the latest such epoch; what falls behind the phase's end never comes"
        )
        factors: tuple[float, float, float, float] = Field(
            (1.0, 1.1, 0.5, 0.1), description="factor on the base rate in S0, S1, S2, S3; as in the controller"
        )
        accum: tuple[int, int, int, int] = Field(
            (1, 1, 2, 2), description="multiple of the spec's grad_accum in S0, S1, S2, S3; as in the controller"
        )

        @model_validator(mode="after")
        def _possible(self) -> RandomRegimes.Config:
            if self.last < self.first + 2:
                text = f"three regimes begin at three epochs between first and last: first is {self.first}"
                raise ValueError(f"{text}, so last must be at least {self.first + 2}, not {self.last}")
            if min(self.factors) < 0:
                raise ValueError(f"factors must not be negative: {list(self.factors)}")
            if min(self.accum) < 1:
                raise ValueError(f"accum must be at least 1: {list(self.accum)}")
            return self

    def __init__(self, config: Config, generator: Generator) -> None:
        self.config = config
        self.begins = draw(config.first, config.last, generator)
        self._advice = [
            LrAdvice(scale=factor, why=regime) for factor, regime in zip(config.factors, REGIMES, strict=True)
        ]
        self._spans: tuple[int, int] = (0, 0)  # phase and regime of the state last logged

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        regime = self._regime(step.epoch)
        if (step.phase_index, regime) != self._spans:
            self._spans = (step.phase_index, regime)
            step.log.state("regime", REGIMES[regime])
            step.log.mark("transition", f"Epoch {step.epoch}: {REGIMES[regime]}")
        return self._advice[regime]

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        if epoch.kind == "start":
            epoch.log.state("regime", REGIMES[0])
            epoch.log.mark("drawn", "regimes begin at epochs " + ", ".join(map(str, self.begins)))
        if epoch.kind not in ("start", "epoch"):
            return None
        regime = self._regime(epoch.epoch + 1 if epoch.kind == "epoch" else 0)
        accum = self.config.accum[regime]
        return None if accum == 1 else EpochAdvice(grad_accum=accum * epoch.spec_grad_accum, why=REGIMES[regime])

    def state(self) -> dict[str, Any]:
        return {"begins": list(self.begins), "spans": list(self._spans)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.begins = tuple(state["begins"])
        self._spans = (state["spans"][0], state["spans"][1])

    def _regime(self, epoch: int) -> int:
        return sum(epoch >= begin for begin in self.begins)


def draw(first: int, last: int, generator: Generator) -> tuple[int, ...]:
    """Draw three different epochs between `first` and `last`, both included, in order; each triple equally likely."""
    import torch

    picked = torch.randperm(last - first + 1, generator=generator, device=generator.device)[:3]
    return tuple(first + int(index) for index in sorted(picked.tolist()))


class ReplayRates:
    """Applies the factors, ceilings and accumulation that another, finished run logged: its treatment, open-loop."""

    trial: ClassVar[Mapping[str, Any]] = {"active": {"arm": "acting"}, "inert": {"arm": "plain"}}

    class Config(RunRef):
        """Which run is replayed: an arm, and `same`, `next` or a number for its seed."""

    def __init__(self, config: Config, generator: Generator | None, source: Path) -> None:
        self.source = source
        self._scale = _timelines(source, "scale")
        self._ceiling = _timelines(source, "ceiling")
        self._by_group = bool({*self._scale, *self._ceiling} - {""})
        self._accum = _accumulation(source)
        self._now = (1.0, math.inf)
        self._advice = LrAdvice(why="replay")

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        if self._by_group:
            return LrAdvice(
                {group: _at(self._scale, group, step.step) for group in step.base_lr},
                {group: _at(self._ceiling, group, step.step) for group in step.base_lr},
                why="replay",
            )
        now = (self._scale[""].at(step.step), self._ceiling[""].at(step.step))
        if now != self._now:
            self._now, self._advice = now, LrAdvice(*now, why="replay")
        return self._advice

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        if epoch.kind not in ("start", "epoch"):
            return None
        place = (epoch.phase_index, epoch.epoch + 1) if epoch.kind == "epoch" else (0, 0)
        accum = latest(self._accum, place)
        return None if accum in (None, epoch.spec_grad_accum) else EpochAdvice(grad_accum=accum, why="replay")


def _at(timelines: Mapping[str, Timeline], group: str, step: int) -> float:
    return timelines.get(group, timelines[""]).at(step)


def _timelines(source: Path, what: str) -> dict[str, Timeline]:
    """Return what the plugins of a run logged together, by parameter group; "" stands for every group not named."""
    found: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(series_index(source)):
        owner, _, name = key.partition(".")
        plain, _, group = name.partition("[")
        if plain == what:
            found.setdefault(owner, []).append((group.rstrip("]"), key))
    groups = {"", *(group for rows in found.values() for group, _ in rows)}
    neutral, combine = (1.0, np.multiply) if what == "scale" else (math.inf, np.minimum)
    timelines = {}
    for group in groups:
        named = [dict(rows) for _, rows in sorted(found.items())]
        chosen = [rows.get(group, rows.get("")) for rows in named]
        timelines[group] = merge([read_series(source, key) for key in chosen if key is not None], neutral, combine)
    return timelines


def _accumulation(source: Path) -> Sequence[tuple[tuple[int, int], int]]:
    """Return ((phase, epoch), grad_accum in force during it) for every epoch of a run, in order."""
    rows = [event for event in read_events(source) if event.get("event") == "epoch" and event.get("kind") == "epoch"]
    if not rows:
        raise DataError(f"{source}: nothing to replay, it holds no epoch record; run that arm first")
    try:
        return sorted(((int(row["phase_index"]), int(row["epoch"])), int(row["grad_accum"])) for row in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: an epoch record cannot be replayed ({error}); run that arm again") from error
