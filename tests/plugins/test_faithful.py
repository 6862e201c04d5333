"""The faithful rule: against the original's recorded numbers, its description told a second time, and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.plugins.phase_controller.faithful import Faithful, secant
from ctr.plugins.phase_controller.regimes import (
    Observation,
    Policy,
    State,
    from_json,
    recommend,
    to_json,
)
from ctr.plugins.phase_controller.rules import advance

VECTORS = Path(__file__).parents[2].parent / "shared" / "data" / "vectors" / "commit_regimes.json"
SCRIPTS = (
    "walk_through_all_phases",
    "flat_from_start_never_leaves_s0",
    "rising_loss_never_leaves_s0",
    "oscillation_after_s1",
    "no_eval_loss_never_reaches_s3",
)
S0, S1, S2, S3 = "S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH"
INF, NAN = math.inf, math.nan


@dataclass
class Retold:
    """The source's controller told again from its description, with whole histories and nothing shared."""

    window: int = 3
    s1: float = -0.02
    s2: float = 0.005
    patience: int = 5
    phase: str = S0
    losses: list[float] = field(default_factory=list)
    deriv: float = 0.0
    best: float = INF
    waited: int = 0
    lines: list[str] = field(default_factory=list)
    epochs: dict[str, int] = field(default_factory=dict)

    def observe(self, train: float, evaluation: float | None) -> tuple[float, int]:
        self.losses.append(train)
        n = len(self.losses)
        w = min(self.window, n - 1)
        self.deriv = 0.0
        if n >= 2:
            for j in range(w, 0, -1):
                self.deriv += self.losses[n - j] - self.losses[n - j - 1]
            self.deriv /= w
        held = self.phase
        if held == S0:
            if n >= 3 and self.deriv < self.s1:
                self.phase = S1
        elif held == S1:
            if abs(self.deriv) < self.s2:
                self.phase = S2
        elif held == S2:
            if evaluation is not None:
                if evaluation < self.best - 1e-4:
                    self.best, self.waited = evaluation, 0
                else:
                    self.waited += 1
            if self.waited >= self.patience:
                self.phase = S3
        if self.phase != held:
            self.lines.append(f"Epoch {n - 1}: {held} -> {self.phase} (dL={self.deriv:.4f})")
            self.epochs[self.phase[:2]] = n - 1
        return {S0: (1.0, 1), S1: (1.1, 1), S2: (0.5, 2), S3: (0.1, 2)}[self.phase]


def trace(losses: list[Any], rule: Faithful | None = None) -> list[State]:
    """Return the state after each of these train losses, or (train, eval) pairs."""
    state, states = State(), []
    for item in losses:
        train, evaluation = item if isinstance(item, tuple) else (item, None)
        state = advance(state, Observation(train, evaluation), rule or Faithful())
        states.append(state)
    return states


def lines(states: list[State]) -> list[str]:
    return [state.line for state in states if state.line]


def regimes(states: list[State]) -> str:
    return " ".join(state.regime[:2] for state in states)


def vectors() -> Any:
    if not VECTORS.is_file():
        pytest.skip("the recorded vectors lie beside the repository and are not here")
    return json.loads(VECTORS.read_text())


# ------------------------------------------------------------------------------------------ recorded by the original
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripted_traces_of_the_original(script: str) -> None:
    told = vectors()["scripted_controller"]
    assert set(told) == set(SCRIPTS)
    rows = told[script]["rows"]
    states = trace([(row["train_loss"], row["eval_loss"]) for row in rows])
    for row, state in zip(rows, states, strict=True):
        assert state.deriv == row["deriv"]
        assert state.regime == row["phase"]
        assert recommend(state.regime, Policy()) == (row["next_lr_mult"], row["next_grad_accum"])
        assert state.best == float(row["best_eval_loss"])
        assert state.no_improve == row["no_improve"]
    assert lines(states) == told[script]["transitions"]
    entered = {state.regime[:2]: state.seen - 1 for state in states if state.line}
    assert entered == told[script]["transition_epochs"]


def test_recorded_run_of_the_original() -> None:
    arm = vectors()["recorded_run"]["phase_aware"]
    told = arm["per_epoch"]
    states = trace(list(zip(told["train_loss"], told["eval_loss"], strict=True)))
    assert [state.deriv for state in states] == told["deriv"]
    assert [state.regime for state in states] == told["phase"]
    assert lines(states) == arm["transitions"]
    in_force = [(1.0, 1), *(recommend(state.regime, Policy()) for state in states)][:-1]  # one epoch late
    assert in_force == list(zip(told["applied_lr_mult"], told["applied_grad_accum"], strict=True))


# ------------------------------------------------------------------------------------------------- by a second telling
LOSSES = st.one_of(
    st.floats(0, 5),
    st.floats(0.49, 0.51),
    st.sampled_from([NAN, INF, 0.0, 0.5, 0.5001, 0.4999]),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(LOSSES, st.one_of(st.none(), LOSSES)), max_size=40),
    st.integers(1, 5),
    st.sampled_from([(-0.02, 0.005, 5), (-0.02, 0.25, 2), (-0.5, 0.01, 1), (0.0, 0.0, 3)]),
)
def test_agrees_with_the_description_told_twice(
    rows: list[tuple[float, float | None]], window: int, options: tuple[float, float, int]
) -> None:
    s1, s2, patience = options
    rule = Faithful(s1_threshold=s1, s2_threshold=s2, patience=patience, window=window)
    retold, state, told = Retold(window, s1, s2, patience), State(), []
    for train, evaluation in rows:
        expected = retold.observe(train, evaluation)
        state = advance(state, Observation(train, evaluation), rule)
        told += [state.line] if state.line else []
        assert recommend(state.regime, Policy()) == expected
        assert repr((state.deriv, state.best, state.no_improve)) == repr((retold.deriv, retold.best, retold.waited))
        assert len(state.losses) <= window + 1
    assert told == retold.lines and state.regime == retold.phase


# ------------------------------------------------------------------------------------------------------------- by hand
FALL = [2.0, 1.5, 1.1]  # index 2: (1.1 - 2.0) / 2 = -0.45, S1
SETTLE = [*FALL, 1.1, 1.1, 1.1]  # index 5: (1.1 - 1.1) / 3 = 0, S2


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([1.0], "S0"),
        ([1.0, 0.0], "S0 S0"),  # a fall of 1, but two observations
        (FALL, "S0 S0 S1"),
        ([0.5] * 6, "S0 S0 S0 S0 S0 S0"),
        ([0.5, 0.6, 0.7, 0.8], "S0 S0 S0 S0"),
        ([1.0, 1.0, 0.9601], "S0 S0 S0"),  # -0.01995
        ([1.0, 1.0, 0.9599], "S0 S0 S1"),  # -0.02005
        (SETTLE, "S0 S0 S1 S1 S1 S2"),
        ([*FALL, 1.1, 1.1, 1.114], "S0 S0 S1 S1 S1 S2"),  # a rise of 0.0047 an epoch counts as settled
        ([*FALL, 1.1, 1.1, 1.1151], "S0 S0 S1 S1 S1 S1"),
        ([*FALL, 1.2, 1.12, 1.1], "S0 S0 S1 S1 S1 S2"),  # inner points cancel: (1.1 - 1.1) / 3
        ([*FALL, 0.9, 1.3, 0.9, 1.3, 0.9], "S0 S0 S1 S1 S1 S1 S1 S1"),
        ([*SETTLE, 9.0, 99.0], "S0 S0 S1 S1 S1 S2 S2 S2"),  # no way back on a spike
    ],
)
def test_regimes_by_hand(losses: list[float], expected: str) -> None:
    assert regimes(trace(losses)) == expected


def test_the_derivative_of_the_first_observations() -> None:
    assert [secant(losses) for losses in ([], [4.0], [4.0, 3.0], [4.0, 3.0, 1.0], [4.0, 3.0, 1.0, 1.0])] == [
        0.0, 0.0, -1.0, -1.5, -1.0,
    ]  # fmt: skip


def test_thresholds_are_strict() -> None:
    rule = Faithful(s1_threshold=-0.25, s2_threshold=0.25, window=1)  # exact in binary
    assert regimes(trace([1.0, 1.0, 0.75], rule)) == "S0 S0 S0"
    assert regimes(trace([1.0, 1.0, 0.5, 0.25], rule)) == "S0 S0 S1 S1"
    assert regimes(trace([1.0, 1.0, 0.5, 0.75], rule)) == "S0 S0 S1 S1"
    assert regimes(trace([1.0, 1.0, 0.5, 0.375], rule)) == "S0 S0 S1 S2"


def test_a_window_of_one_looks_at_the_last_difference_only() -> None:
    assert [state.deriv for state in trace([4.0, 3.0, 2.5], Faithful(window=1))] == [0.0, -1.0, -0.5]


def test_differences_are_added_oldest_first() -> None:
    # oldest first: (1e16 - 0) + (1 - 1e16) + (2 - 1), where 1 - 1e16 rounds to -1e16, so 0 + 1; the other way 2
    assert secant([0.0, 1e16, 1.0, 2.0]) == 1 / 3
    assert secant([1.0, 2.0, 1e16, 0.0]) == 0.0


def test_s3_is_reached_six_observations_after_s2_at_the_earliest() -> None:
    states = trace([(loss, 0.5) for loss in [*SETTLE, *[1.1] * 6]])
    assert regimes(states) == "S0 S0 S1 S1 S1 S2 S2 S2 S2 S2 S2 S3"
    # the observation that enters S2 leaves the tracker alone, the next one always counts as better than infinity
    assert [(s.best, s.no_improve) for s in states[5:]] == [(INF, 0), (0.5, 0), *((0.5, n) for n in range(1, 6))]
    assert lines(states)[-1] == "Epoch 11: S2_AXIS_LOCK -> S3_POLISH (dL=0.0000)"


def in_s2(evals: list[float | None]) -> list[State]:
    return trace([(loss, None) for loss in SETTLE] + [(1.1, value) for value in evals])[6:]


def test_an_improvement_must_exceed_the_tolerance() -> None:
    assert 0.5 - 1e-4 == 0.4999  # the same float, and the comparison is strict
    assert [s.no_improve for s in in_s2([0.5, 0.4999, 0.49989, 0.49979, 0.4997])] == [0, 1, 0, 1, 0]


def test_without_an_eval_loss_the_patience_stands_still() -> None:
    assert [s.no_improve for s in in_s2([0.5, 0.5, None, None, 0.5])] == [0, 1, 1, 1, 2]


def test_an_eval_loss_that_is_no_number_never_improves() -> None:
    states = in_s2([NAN, INF, 0.5, NAN, NAN, NAN, NAN, NAN])
    assert [(s.best, s.no_improve) for s in states[:3]] == [(INF, 1), (INF, 2), (0.5, 0)]
    assert states[-1].regime == S3


def test_a_nan_holds_the_regime_until_it_has_left_the_window() -> None:
    states = trace([2.0, 1.9, NAN, 1.0, 0.5, 0.4, 0.3])
    assert [math.isnan(s.deriv) for s in states] == [False, False, True, True, True, True, False]
    assert regimes(states) == "S0 S0 S0 S0 S0 S0 S1"
    states = trace([*FALL, NAN, 1.1, 1.1, 1.1, 1.1])
    assert regimes(states) == "S0 S0 S1 S1 S1 S1 S1 S2"


def test_one_observation_changes_at_most_one_regime() -> None:
    # at index 2 both tests hold: -0.45 < -0.02, and 0.45 < 9
    states = trace(FALL, Faithful(s2_threshold=9.0))
    assert regimes(states) == "S0 S0 S1"
    assert regimes(trace([*FALL, 1.0], Faithful(s2_threshold=9.0))) == "S0 S0 S1 S2"


def test_history_lines_round_to_four_decimals() -> None:
    assert lines(trace([*SETTLE])) == [
        "Epoch 2: S0_EXPLORE -> S1_BOUNDARY (dL=-0.4500)",
        "Epoch 5: S1_BOUNDARY -> S2_AXIS_LOCK (dL=0.0000)",
    ]
    assert lines(trace([2.0, 1.0, 0.87655]))[-1].endswith("(dL=-0.5617)")


def test_the_first_run_published_goes_through_s1_at_index_2_whatever_the_data() -> None:
    for fall in (0.05, 0.5, 5.0):
        assert regimes(trace([9.0, 9.0 - fall, 9.0 - 2 * fall])) == "S0 S0 S1"


ALL_FOUR = [(2.0, 2.1), (1.5, 1.6), (1.1, NAN), *[(1.1, 0.5)] * 10]


def test_the_state_survives_json_at_every_point() -> None:
    straight = trace(ALL_FOUR)
    assert straight[-1].regime == S3
    for cut in range(len(ALL_FOUR)):
        state = State() if cut == 0 else from_json(json.loads(json.dumps(to_json(straight[cut - 1]))))
        for (train, evaluation), expected in zip(ALL_FOUR[cut:], straight[cut:], strict=True):
            state = advance(state, Observation(train, evaluation), Faithful())
            assert repr(state) == repr(expected)
