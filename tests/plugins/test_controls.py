"""The controls: a constant, a draw, and a replay that gives back another run's rates to the last bit."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ctr.engine.errors import DataError
from ctr.plugins.controls import ConstantScale, RandomRegimes, ReplayRates
from ctr.plugins.controls.replay import Timeline, latest, merge
from ctr.plugins.phase_controller import PhaseController

S0, S1, S2, S3 = "S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH"


# ----------------------------------------------------------------------------------------------------- constant scale
def constant(**settings: Any) -> ConstantScale:
    return ConstantScale(ConstantScale.Config(**settings), None)


def test_a_constant_waits_for_its_epoch(bench: Callable[..., Any]) -> None:
    drive = bench(constant(scale=1.1, from_epoch=3), per_epoch=2)
    for epoch in range(5):
        drive.train(epoch)
    assert [a.scale for a in drive.scales] == [1.0] * 6 + [1.1] * 4
    assert [a.why for a in drive.scales[::5]] == ["waiting", "waiting"] and drive.scales[-1].why == "constant"


def test_a_constant_counts_its_epochs_within_the_phase(bench: Callable[..., Any]) -> None:
    drive = bench(constant(scale=2.0, from_epoch=1), per_epoch=1)
    for phase in (0, 1):
        for epoch in (0, 1):
            drive.train(epoch, phase=phase)
    assert [a.scale for a in drive.scales] == [1.0, 2.0, 1.0, 2.0]


def test_the_constant_is_the_faithful_controller_as_long_as_s2_does_not_act(bench: Callable[..., Any]) -> None:
    controller = bench(PhaseController(PhaseController.Config(rule="faithful"), None))
    controller.run([(2.0 - 0.3 * n, None) for n in range(6)])
    drive = bench(constant(scale=1.1, from_epoch=3))
    for epoch in range(6):
        drive.train(epoch)
    assert [a.scale for a in drive.scales] == [a.scale for a in controller.scales]


@pytest.mark.parametrize("settings", [{"scale": -1}, {"scale": math.inf}, {"scale": 1, "from_epoch": -1}, {}, {"s": 1}])
def test_a_constant_that_cannot_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ConstantScale.Config(**settings)


# ------------------------------------------------------------------------------------------------------ random regimes
def drawn(seed: int = 0, **settings: Any) -> RandomRegimes:
    config = RandomRegimes.Config(**{"first": 3, "last": 9, **settings})
    return RandomRegimes(config, torch.Generator().manual_seed(seed))


def test_draws_are_three_epochs_in_order_within_their_range_and_the_seeds_own() -> None:
    draws = {drawn(seed).begins for seed in range(200)}
    assert len(draws) > 25  # of 35
    assert all(3 <= a < b < c <= 9 for a, b, c in draws)
    assert drawn(7).begins == drawn(7).begins
    assert drawn(3, first=4, last=6).begins == (4, 5, 6)


def test_a_draw_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    drawn()
    assert torch.equal(torch.rand(1), expected)


def test_drawn_regimes_act_log_and_accumulate_as_the_controllers_do(bench: Callable[..., Any]) -> None:
    plugin = drawn(first=2, last=4)  # 2, 3, 4
    drive = bench(plugin, per_epoch=2, spec_accum=3)
    drive.run([(1.0, None)] * 6)
    assert [a.scale for a in drive.scales[::2]] == [1.0, 1.0, 1.1, 0.5, 0.1, 0.1]
    assert drive.accums == [3, 3, 3, 6, 6, 6]
    assert drive.sink.of("state", "regime") == [(0, S0), (4, S1), (6, S2), (8, S3)]
    assert drive.sink.of("mark", "transition")[0] == (4, f"Epoch 2: {S1}")
    assert drive.sink.of("mark", "drawn") == [(0, "regimes begin at epochs 2, 3, 4")]
    drive.train(0, phase=1)  # a new phase begins with S0
    assert drive.scales[-1].scale == 1.0 and drive.sink.of("state", "regime")[-1] == (12, S0)


def test_what_was_drawn_is_remembered(bench: Callable[..., Any]) -> None:
    plugin = drawn(1)
    fresh = drawn(2)
    assert fresh.begins != plugin.begins
    fresh.restore(json.loads(json.dumps(plugin.state())))
    assert fresh.begins == plugin.begins and fresh.state() == plugin.state()


def test_factors_of_one_change_nothing(bench: Callable[..., Any]) -> None:
    drive = bench(drawn(factors=(1, 1, 1, 1), accum=(1, 1, 1, 1)))
    drive.run([(1.0, None)] * 10)
    assert {a.scale for a in drive.scales} == {1.0} and drive.advice is None and set(drive.accums) == {1}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"last": 4}, "last must be at least 5, not 4"),
        ({"factors": (1, 1, -1, 1)}, "must not be negative"),
        ({"accum": (1, 0, 1, 1)}, "at least 1"),
        ({"first": 0}, "greater than or equal to 1"),
    ],
)
def test_draws_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        drawn(**settings)


# -------------------------------------------------------------------------------------------------------------- replay
def folder(
    path: Path, holds: Mapping[str, Sequence[tuple[int, float]]], accum: Sequence[tuple[int, int, int]] = ((0, 0, 1),)
) -> Path:
    """Write a run folder by hand: series as rows of (int64, float64), and epoch records (phase, epoch, grad_accum)."""
    (path / "series").mkdir(parents=True)
    about = {"kind": "hold", "unit": "", "better": None, "volatile": False, "labels": None}
    (path / "series.json").write_text(json.dumps(dict.fromkeys(holds, about)))
    for key, rows in holds.items():
        (path / "series" / f"{key}.f64").write_bytes(b"".join(struct.pack("<qd", *row) for row in rows))
    records = [{"event": "start", "kind": None}, {"event": "epoch", "kind": "start", "grad_accum": 9}]
    records += [{"event": "epoch", "kind": "epoch", "phase_index": p, "epoch": e, "grad_accum": n} for p, e, n in accum]
    lines = [json.dumps({"seq": i, "time": 0.0, "step": i, **record}) for i, record in enumerate(records)]
    (path / "events.jsonl").write_text("\n".join(lines) + "\n")
    return path


def replay(source: Path) -> ReplayRates:
    return ReplayRates(ReplayRates.Config(arm="controller"), None, source)


def test_a_replay_gives_back_the_controllers_rates_and_accumulation(bench: Callable[..., Any], tmp_path: Path) -> None:
    losses = [(2.0, 0.5), (1.5, 0.5), *[(1.1, 0.5)] * 11]
    original = bench(PhaseController(PhaseController.Config(rule="faithful"), None))
    original.run(losses)
    scales = [a.scale for a in original.scales]
    rows = [(k, s) for k, s in enumerate(scales) if k == 0 or s != scales[k - 1]]
    accum = [(0, epoch, n) for epoch, n in enumerate(original.accums)]
    drive = bench(replay(folder(tmp_path / "run", {"phase_controller.scale": rows}, accum)))
    drive.run([(9.9, None)] * 16)  # three epochs more than there is to replay
    assert [a.scale for a in drive.scales] == scales + [0.1] * 9
    assert drive.accums == original.accums + [2] * 3
    assert all(a.ceiling == math.inf and a.why == "replay" for a in drive.scales)


def test_a_replay_of_a_run_without_advice_is_inert(bench: Callable[..., Any], tmp_path: Path) -> None:
    series = {"train.loss": [(0, 3.0)], "probe.scaled": [(0, 7.0)], "probe.ceiling_hits": [(0, 7.0)]}
    drive = bench(replay(folder(tmp_path / "run", series, [(0, 0, 4)])), spec_accum=4)
    drive.run([(1.0, None)] * 3)
    assert {(a.scale, a.ceiling) for a in drive.scales} == {(1.0, math.inf)}
    assert drive.accums == [4, 4, 4] and drive.advice is None


def test_factors_multiply_and_the_lowest_ceiling_counts(bench: Callable[..., Any], tmp_path: Path) -> None:
    series = {
        "a.scale": [(0, 1.0), (2, 0.5)],
        "b.scale": [(1, 3.0)],
        "a.ceiling": [(1, 0.2)],
        "b.ceiling": [(0, 0.3), (3, 0.1)],
    }
    drive = bench(replay(folder(tmp_path / "run", series)), per_epoch=5)
    drive.train(0)
    assert [(a.scale, a.ceiling) for a in drive.scales] == [(1.0, 0.3), (3.0, 0.2), (1.5, 0.2), (1.5, 0.1), (1.5, 0.1)]


def test_groups_are_replayed_one_by_one(bench: Callable[..., Any], tmp_path: Path) -> None:
    series = {"a.scale[lora_b]": [(0, 16.0)], "b.scale": [(1, 0.5)], "b.ceiling[lora_a]": [(0, 0.1)]}
    drive = bench(replay(folder(tmp_path / "run", series)), per_epoch=2, groups=("lora_a", "lora_b"))
    drive.train(0)
    assert [a.scale for a in drive.scales] == [{"lora_a": 1.0, "lora_b": 16.0}, {"lora_a": 0.5, "lora_b": 8.0}]
    assert drive.scales[1].ceiling == {"lora_a": 0.1, "lora_b": math.inf}


def test_accumulation_is_replayed_by_phase_and_epoch(bench: Callable[..., Any], tmp_path: Path) -> None:
    # phase 0 was stopped after two epochs in the original, and goes on for three here
    source = folder(tmp_path / "run", {}, [(0, 0, 1), (0, 1, 2), (1, 0, 1), (1, 1, 4)])
    drive = bench(replay(source))
    drive.run([(1.0, None)] * 3)
    assert drive.accums == [1, 2, 2]
    drive.end_phase(0, 3)
    drive.train(0, phase=1)
    drive.rest(0, 1.0, phase=1)
    drive.train(1, phase=1)
    assert drive.accums[3:] == [1, 4]


def test_nothing_to_replay_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone.*run that arm first"):
        replay(tmp_path / "gone")
    source = folder(tmp_path / "run", {}, [(0, 0, 1)])
    (source / "events.jsonl").write_text('{"seq": 0, "time": 0, "step": 3, "event": "epoch", "kind": "epoch"}\n')
    with pytest.raises(DataError, match="run: an epoch record cannot be replayed .*phase_index"):
        replay(source)


def test_a_reference_is_an_arm_and_a_seed() -> None:
    assert ReplayRates.Config(arm="controller").seed == "same"
    assert ReplayRates.Config(arm="controller", seed="next").seed == "next"
    with pytest.raises(ValidationError):
        ReplayRates.Config(arm="controller", seed="other")
    with pytest.raises(ValidationError):
        ReplayRates.Config(arm="controller", scale=2)


# ----------------------------------------------------------------------------------------------------- the mathematics
def hold(*rows: tuple[int, float]) -> Any:
    return np.array([step for step, _ in rows], np.int64), np.array([value for _, value in rows], np.float64)


def test_a_timeline_stands_between_its_rows() -> None:
    line = merge([hold((2, 0.5), (4, 0.25))], 1.0, np.multiply)
    assert [line.at(step) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert Timeline(1.0).at(7) == 1.0 and merge([], 1.0, np.multiply) == Timeline(1.0)


def test_one_series_comes_back_to_the_last_bit() -> None:
    values = [1.1, 0.1, 1 / 3, 5e-324, 0.0]
    line = merge([hold(*enumerate(values))], 1.0, np.multiply)
    assert [line.at(step) for step in range(5)] == values


def test_the_latest_row_of_a_phase_counts() -> None:
    rows = [((0, 0), 1), ((0, 1), 2), ((2, 0), 4)]
    assert [latest(rows, place) for place in ((0, 0), (0, 5), (1, 0), (2, 0), (3, 3))] == [1, 2, 2, 4, 4]
    assert latest(rows[1:], (0, 0)) is None
