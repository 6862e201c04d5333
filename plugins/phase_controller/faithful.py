"""The source's state machine, to the last bit: fixed thresholds on a secant of the train loss, one way only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .regimes import Observation, Regime, State, history_line


@dataclass(frozen=True, slots=True)
class Faithful:
    """The source's numbers. `min_observations` and `eval_tolerance` are literals in it, the others its options."""

    s1_threshold: float = -0.02
    s2_threshold: float = 0.005
    patience: int = 5
    window: int = 3
    min_observations: int = 3
    eval_tolerance: float = 1e-4


def secant(losses: Sequence[float]) -> float:
    """Return the mean of the differences of neighbours, 0 for fewer than two losses; unit: loss per epoch.

    δL = (1/w) * sum of (L[j+1] - L[j]), added oldest first and then divided, which telescopes to a line through the
    first and the last loss: points between them do not count, and noise of sd σ gives δL an sd of σ·sqrt(2)/w.
    Source: Commit Regimes. `sum` is not used: from Python 3.12 on it compensates, and the last bit would differ.
    """
    total = 0.0
    for older, newer in zip(losses, losses[1:], strict=False):
        total += newer - older
    return total / (len(losses) - 1) if len(losses) > 1 else 0.0


def advance_faithful(state: State, observation: Observation, rule: Faithful) -> State:
    """Observe one epoch: at most one change of regime, tested for the regime held on entry.

    Every comparison is strict, so a NaN in the window makes each test false and the regime stays. The eval loss counts
    only within S2, and its best starts at infinity there.
    """
    losses = (*state.losses, observation.train_loss)[-(rule.window + 1) :]
    deriv = secant(losses)
    best, no_improve = state.best, state.no_improve
    if state.regime == "S2_AXIS_LOCK" and observation.eval_loss is not None:
        improved = observation.eval_loss < best - rule.eval_tolerance
        best, no_improve = (observation.eval_loss, 0) if improved else (best, no_improve + 1)
    regime = _next_regime(state.regime, state.seen + 1, deriv, no_improve, rule)
    line = history_line(state.seen, state.regime, regime, deriv)
    return replace(
        state,
        regime=regime,
        seen=state.seen + 1,
        losses=losses,
        deriv=deriv,
        best=best,
        no_improve=no_improve,
        line=line,
    )


def _next_regime(regime: Regime, seen: int, deriv: float, no_improve: int, rule: Faithful) -> Regime:
    if regime == "S0_EXPLORE":
        return "S1_BOUNDARY" if seen >= rule.min_observations and deriv < rule.s1_threshold else regime
    if regime == "S1_BOUNDARY":
        return "S2_AXIS_LOCK" if abs(deriv) < rule.s2_threshold else regime
    if regime == "S2_AXIS_LOCK":
        return "S3_POLISH" if no_improve >= rule.patience else regime
    return regime
