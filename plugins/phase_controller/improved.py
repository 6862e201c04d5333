"""A rule that does not depend on the scale of the loss, knows its own noise, and can go back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .regimes import Observation, Regime, State, history_line


@dataclass(frozen=True, slots=True)
class Improved:
    """The thresholds, each in a unit without scale: standard errors, shares, observations."""

    window: int = 3
    min_observations: int = 3
    s1_tau: float = 2.0
    s1_share: float = 0.5
    s1_confirm: int = 2
    s2_tau: float = 1.0
    s2_rho: float = 0.01
    leave_tau: float = 3.0
    leave_confirm: int = 2
    patience: int = 5
    min_delta_se: float = 1.0
    se_floor: float = 1e-3
    loss_floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Signals:
    """What a window of losses says: slope b, and tau, rho, share and beta without the scale of the loss.

    `tau` needs three losses, `beta` needs the rates; each is None where it cannot be known.
    """

    slope: float = 0.0
    tau: float | None = None
    rho: float = 0.0
    share: float = 1.0
    beta: float | None = None


def fit(losses: Sequence[float]) -> tuple[float, float, float]:
    """Return (slope b, its standard error, mean m) of a straight line through `losses`, one epoch apart.

    b = sum (x - mean x)·L / S,  se = sqrt(sum of squared residuals / (n - 2) / S),  S = n(n² - 1)/12.
    Unit: loss per epoch. `se` is infinite for n < 3. Noise of sd σ gives b an sd of σ/sqrt(S): 0.45 σ for n = 4,
    where the secant has 0.47 σ, and every point counts. Assumes independent noise of one size; neighbouring windows
    share n - 1 points, so their slopes do not err independently.
    """
    n, mean = len(losses), math.fsum(losses) / len(losses)
    if n < 2:
        return 0.0, math.inf, mean
    spread = n * (n * n - 1) / 12
    middle = (n - 1) / 2
    slope = math.fsum((x - middle) * (loss - mean) for x, loss in enumerate(losses)) / spread
    if n < 3:
        return slope, math.inf, mean
    squares = math.fsum((loss - mean - slope * (x - middle)) ** 2 for x, loss in enumerate(losses))
    return slope, math.sqrt(squares / (n - 2) / spread), mean


def measure(state: State, rule: Improved) -> Signals:
    """Return the signals of the window that a state holds.

    tau = b / max(se, floor·m'),  rho = b / m',  share = descent speed max(-b, 0) / fastest so far,
    beta = b / mean rate;  m' = |m - loss_floor|. tau, rho and share stay as they are when all losses are multiplied
    by one number (with loss_floor 0). The floor keeps a window that happens to lie on a line from claiming certainty.
    rho says nothing where the loss nears `loss_floor`.
    """
    if not state.losses:
        return Signals()
    slope, se, mean = fit(state.losses)
    level = abs(mean - rule.loss_floor)
    tau = _ratio(slope, max(se, rule.se_floor * level)) if math.isfinite(se) else None
    share = max(-slope, 0.0) / state.peak if state.peak > 0 else 1.0
    return Signals(slope, tau, _ratio(slope, level), share, _beta(slope, state.rates))


def advance_improved(state: State, observation: Observation, rule: Improved) -> State:
    """Observe one epoch: at most one change of regime.

    A train loss that is not finite holds everything and is counted; an eval loss that is not finite is passed over and
    counted. The best eval loss is tracked from the first observation; the count of those that did not improve on it
    starts anew with each regime, so the patience runs from the entry into S2.
    """
    now = replace(state, seen=state.seen + 1, line="")
    if not math.isfinite(observation.train_loss):
        return replace(now, held=state.held + 1)
    now = _track_eval(now, observation, rule)
    keep = -(rule.window + 1)
    now = replace(
        now, losses=(*state.losses, observation.train_loss)[keep:], rates=(*state.rates, observation.lr)[keep:]
    )
    slope, _, _ = fit(now.losses)
    now = replace(now, deriv=slope, peak=max(state.peak, -slope))
    regime, streak = _next_regime(now, measure(state, rule), measure(now, rule), rule)
    if regime != state.regime:
        now = replace(now, no_improve=0)
    line = history_line(state.seen, state.regime, regime, slope)
    return replace(now, regime=regime, streak=streak, line=line)


def improves(loss: float, se: float | None, best: float, rule: Improved) -> bool:
    """Return whether an eval loss is below the best by more than k standard errors: L < best - k·max(se, floor·|L|).

    `se` is the per-item sd / sqrt(items). Where it is unknown, or infinite (one item), the floor stands alone.
    """
    known = se if se is not None and math.isfinite(se) else 0.0
    return loss < best - rule.min_delta_se * max(known, rule.se_floor * abs(loss))


def _track_eval(state: State, observation: Observation, rule: Improved) -> State:
    loss = observation.eval_loss
    if loss is None:
        return state
    if not math.isfinite(loss):
        return replace(state, blind=state.blind + 1)
    if improves(loss, observation.eval_se, state.best, rule):
        return replace(state, best=loss, no_improve=0)
    return replace(state, no_improve=state.no_improve + 1)


def _next_regime(state: State, before: Signals, now: Signals, rule: Improved) -> tuple[Regime, int]:
    """Return the regime after the test of the one held, and for how many observations in a row its test has held."""
    if state.seen - state.held < rule.min_observations or now.tau is None:
        return state.regime, 0
    tests: dict[Regime, tuple[bool, int, Regime]] = {
        "S0_EXPLORE": (now.tau < -rule.s1_tau and now.share < rule.s1_share, rule.s1_confirm, "S1_BOUNDARY"),
        "S1_BOUNDARY": (_settled(before, now, rule), 1, "S2_AXIS_LOCK"),
        "S2_AXIS_LOCK": (rule.leave_confirm > 0 and now.tau > rule.leave_tau, rule.leave_confirm, "S1_BOUNDARY"),
        "S3_POLISH": (False, 1, "S3_POLISH"),
    }
    met, needed, target = tests[state.regime]
    streak = state.streak + 1 if met else 0
    if met and streak >= needed:
        return target, 0
    if state.regime == "S2_AXIS_LOCK" and state.no_improve >= rule.patience:
        return "S3_POLISH", 0
    return state.regime, streak


def _settled(before: Signals, now: Signals, rule: Improved) -> bool:
    """Return whether the loss is flat for its noise, or falls by less than a small share, for reasons of its own.

    Signed: a slow but certain rise is not flat. While |beta| still grows, progress per unit of rate grows, and it is
    the schedule that flattens the loss.
    """
    flat = now.tau is not None and abs(now.tau) < rule.s2_tau
    slow = -rule.s2_rho < now.rho <= 0
    grows = before.beta is not None and now.beta is not None and abs(now.beta) > abs(before.beta)
    return (flat or slow) and not grows


def _beta(slope: float, rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    mean = sum(known) / len(known) if known else 0.0
    return slope / mean if len(known) == len(rates) and mean > 0 else None


def _ratio(value: float, by: float) -> float:
    return value / by if by > 0 else math.copysign(math.inf, value) if value else 0.0
