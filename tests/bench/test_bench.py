"""The bench measures what it says: the arithmetic, the bars, and loops that train the same weights. No times."""

from __future__ import annotations

from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from .__main__ import TOPICS
from .clock import interleave, ratio, surplus
from .digits import BLOCK, Engine, Hand, same_weights
from .loop import NAMES, TenSeries, rate_plugins, tensors
from .parts import in_the_loop, places
from .table import Row, Section, document, draw

torch.set_num_threads(1)


def test_every_topic_is_a_module_that_measures() -> None:
    assert [name for name in TOPICS if not callable(import_module(f"{__package__}.{name}").measure)] == []


def test_ratios_are_of_the_smallest_and_of_the_paired_median() -> None:
    times = {"a": [3e-6, 4e-6, 9e-6], "b": [2e-6, 2e-6, 3e-6]}
    assert ratio(times, "a", "b") == pytest.approx((1.5, 2.0))
    assert surplus(times, "a", "b") == pytest.approx((1.0, 2.0))


def test_each_round_runs_everyone_once_and_begins_with_another() -> None:
    seen: list[str] = []
    contestants = {name: lambda name=name: seen.append(name) or float(len(seen)) for name in "ab"}
    times = interleave(contestants, rounds=2, warm_up=1)
    assert seen == ["b", "a", "a", "b", "b", "a"]
    assert times == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


def test_a_bar_is_a_most_or_a_least_and_a_number_without_one_is_neither() -> None:
    rows = [Row("most", 1.0, "×", bar=1.0), Row("least", 4.9, "×", bar=5.0, least=True), Row("no bar", 3.0, "µs")]
    assert [row.met for row in rows] == [True, False, None]
    section = Section("title", "method", rows)
    console = Console(file=StringIO(), width=120)
    draw([section], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("met") - text.count("method") == 1 and text.count("missed") == 1
    assert document({}, {"topic": section})["topics"]["topic"]["rows"][1]["met"] is False


def test_the_kernel_and_the_loop_by_hand_train_the_same_weights(tmp_path: Path) -> None:
    hand, engine = Hand(16), Engine(tmp_path, 16)
    start = [p.clone() for p in hand.module.parameters()]
    for loop in (hand, engine):
        loop.train()
        loop.train()
    engine.close()
    assert engine.kernel.position.step == 2 * BLOCK
    assert same_weights(hand, engine)
    assert not any(torch.equal(p, q) for p, q in zip(start, hand.module.parameters(), strict=True))
    hand.train()
    assert not same_weights(hand, engine)


def test_ten_series_and_the_advice_of_the_budget_reach_the_log(tmp_path: Path) -> None:
    from ctr.engine.series import read_series, series_index

    engine = Engine(tmp_path, 16, {**rate_plugins(), "ten": TenSeries(tensors())})
    engine.train()
    engine.close()
    for value, name in enumerate(NAMES):
        steps, values = read_series(tmp_path, f"ten.{name}")
        assert steps.tolist() == list(range(BLOCK)) and set(values.tolist()) == {float(value)}
    assert {"constant_scale.scale", "phase_controller.scale"} <= set(series_index(tmp_path))


def test_a_clock_around_the_kernels_calls_is_taken_off_again(tmp_path: Path) -> None:
    engine = Engine(tmp_path, 16)
    before = {name: [getattr(*at) for at in where] for name, where in places(engine).items()}
    found = in_the_loop(engine, places(engine), blocks=1)
    engine.close()
    assert set(found) == set(before) and all(spent > 0 for spent in found.values())
    assert {name: [getattr(*at) for at in where] for name, where in places(engine).items()} == before
