"""The improved rule with numbers a person can check."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.plugins.phase_controller.improved import Improved, fit, improves, measure
from ctr.plugins.phase_controller.regimes import Observation, Policy, State, from_json, ramp, recommend, to_json
from ctr.plugins.phase_controller.rules import advance

S0, S1, S2, S3 = "S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH"
NAN, INF = math.nan, math.inf


def trace(
    observations: list[Observation | float], rule: Improved | None = None, state: State | None = None
) -> list[State]:
    state, states = state or State(), []
    for item in observations:
        seen = item if isinstance(item, Observation) else Observation(item)
        state = advance(state, seen, rule or Improved())
        states.append(state)
    return states


def regimes(states: list[State]) -> str:
    return " ".join(state.regime[:2] for state in states)


def held_in(regime: str, losses: list[float], **more: object) -> State:
    """A state in `regime` with a window of losses, as if reached long ago."""
    return replace(State(), regime=regime, seen=10, losses=tuple(losses), rates=(None,) * len(losses), **more)  # type: ignore[arg-type]


# ----------------------------------------------------------------------------------------------------------- signals
def test_the_slope_uses_every_point_and_knows_its_error() -> None:
    # x - 1.5 = -1.5, -0.5, 0.5, 1.5 and L - 2.5 = 1.5, -0.5, 0.5, -1.5: b = (-2.25 + 0.25 + 0.25 - 2.25) / 5
    slope, se, mean = fit([4.0, 2.0, 3.0, 1.0])
    assert (slope, mean) == (-0.8, 2.5)
    # residuals 0.3, -0.9, 0.9, -0.3: squares 1.8, two degrees of freedom, over 5
    assert se == pytest.approx(math.sqrt(1.8 / 2 / 5))


def test_short_windows_have_a_slope_but_no_error() -> None:
    assert fit([3.0]) == (0.0, INF, 3.0)
    assert fit([3.0, 2.0]) == (-1.0, INF, 2.5)
    assert measure(held_in(S0, [3.0, 2.0]), Improved()).tau is None


def test_signals_by_hand() -> None:
    state = replace(held_in(S0, [4.0, 2.0, 3.0, 1.0], peak=1.6), rates=(0.1, 0.2, 0.2, 0.3))
    now = measure(state, Improved())
    assert now.tau == pytest.approx(-0.8 / math.sqrt(0.18))  # -1.89
    assert now.rho == pytest.approx(-0.32)  # -0.8 / 2.5
    assert now.share == pytest.approx(0.5)  # 0.8 of 1.6
    assert now.beta == pytest.approx(-4.0)  # -0.8 / 0.2


def test_a_window_on_a_line_claims_no_certainty_beyond_the_floor() -> None:
    # b = -1, se = 0, m = 2.5: the floor is 0.001 * 2.5
    assert measure(held_in(S0, [4.0, 3.0, 2.0, 1.0]), Improved()).tau == pytest.approx(-400)
    assert measure(held_in(S0, [4.0, 4.0, 4.0, 4.0]), Improved()).tau == 0.0


def test_a_loss_that_cannot_reach_zero_is_measured_from_its_floor() -> None:
    assert measure(held_in(S0, [4.0, 2.0, 3.0, 1.0]), Improved(loss_floor=0.5)).rho == pytest.approx(-0.4)


def test_progress_per_rate_is_unknown_where_a_rate_is() -> None:
    state = replace(held_in(S0, [4.0, 3.0, 2.0]), rates=(0.1, None, 0.1))
    assert measure(state, Improved()).beta is None
    assert measure(replace(state, rates=(0.0, 0.0, 0.0)), Improved()).beta is None


def test_a_loss_of_zero_has_signals() -> None:
    now = measure(held_in(S1, [0.0, 0.0, 0.0, 0.0]), Improved())
    assert (now.tau, now.rho, now.share) == (0.0, 0.0, 1.0)


# ---------------------------------------------------------------------------------------------------------------- S1
def test_falling_alone_is_no_boundary() -> None:
    assert set(regimes(trace([10.0 - n for n in range(9)])).split()) == {"S0"}  # the speed never halves


def test_s1_comes_when_the_descent_has_halved_for_two_observations() -> None:
    states = trace([8.0, 4.0, 2.0, 1.0, 0.5, 0.25])
    # slopes: -4 (2 points), -3, -2.3 = (-1.5·8 - 0.5·4 + 0.5·2 + 1.5·1)/5, then half of the one before
    assert [s.deriv for s in states] == pytest.approx([0.0, -4.0, -3.0, -2.3, -1.15, -0.575])
    assert [s.peak for s in states][1:] == [4.0] * 5
    # shares 1, 0.75, 0.575, 0.2875, 0.144: below one half twice in a row at index 5; tau is -4.8 at both
    assert regimes(states) == "S0 S0 S0 S0 S0 S1"
    assert states[-1].line == "Epoch 5: S0_EXPLORE -> S1_BOUNDARY (dL=-0.5750)"


def test_one_confirmation_is_enough_where_one_is_asked() -> None:
    assert regimes(trace([8.0, 4.0, 2.0, 1.0, 0.5], Improved(s1_confirm=1))) == "S0 S0 S0 S0 S1"


def test_a_flat_or_rising_start_stays_in_s0() -> None:
    for losses in ([0.5] * 8, [0.5 + 0.1 * n for n in range(8)]):
        assert set(regimes(trace(list(losses))).split()) == {"S0"}


def test_fewer_observations_than_asked_change_nothing() -> None:
    assert regimes(trace([8.0, 4.0, 2.0, 1.0, 0.5, 0.25], Improved(min_observations=7))) == "S0 S0 S0 S0 S0 S0"


def test_a_fall_within_its_noise_is_no_boundary() -> None:
    # 4, 2, 3, 1 falls by 0.8 an epoch with an error of 0.42: tau is -1.89, the speed a tenth of the fastest
    before = held_in(S0, [9.0, 4.0, 2.0, 3.0], peak=8.0, streak=1)
    assert [advance(before, Observation(1.0), Improved(s1_tau=t)).regime for t in (2.0, 1.8)] == [S0, S1]


def test_a_loss_that_could_not_be_read_is_no_observation() -> None:
    rule = Improved(min_observations=6, s1_confirm=1)
    assert regimes(trace([8.0, 4.0, NAN, 2.0, 1.0, 0.5], rule)) == "S0 S0 S0 S0 S0 S0"
    assert regimes(trace([8.0, 4.0, NAN, 2.0, 1.0, 0.5, 0.25], rule)) == "S0 S0 S0 S0 S0 S0 S1"


# ---------------------------------------------------------------------------------------------------------------- S2
def in_s1(losses: list[float], then: float, rates: tuple[float, float] | None = None) -> State:
    state = replace(held_in(S1, losses), rates=(rates[0] if rates else None,) * len(losses))
    return advance(state, Observation(then, lr=rates[1] if rates else None), Improved())


def test_s2_is_entered_on_a_trend_within_its_noise() -> None:
    # 1.0, 1.1, 0.9, 1.0: b = (0 - 0.05 - 0.05 + 0)/5 = -0.02, se = sqrt(0.018/2/5) = 0.042, tau -0.47
    assert in_s1([5.0, 1.0, 1.1, 0.9], 1.0).regime == S2


def test_s2_is_entered_on_a_fall_too_small_to_matter() -> None:
    # b = -0.005, residuals 0: tau = -5 (floor), rho = -0.005
    assert in_s1([5.0, 1.0, 0.995, 0.99], 0.985).regime == S2
    assert in_s1([5.0, 1.0, 0.98, 0.96], 0.94).regime == S1  # 2 % an epoch


def test_a_slow_but_certain_rise_is_not_settled() -> None:
    # the faithful rule takes |0.004| < 0.005 for settled; here tau = +4 and the sign counts
    assert in_s1([5.0, 1.0, 1.004, 1.008], 1.012).regime == S1


def test_s2_waits_while_progress_per_unit_of_rate_still_grows() -> None:
    # before: b of (1.0, 0.994, 0.988, 0.982) = -0.006; after: -0.0058. The rate falls from 0.1 to 0.02.
    losses, then = [1.0, 0.994, 0.988, 0.982], 0.977
    assert in_s1(losses, then).regime == S2  # rates unknown
    assert in_s1(losses, then, (0.1, 0.1)).regime == S2  # |beta| 0.060, then 0.057
    assert in_s1(losses, then, (0.1, 0.02)).regime == S1  # |beta| 0.060, then 0.0057 / 0.08 = 0.071


# ----------------------------------------------------------------------------------------------------- back from S2
FLAT = [1.0, 1.0, 1.0, 1.0]


def test_s2_is_left_on_a_lasting_rise_and_entered_again_when_it_ends() -> None:
    # slopes of (1, 1, 1, 1.2), (1, 1, 1.2, 1.4), (1, 1.2, 1.4, 1.6): 0.06, 0.14, 0.2; tau 1.73, 4.04, 154
    states = trace([1.2, 1.4, 1.6, 1.6, 1.6, 1.6], state=held_in(S2, FLAT))
    assert regimes(states) == "S2 S2 S1 S1 S1 S2"
    assert states[2].line == "Epoch 12: S2_AXIS_LOCK -> S1_BOUNDARY (dL=0.2000)"
    taus = [measure(state, Improved()).tau for state in states]
    assert taus[0] == pytest.approx(math.sqrt(3))  # b = 0.06, se = 0.02·sqrt(3)
    assert taus[1] == pytest.approx(0.14 / math.sqrt(0.012 / 2 / 5))  # 4.04
    assert [state.streak for state in states[:3]] == [0, 1, 0]


def test_a_rise_that_does_not_last_leaves_s2_alone() -> None:
    assert regimes(trace([1.2, 1.4, 1.1, 1.1], state=held_in(S2, FLAT))) == "S2 S2 S2 S2"


def test_entering_and_leaving_have_different_levels() -> None:
    # tau 1.73 is above s2_tau (not settled) and below leave_tau (no reason to go): each regime keeps what it has
    window, then = [9.0, 1.0, 1.0, 1.0], 1.2
    assert [advance(held_in(r, window), Observation(then), Improved()).regime for r in (S1, S2)] == [S1, S2]


def test_zero_confirmations_means_no_way_back() -> None:
    rule = Improved(leave_confirm=0)
    assert set(regimes(trace([1.2, 1.4, 1.6, 1.8, 2.0], rule, held_in(S2, FLAT))).split()) == {"S2"}


# ---------------------------------------------------------------------------------------------------------------- S3
def seen(evals: list[float | None], se: float | None = None) -> list[Observation | float]:
    return [Observation(1.0, value, se) for value in evals]


def test_the_best_eval_loss_is_known_before_s2_and_the_patience_counts_from_its_entry() -> None:
    start = held_in(S1, [2.0, *FLAT[1:]])
    states = trace(seen([0.4, 0.5, 0.5, 0.5, 0.5, 0.5]), state=start)
    assert regimes(states) == "S2 S2 S2 S2 S2 S3"  # the source needs one more, for its first counts as an improvement
    assert [(s.best, s.no_improve) for s in states[:-1]] == [(0.4, n) for n in range(5)]


def test_what_did_not_improve_before_s2_is_not_counted_within_it() -> None:
    start = held_in(S1, [2.0, *FLAT[1:]], best=0.4, no_improve=4)
    states = trace(seen([0.5] * 6), state=start)
    assert regimes(states) == "S2 S2 S2 S2 S2 S3"
    assert [s.no_improve for s in states[:-1]] == [0, 1, 2, 3, 4]


def test_a_better_loss_starts_the_patience_again() -> None:
    states = trace(seen([0.5, 0.6, 0.6, 0.3, 0.4]), state=held_in(S2, FLAT))
    assert [(s.best, s.no_improve) for s in states] == [(0.5, 0), (0.5, 1), (0.5, 2), (0.3, 0), (0.3, 1)]


def test_better_means_by_more_than_its_standard_error() -> None:
    assert improves(0.49, 0.005, 0.5, Improved()) and not improves(0.4951, 0.005, 0.5, Improved())
    assert not improves(0.49, 0.005, 0.5, Improved(min_delta_se=2.5))
    assert improves(0.4994, None, 0.5, Improved()) and not improves(0.4996, None, 0.5, Improved())  # floor 0.0005
    assert improves(0.4994, INF, 0.5, Improved())  # one item has no spread
    assert improves(0.4994, None, INF, Improved())


def test_slow_gains_add_up_against_the_best() -> None:
    states = trace(seen([0.5, 0.496, 0.492, 0.488], se=0.01), state=held_in(S2, FLAT))
    assert [(s.best, s.no_improve) for s in states] == [(0.5, 0), (0.5, 1), (0.5, 2), (0.488, 0)]


def test_without_an_eval_loss_s3_is_not_reached() -> None:
    assert set(regimes(trace(seen([None] * 9), state=held_in(S2, FLAT))).split()) == {"S2"}


def test_s3_is_the_end() -> None:
    assert set(regimes(trace([1.2, 1.4, 1.6, 1.8], state=held_in(S3, FLAT))).split()) == {"S3"}


# ------------------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_train_loss_that_is_not_finite_holds_everything_and_is_counted(bad: float) -> None:
    before = trace([8.0, 4.0, 2.0, 1.0, 0.5])
    held = advance(before[-1], Observation(bad, 0.3), Improved())
    assert replace(held, seen=5, held=0) == before[-1] and (held.seen, held.held) == (6, 1)
    after = advance(held, Observation(0.25), Improved())
    assert after.line == "Epoch 6: S0_EXPLORE -> S1_BOUNDARY (dL=-0.5750)"


def test_an_eval_loss_that_is_not_finite_is_passed_over_and_counted() -> None:
    states = trace(seen([0.5, NAN, INF, 0.5]), state=held_in(S2, FLAT))
    assert [(s.no_improve, s.blind) for s in states] == [(0, 0), (0, 1), (0, 2), (1, 2)]


# ------------------------------------------------------------------------------------------------------------- laws
ROWS = st.lists(st.tuples(st.floats(0.01, 5), st.one_of(st.none(), st.floats(0.01, 5)), st.floats(0, 1)), max_size=30)


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([2.0**-20, 0.25, 8.0, 2.0**30]))
def test_the_scale_of_the_loss_changes_nothing(rows: list[tuple[float, float | None, float]], scale: float) -> None:
    # powers of two, for which floats are scaled without rounding
    one = trace([Observation(t, e, s, 0.1) for t, e, s in rows])
    other = trace([Observation(t * scale, None if e is None else e * scale, s * scale, 0.1) for t, e, s in rows])
    assert [(s.regime, s.streak, s.no_improve) for s in one] == [(s.regime, s.streak, s.no_improve) for s in other]


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(0, 30))
def test_the_state_survives_json_and_stays_small(rows: list[tuple[float, float | None, float]], cut: int) -> None:
    observations: list[Observation | float] = [Observation(t, e, s, 0.1) for t, e, s in rows]
    straight = trace(observations)
    before = straight[: min(cut, len(rows))]
    resumed = from_json(json.loads(json.dumps(to_json(before[-1] if before else State()))))
    assert [*before, *trace(observations[len(before) :], state=resumed)] == straight
    assert all(len(state.losses) <= 4 and len(state.rates) <= 4 for state in straight)


# ------------------------------------------------------------------------------------------------- recommendations
def test_what_the_scale_does_when_the_batch_grows() -> None:
    policies = [Policy(growth=growth) for growth in ("keep", "linear", "sqrt")]  # type: ignore[arg-type]
    assert [recommend("S2_AXIS_LOCK", policy) for policy in policies] == [(0.5, 2), (1.0, 2), (0.5 * math.sqrt(2), 2)]
    assert [recommend("S1_BOUNDARY", policy) for policy in policies] == [(1.1, 1)] * 3


def test_a_ramp_is_straight_and_ends_on_the_new_scale() -> None:
    assert [ramp(1.0, 0.5, done, 4) for done in range(6)] == [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert ramp(1.0, 1.1, 0, 0) == 1.1
