"""The phase controller at its moments: it observes at the end of an epoch and scales the rate from the next step on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from ctr.engine.hooks import EpochAdvice, LrAdvice, hookimpl

from .faithful import Faithful
from .improved import Improved, measure
from .regimes import Observation, Policy, State, from_json, ramp, recommend, to_json
from .rules import Rule, advance

if TYPE_CHECKING:
    from torch import Generator

    from ctr.engine.events import Epoch, Event, Step

REGIMES = ("S0", "S1", "S2", "S3")
EAGER = {  # so that a run of a few epochs goes through several regimes
    "window": 2, "min_observations": 3, "s1_tau": 0.1, "s1_share": 1.0, "s1_confirm": 1, "s2_tau": 9.0, "s2_rho": 0.9,
    "leave_confirm": 0,
}  # fmt: skip
THRESHOLDS = frozenset({"s1_threshold", "s2_threshold"})
OPTIONS_OF_THE_SOURCE = THRESHOLDS | {"window", "patience", "factors.S1", "accum.S2", "accum.S3"}


class Factors(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """The factor on the base rate in each regime."""

    S0: float = Field(default=1.0, ge=0, description="while the loss begins to move; a literal in the source")
    S1: float = Field(default=1.1, ge=0, description="the source's lr_pulse_multiplier")
    S2: float = Field(default=0.5, ge=0, description="once the loss is flat; a literal in the source")
    S3: float = Field(default=0.1, ge=0, description="once the eval loss stays; a literal in the source")


class Accum(BaseModel, extra="forbid", frozen=True):
    """The multiple of the spec's grad_accum in each regime; 1 leaves the spec's."""

    S0: int = Field(default=1, ge=1, description="a literal in the source")
    S1: int = Field(default=1, ge=1, description="a literal in the source")
    S2: int = Field(default=2, ge=1, description="the source's grad_accum_multiplier, one for S2 and S3")
    S3: int = Field(default=2, ge=1, description="the source's grad_accum_multiplier, one for S2 and S3")


class PhaseController:
    """Scales the base rate and the accumulation by the regime that the losses of the phase are in."""

    trial: ClassVar[Mapping[str, Any]] = {
        "active": {**EAGER, "ramp_steps": 3, "patience": 1},
        "inert": {**EAGER, "factors": dict.fromkeys(REGIMES, 1.0), "accum": dict.fromkeys(REGIMES, 1)},
    }

    class Config(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
        """Settings of both rules. `faithful` accepts the source's own options and refuses what is a literal there."""

        rule: Literal["improved", "faithful"] = Field("improved", description="which state machine reads the losses")
        factors: Factors = Field(Factors(), description="factor on the base rate, by regime")
        accum: Accum = Field(Accum(), description="multiple of the accumulation, by regime")
        window: int = Field(3, ge=1, le=1000, description="differences in the window of losses; improved needs 2")
        patience: int = Field(5, ge=1, description="observations in S2 without a better eval loss before S3")
        s1_threshold: float = Field(-0.02, description="faithful: S1 where the derivative (loss per epoch) is below")
        s2_threshold: float = Field(0.005, ge=0, description="faithful: S2 where the |derivative| is below")
        min_observations: int = Field(3, ge=1, description="finite train losses needed before the first change")
        s1_tau: float = Field(2.0, ge=0, description="improved: S1 needs a fall of more than so many standard errors")
        s1_share: float = Field(0.5, gt=0, le=1, description="improved: and a speed below this share of the fastest")
        s1_confirm: int = Field(2, ge=1, description="improved: in so many observations in a row")
        s2_tau: float = Field(1.0, ge=0, description="improved: flat is a trend within so many standard errors")
        s2_rho: float = Field(
            0.01, ge=0, description="improved: or a fall of less than this share of the loss an epoch"
        )
        leave_tau: float = Field(
            3.0, ge=0, description="improved: S2 ends on a rise of more than so many standard errors"
        )
        leave_confirm: int = Field(
            2, ge=0, description="improved: in so many observations in a row; 0: it never ends so"
        )
        min_delta_se: float = Field(1.0, ge=0, description="improved: better is lower by more than so many eval SE")
        se_floor: float = Field(1e-3, ge=0, description="improved: no standard error is below this share of the loss")
        loss_floor: float = Field(0.0, description="improved: the loss that cannot be undercut, for relative slopes")
        lr_on_batch_growth: Literal["keep", "linear", "sqrt"] = Field(
            "keep", description="what the scale does when accumulation grows: stays, times accum, times its square root"
        )
        ramp_steps: int = Field(0, ge=0, description="steps over which a new scale is reached; 0 jumps")

        @model_validator(mode="after")
        def _one_rule(self) -> PhaseController.Config:
            given, default = _flat(self), _flat(type(self).model_construct())
            changed = {name for name in given if given[name] != default[name]}
            if self.rule == "faithful":
                _refuse_literals(given, default, changed)
            else:
                _refuse_nonsense(given, changed)
            return self

    def __init__(self, config: Config, generator: Generator | None) -> None:
        self.config = config
        self.rule = _rule(config)
        factors, accum = config.factors, config.accum
        self.policy = Policy(
            (factors.S0, factors.S1, factors.S2, factors.S3),
            (accum.S0, accum.S1, accum.S2, accum.S3),
            config.lr_on_batch_growth,
        )
        self._begin(phase=0, step=0)

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        if step.phase_index != self.phase:
            self._enter(step)
        if self._ramping:
            self._put_in_force(step.step)
        return self._advice

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        if epoch.kind == "start":
            epoch.log.state("regime", self.observed.regime)
            for series, value, name in _levels(self.rule):
                epoch.log.level(f"{epoch.owner}.{series}", value, name)
            return self._accumulate(epoch)
        if epoch.kind != "epoch":
            return None
        if epoch.phase_index != self.phase:
            self._enter(epoch)
        self._observe(epoch)
        return self._accumulate(epoch)

    def state(self) -> dict[str, Any]:
        places = {"phase": self.phase, "since": self.since, "seen_to": self.seen_to, "came_from": self.came_from}
        return {"observed": to_json(self.observed), **places}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.observed = from_json(state["observed"])
        self.phase, self.since, self.seen_to = state["phase"], state["since"], state["seen_to"]
        self.came_from = state["came_from"]
        self._put_in_force(self.seen_to)

    def _begin(self, phase: int, step: int) -> None:
        self.observed = State()
        self.phase = phase
        self.since = step  # where the regime came into force
        self.seen_to = step  # where the last observation ended
        self.came_from = self._scale()  # the scale that was reached when it did
        self._put_in_force(step)

    def _enter(self, event: Event) -> None:
        left = self.observed.regime
        self._begin(event.phase_index, self.seen_to)
        event.log.state("regime", self.observed.regime)
        event.log.mark("anew", f"phase {event.phase} begins: from {left} to {self.observed.regime}")

    def _observe(self, epoch: Epoch) -> None:
        before, scale = self.observed, self._mean_scale(epoch.step)
        lr = None if epoch.base_lr is None else epoch.base_lr * scale
        seen = _see(epoch, lr)
        after = self.observed = advance(before, seen, self.rule)
        if lr is not None:
            epoch.log.number("lr_steps", lr * (epoch.step - self.seen_to))
        for name, value in _signals(after, self.rule):
            epoch.log.number(name, value)
        for what in _unreadable(seen):
            epoch.log.mark("unreadable", f"epoch {epoch.epoch}: {what}")
        if after.regime != before.regime:
            self.came_from, self.since = self._reached(before, epoch.step), epoch.step
            epoch.log.state("regime", after.regime)
            epoch.log.mark("transition", after.line)
        self.seen_to = epoch.step
        self._put_in_force(epoch.step)

    def _accumulate(self, epoch: Epoch) -> EpochAdvice | None:
        """Ask for the regime's multiple of what the spec says; 1 asks for nothing, so that the spec's stands."""
        regime = self.observed.regime
        _, accum = recommend(regime, self.policy)
        return None if accum == 1 else EpochAdvice(grad_accum=accum * epoch.spec_grad_accum, why=regime)

    def _scale(self) -> float:
        return recommend(self.observed.regime, self.policy)[0]

    def _reached(self, observed: State, step: int) -> float:
        """Return the scale that update `step - 1` had, or would have had, in the regime of `observed`."""
        goal, _ = recommend(observed.regime, self.policy)
        return ramp(self.came_from, goal, step - self.since, self.config.ramp_steps)

    def _mean_scale(self, end: int) -> float:
        """Return the mean scale over the updates since the last observation."""
        if not self.config.ramp_steps or end == self.seen_to:
            return self._scale()
        return fmean(self._reached(self.observed, step + 1) for step in range(self.seen_to, end))

    def _put_in_force(self, step: int) -> None:
        """Make the advice for update `step`; it stands until the next observation unless a ramp is under way."""
        self._advice = LrAdvice(scale=self._reached(self.observed, step + 1), why=self.observed.regime)
        self._ramping = step + 1 - self.since < self.config.ramp_steps


def _flat(config: BaseModel) -> dict[str, Any]:
    """Return every setting but the rule by its path, `factors.S1` for one inside another."""
    flat: dict[str, Any] = {}
    for name, value in config:
        flat |= {f"{name}.{key}": part for key, part in value} if isinstance(value, BaseModel) else {name: value}
    del flat["rule"]
    return flat


def _refuse_literals(given: Mapping[str, Any], default: Mapping[str, Any], changed: set[str]) -> None:
    if wrong := sorted(changed - OPTIONS_OF_THE_SOURCE):
        stated = ", ".join(f"{name} (given {given[name]}, fixed {default[name]})" for name in wrong)
        text = f"rule faithful is the source's state machine, in which these are no options: {stated}"
        raise ValueError(f"{text}; remove them or set rule: improved")
    if given["accum.S2"] != given["accum.S3"]:
        text = f"accum.S2 {given['accum.S2']} and accum.S3 {given['accum.S3']} differ"
        raise ValueError(f"{text}: rule faithful has one grad_accum_multiplier; make them equal or set rule: improved")


def _refuse_nonsense(given: Mapping[str, Any], changed: set[str]) -> None:
    if wrong := sorted(changed & THRESHOLDS):
        raise ValueError(f"rule improved has no absolute thresholds: remove {', '.join(wrong)} or set rule: faithful")
    if given["window"] < 2:
        raise ValueError(f"rule improved needs 3 losses for a standard error: window is {given['window']}, at least 2")
    if given["leave_confirm"] and given["leave_tau"] < given["s2_tau"]:
        text = f"leave_tau {given['leave_tau']} is below s2_tau {given['s2_tau']}: S2 would be entered and left in turn"
        raise ValueError(text + "; raise leave_tau, or set leave_confirm: 0")


def _rule(config: PhaseController.Config) -> Rule:
    kind: type[Rule] = Faithful if config.rule == "faithful" else Improved
    names = set(kind.__dataclass_fields__) & set(type(config).model_fields)
    return kind(**{name: getattr(config, name) for name in names})


def _see(epoch: Epoch, lr: float | None) -> Observation:
    train = math.nan if epoch.train is None else epoch.train.loss
    val = epoch.evaluations.get("val")
    return Observation(train, lr=lr) if val is None else Observation(train, val.mean(), val.se(), lr)


def _signals(state: State, rule: Rule) -> list[tuple[str, float]]:
    if isinstance(rule, Faithful):
        return [("deriv", state.deriv)]
    now = measure(state, rule)
    named = (("tau", now.tau), ("rho", now.rho), ("share", now.share), ("beta", now.beta))
    return [("deriv", state.deriv), *((name, value) for name, value in named if value is not None)]


def _unreadable(seen: Observation) -> list[str]:
    losses = {"train loss": seen.train_loss, "eval loss": seen.eval_loss}
    return [f"{name} is {loss}" for name, loss in losses.items() if loss is not None and not math.isfinite(loss)]


def _levels(rule: Rule) -> list[tuple[str, float, str]]:
    """Return the threshold lines as (series, value, name)."""
    if isinstance(rule, Faithful):
        s2 = rule.s2_threshold
        return [("deriv", rule.s1_threshold, "S1 below"), ("deriv", s2, "S2 below"), ("deriv", -s2, "S2 above")]
    leave = [("tau", rule.leave_tau, "S2 left above")] if rule.leave_confirm else []
    return [
        ("tau", -rule.s1_tau, "S1 below"),
        ("tau", rule.s2_tau, "S2 below"),
        ("tau", -rule.s2_tau, "S2 above"),
        *leave,
        ("rho", -rule.s2_rho, "S2 above"),
        ("share", rule.s1_share, "S1 below"),
    ]
