"""The controller at its moments: when advice begins to act, what is logged, what is refused, what it remembers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from ctr.plugins.phase_controller import PhaseController

Config = PhaseController.Config
# S1 seen at the end of epoch 2, S2 at the end of epoch 5, S3 at the end of epoch 11
LOSSES = [(2.0, 0.5), (1.5, 0.5), *[(1.1, 0.5)] * 11]
S0, S1, S2, S3 = "S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH"


def controller(**settings: Any) -> PhaseController:
    return PhaseController(Config(**{"rule": "faithful", **settings}), None)


def per_epoch(bench: Any) -> list[float]:
    """The scale in force in each epoch, which must be one number."""
    epochs = [bench.scales[i : i + bench.per_epoch] for i in range(0, len(bench.scales), bench.per_epoch)]
    assert all(len({advice.scale for advice in epoch}) == 1 for epoch in epochs)
    return [epoch[0].scale for epoch in epochs]


# --------------------------------------------------------------------------------------------------- the delay
def test_what_is_seen_in_an_epoch_acts_from_the_next_one_on(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES)
    assert per_epoch(drive) == [1.0, 1.0, 1.0, 1.1, 1.1, 1.1, *[0.5] * 6, 0.1]
    assert drive.accums == [1] * 6 + [2] * 7
    assert [drive.scales[i].why for i in (0, 9, 18, 36)] == [S0, S1, S2, S3]


def test_both_arms_are_one_until_the_epoch_after_s1(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES[:3])
    assert all(advice.scale == 1.0 and advice.ceiling == math.inf for advice in drive.scales)
    assert drive.accums == [1, 1, 1]
    assert [0.01 * advice.scale for advice in drive.scales] == [0.01] * 9


def test_the_multiple_is_of_what_the_spec_accumulates(bench: Callable[..., Any]) -> None:
    drive = bench(controller(), spec_accum=4)
    drive.run(LOSSES[:8])
    assert drive.accums == [4] * 6 + [8, 8]


def test_factors_of_one_ask_for_nothing(bench: Callable[..., Any]) -> None:
    ones = dict.fromkeys(("S0", "S1", "S2", "S3"), 1)
    drive = bench(controller(rule="improved", factors=ones, accum=ones))
    drive.run(LOSSES)
    assert {advice.scale for advice in drive.scales} == {1.0}
    assert set(drive.accums) == {1} and drive.advice is None


def test_a_step_gets_the_same_object_while_nothing_changes(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES[:2])
    assert len({id(advice) for advice in drive.scales[:3]}) == 1


# ---------------------------------------------------------------------------------------------------- what is logged
def test_regimes_are_logged_where_they_are_applied_and_lines_where_they_were_seen(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES)
    assert drive.sink.of("state", "regime") == [(0, S0), (9, S1), (18, S2), (36, S3)]
    assert drive.sink.of("mark", "transition") == [
        (9, "Epoch 2: S0_EXPLORE -> S1_BOUNDARY (dL=-0.4500)"),
        (18, "Epoch 5: S1_BOUNDARY -> S2_AXIS_LOCK (dL=0.0000)"),
        (36, "Epoch 11: S2_AXIS_LOCK -> S3_POLISH (dL=0.0000)"),
    ]
    assert [value for _, value in drive.sink.of("number", "deriv")][:4] == pytest.approx([0.0, -0.5, -0.45, -0.3])


def test_thresholds_are_drawn_once_over_the_series_they_judge(bench: Callable[..., Any]) -> None:
    drive = bench(controller(s2_threshold=0.25), owner="steered")
    drive.run(LOSSES)
    assert [row[1:] for row in drive.sink.rows if row[0] == "level"] == [
        (0, "steered.deriv", -0.02, "S1 below"),
        (0, "steered.deriv", 0.25, "S2 below"),
        (0, "steered.deriv", -0.25, "S2 above"),
    ]


def test_the_improved_rule_logs_its_signals(bench: Callable[..., Any]) -> None:
    drive = bench(controller(rule="improved"))
    drive.run([(8.0, None), (4.0, None), (2.0, None)])
    assert drive.sink.of("number", "rho") == [(3, 0.0), (6, pytest.approx(-4 / 6)), (9, pytest.approx(-3 / (14 / 3)))]
    assert [value for _, value in drive.sink.of("number", "beta")] == [0.0, pytest.approx(-400), pytest.approx(-300)]
    assert [step for step, _ in drive.sink.of("number", "tau")] == [9]
    assert [value for _, value in drive.sink.of("number", "share")] == [1.0, 1.0, 0.75]
    assert {row[2] for row in drive.sink.rows if row[0] == "level"} == {
        f"phase_controller.{name}" for name in ("tau", "rho", "share")
    }


def test_rate_times_steps_shows_how_little_an_epoch_moves(bench: Callable[..., Any]) -> None:
    drive = bench(controller(), per_epoch=4)
    drive.run(LOSSES[:4])
    # 4 steps at 0.01, then 4 at 0.011
    assert [value for _, value in drive.sink.of("number", "lr_steps")] == pytest.approx([0.04, 0.04, 0.04, 0.044])


def test_without_a_base_rate_nothing_is_said_about_it(bench: Callable[..., Any]) -> None:
    drive = bench(controller(rule="improved"), base_lr=None)
    drive.run([(8.0, None), (4.0, None), (2.0, None)])
    assert not drive.sink.of("number", "lr_steps") and not drive.sink.of("number", "beta")


@pytest.mark.parametrize("rule", ["faithful", "improved"])
def test_a_loss_that_is_no_number_is_never_passed_over_in_silence(bench: Callable[..., Any], rule: str) -> None:
    drive = bench(controller(rule=rule))
    drive.run([(2.0, 1.0), (math.nan, 1.0), (1.0, math.inf)])
    assert drive.sink.of("mark", "unreadable") == [(6, "epoch 1: train loss is nan"), (9, "epoch 2: eval loss is inf")]


def test_an_epoch_in_which_nothing_was_trained_is_observed_as_unknown(bench: Callable[..., Any]) -> None:
    drive = bench(controller(rule="improved"), per_epoch=0)
    drive.start()
    drive.rest(0, None)
    assert drive.sink.of("mark", "unreadable") == [(0, "epoch 0: train loss is nan")]
    assert drive.plugin.observed.held == 1


# ------------------------------------------------------------------------------------------------------- a new phase
@pytest.mark.parametrize("rule", ["faithful", "improved"])
def test_a_new_phase_starts_it_anew(bench: Callable[..., Any], rule: str) -> None:
    drive = bench(controller(rule=rule))
    drive.run([(8.0, 1.0), (4.0, 1.0), (2.0, 1.0), (1.0, 1.0), (0.5, 1.0), (0.25, 1.0)])
    drive.end_phase(0, 6)
    drive.train(0, phase=1, name="B")
    assert drive.scales[-1].scale == 1.0
    assert drive.sink.of("state", "regime")[-1] == (18, S0)
    assert drive.sink.of("mark", "anew") == [(18, "phase B begins: from S1_BOUNDARY to S0_EXPLORE")]
    drive.rest(0, 0.2, phase=1, name="B")
    assert drive.plugin.observed.seen == 1 and drive.plugin.observed.losses == (0.2,)
    assert drive.sink.of("number", "lr_steps")[-1] == (21, pytest.approx(0.03))


def test_a_new_phase_without_an_update_starts_it_anew_too(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES[:4])
    drive.end_phase(0, 4)
    drive.rest(0, 0.2, phase=1, name="B")
    assert drive.plugin.observed.losses == (0.2,) and drive.sink.of("state", "regime")[-1] == (12, S0)


def test_the_end_of_a_run_says_nothing(bench: Callable[..., Any]) -> None:
    drive = bench(controller())
    drive.run(LOSSES[:4])
    before = list(drive.sink.rows)
    drive.end_phase(0, 4)
    drive._ask("run", "main", 0, 4, 4, None, None)
    assert drive.sink.rows == before


# ---------------------------------------------------------------------------------------------------------- the ramp
def test_a_ramp_leads_to_the_new_scale_in_so_many_steps(bench: Callable[..., Any]) -> None:
    drive = bench(controller(rule="improved", ramp_steps=4, s1_confirm=1, factors={"S1": 2.0}))
    drive.run([(8.0, None), (4.0, None), (2.0, None), (1.0, None), (0.5, None), (0.25, None), (0.1, None)])
    assert drive.sink.of("state", "regime")[1] == (15, S1)
    assert [advice.scale for advice in drive.scales[14:]] == [1.0, 1.25, 1.5, 1.75, 2.0, 2.0, 2.0]
    assert drive.sink.of("number", "lr_steps")[5] == (18, pytest.approx(0.01 * 4.5))


def test_a_ramp_that_is_cut_goes_on_from_where_it_was(bench: Callable[..., Any]) -> None:
    drive = bench(controller(rule="improved", ramp_steps=6, s1_confirm=1, s2_rho=9.0, factors={"S1": 2.0, "S2": 0.0}))
    drive.run([(8.0, None), (4.0, None), (2.0, None), (1.0, None), (0.5, None), (0.25, None), (0.12, None)])
    assert [step for step, _ in drive.sink.of("state", "regime")] == [0, 15, 18]
    # three of six steps from 1 to 2, then from 1.5 to 0
    assert [advice.scale for advice in drive.scales[15:]] == pytest.approx([7 / 6, 8 / 6, 1.5, 1.25, 1.0, 0.75])


# --------------------------------------------------------------------------------------------------------- the memory
@pytest.mark.parametrize("settings", [{}, {"rule": "improved", "ramp_steps": 4, "s1_confirm": 1, "s2_rho": 0.5}])
@pytest.mark.parametrize("cut", range(13))
def test_resumed_equals_uninterrupted(
    bench: Callable[..., Any], scored: Callable[..., Any], settings: dict[str, Any], cut: int
) -> None:
    losses = [(8.0 * 0.5**n, 0.5) for n in range(6)] + [(0.25, 0.5)] * 7
    straight, resumed = bench(controller(**settings)), bench(controller(**settings))
    straight.run(losses)
    resumed.start(len(losses))
    for epoch, (train, val) in enumerate(losses):
        if epoch == cut:  # between two epochs, and with the epoch trained but not observed
            resumed.plugin = again(resumed.plugin, settings)
        resumed.train(epoch)
        if epoch == cut:
            resumed.plugin = again(resumed.plugin, settings)
        resumed.rest(epoch, train, scored(val), epochs=len(losses))
    assert [a.scale for a in resumed.scales] == [a.scale for a in straight.scales]
    assert resumed.sink.rows == straight.sink.rows
    assert len({a.why for a in straight.scales}) > 2


def again(plugin: PhaseController, settings: dict[str, Any]) -> PhaseController:
    fresh = controller(**settings)
    fresh.restore(json.loads(json.dumps(plugin.state())))
    return fresh


# ------------------------------------------------------------------------------------------------------- the settings
SOURCE_OPTIONS: list[dict[str, Any]] = [
    {"s1_threshold": -0.5, "s2_threshold": 0.25},
    {"window": 1, "patience": 2},
    {"factors": {"S1": 1.0}},
    {"accum": {"S2": 4, "S3": 4}},
    {"factors": {"S0": 1, "S2": 0.5}, "min_observations": 3},
]


@pytest.mark.parametrize("settings", SOURCE_OPTIONS)
def test_faithful_takes_the_options_of_the_source(settings: dict[str, Any]) -> None:
    config = Config(rule="faithful", **settings)
    assert Config.model_validate(config.model_dump()) == config  # every default written out is accepted


def test_improved_takes_every_default_written_out() -> None:
    assert Config.model_validate(Config().model_dump()) == Config() and Config().rule == "improved"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rule": "faithful", "min_observations": 4}, "min_observations (given 4, fixed 3)"),
    ({"rule": "faithful", "factors": {"S2": 0.4}}, "factors.S2 (given 0.4, fixed 0.5)"),
    ({"rule": "faithful", "factors": {"S0": 2, "S3": 0}}, "factors.S0 (given 2.0, fixed 1.0), factors.S3 (given 0.0"),
    ({"rule": "faithful", "accum": {"S1": 2}}, "accum.S1 (given 2, fixed 1)"),
    ({"rule": "faithful", "accum": {"S2": 3}}, "accum.S2 3 and accum.S3 2 differ"),
    ({"rule": "faithful", "ramp_steps": 5}, "ramp_steps (given 5, fixed 0)"),
    ({"rule": "faithful", "lr_on_batch_growth": "sqrt"}, "lr_on_batch_growth (given sqrt, fixed keep)"),
    ({"rule": "faithful", "s1_tau": 3.0}, "remove them or set rule: improved"),
    ({"s1_threshold": -0.1}, "remove s1_threshold or set rule: faithful"),
    ({"window": 1}, "window is 1, at least 2"),
    ({"leave_tau": 0.5}, "leave_tau 0.5 is below s2_tau 1.0"),
    ({"factors": {"S4": 1}}, "S4"),
    ({"factors": {"S1": -1}}, "greater than or equal to 0"),
    ({"factors": {"S1": math.inf}}, "finite"),
    ({"rule": "fathful"}, "'improved' or 'faithful'"),
    ({"patience": 0}, "greater than or equal to 1"),
    ({"pulse": 1.1}, "pulse"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_what_is_refused_says_what_was_given_and_the_way_out(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Config(**settings)
    assert said in str(error.value)
