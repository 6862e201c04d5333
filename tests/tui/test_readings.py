"""The rate panel, the loss panel, the decisions and the paired panel, with numbers that a person can check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctr.engine.events_log import EventLog
from ctr.engine.series import SeriesWriter
from ctr.tui import groups, readings, specs, texts
from ctr.tui.catalog import Catalog
from ctr.tui.follow import RunStore
from ctr.tui.history import History

from .fake_runs import FakeRun, index


def store_of(path: Path, holds: dict[str, list[tuple[int, float | str]]], points: dict[str, list[float]]) -> RunStore:
    writer = SeriesWriter(path)
    for key, rows in holds.items():
        writer.declare(key, kind="hold")
        for step, value in rows:
            writer.hold(key, step, value)
    for key, values in points.items():
        writer.declare(key)
        writer.append(key, np.arange(len(values)), np.array(values))
    writer.flush()
    writer.close()
    store = RunStore(path)
    store.poll()
    store.want(store.keys())
    store.catch_up()
    return store


def test_the_rate_is_base_times_factors_and_the_lowest_ceiling_binds(tmp_path: Path) -> None:
    store = store_of(
        tmp_path,
        {
            "pulse.scale": [(0, 1.0), (5, 0.5)],
            "pulse.why": [(0, "calm"), (5, "steep")],
            "other.scale": [(0, 2.0)],
            "weyl.ceiling": [(0, 0.3)],
            "cap.ceiling": [(0, 0.9)],
        },
        {"train.base_lr": [0.4] * 10, "train.lr": [0.3] * 5 + [0.3] * 5},
    )
    need = readings.keys(store.keys())
    early, late = readings.rates(store, need, 4)[0], readings.rates(store, need, 5)[0]
    assert early.product == pytest.approx(0.8) and late.product == pytest.approx(0.4)
    assert early.binding is not None and early.binding.plugin == "weyl"
    assert [f.why for f in late.factors if f.plugin == "pulse"] == ["steep"]
    assert "binding" in texts.rate_panel([early], {}, True).plain
    assert texts.rate_line(late).plain.endswith("≤ 0.3 weyl binds")


def test_no_ceiling_binds_where_the_product_lies_below_all(tmp_path: Path) -> None:
    store = store_of(tmp_path, {"cap.ceiling": [(0, 1.0)]}, {"train.base_lr": [0.4], "train.lr": [0.4]})
    assert readings.rates(store, readings.keys(store.keys()), 0)[0].binding is None


def test_groups_have_rates_of_their_own(tmp_path: Path) -> None:
    store = store_of(
        tmp_path,
        {"pulse.scale[lora_a]": [(0, 0.5)], "pulse.scale[lora_b]": [(0, 0.25)]},
        {"train.base_lr": [1.0], "train.lr": [0.5], "train.lr[lora_b]": [0.25]},
    )
    found = {r.group: r for r in readings.rates(store, readings.keys(store.keys()), 0)}
    assert found["lora_b"].used == 0.25 and [f.value for f in found["lora_b"].factors] == [0.25]
    assert [f.value for f in found["lora_a"].factors] == [0.5]


def test_the_loss_is_the_task_loss_and_each_term_weighted(tmp_path: Path) -> None:
    store = store_of(
        tmp_path,
        {"geo.weight.repel": [(0, 0.5)]},
        {"train.loss": [1.0, 2.0], "train.total": [1.1, 2.2], "geo.term.repel": [0.2, 0.4]},
    )
    loss = readings.loss(store, readings.keys(store.keys()), 1)
    assert (loss.task, loss.total, loss.terms[0].share) == (2.0, 2.2, 0.2)
    assert texts.loss_line(loss).plain == "loss 2.2 = 2 + 0.5 × 0.4 repel"


def test_a_mark_that_explains_a_change_of_state_is_one_decision_with_its_reason(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("state", 0, owner="pc", name="regime", value="S0")
    log.write("state", 9, owner="pc", name="regime", value="S1")
    log.write("mark", 9, owner="pc", name="transition", why="it fell", epoch=3)
    log.write("something_new", 9, whatever=[1])
    log.close()
    store = RunStore(tmp_path)
    store.catch_up()
    assert [(d.step, d.what, d.why) for d in store.history.decisions] == [
        (0, "regime: begins in S0", ""),
        (9, "regime: S0 → S1", "it fell"),
    ]
    assert [(s.value, s.start, s.end) for s in store.history.spans] == [("S0", 0, 9), ("S1", 9, None)]
    assert [s.value for s in store.history.standing(8)] == ["S0"]
    assert len(store.history.records) == 4


def test_what_a_resume_supersedes_is_forgotten(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("mark", 1, owner="a", name="kept", why="")
    log.write("mark", 8, owner="a", name="lost", why="")
    store = RunStore(tmp_path)
    store.catch_up()
    assert [d.what for d in store.history.decisions] == ["kept", "lost"]
    log.resumed("1-5", 0, 5)
    log.write("mark", 6, owner="a", name="again", why="")
    store.catch_up()
    assert [d.what for d in store.history.decisions] == ["kept", "resumed", "again"]


def test_advice_is_listed_with_its_reason() -> None:
    history = History()
    advice = {
        "asked": {"noise": 4},
        "save": {"best": "gate"},
        "stop": ["cert"],
        "why": {"noise": "too noisy", "cert": "done"},
    }
    history.extend([{"event": "epoch", "seq": 0, "step": 5, "kind": "epoch", "epoch": 1, "advice": advice}])
    told = [(d.owner, d.what, d.why) for d in history.decisions]
    assert told == [
        ("noise", "asks grad_accum 4", "too noisy"),
        ("gate", "saves best", ""),
        ("cert", "stops the phase", "done"),
    ]


def pairs(root: Path, values: dict[int, tuple[float | None, float | None]]) -> list[groups.Contrast]:
    index(root / "demo", ["base", "treat"], list(values))
    for seed, both in values.items():
        for arm, value in zip(("base", "treat"), both, strict=True):
            run = FakeRun(root / "demo", arm, seed, epochs=1, per_epoch=2)
            run.advance(2)
            if value is not None:
                run.log.write(
                    "evaluation", 2, split="test", weights="selected", values={"accuracy": value}, by="engine"
                )
                run.log.write("evaluation", 2, split="test", weights="last", values={"accuracy": -99.0}, by="engine")
                run.write_status("finished")
            run.close()
    catalog = Catalog(root)
    catalog.scan(0.0, 0.0, 10.0)
    study = catalog.studies["demo"]
    arms = [
        groups.group(a, k, [r for r in study.runs.values() if r.facts.arm == a]) for k, a in enumerate(study.arms())
    ]
    groups.Follower(arms).poll(5.0)
    return groups.contrasts(study, arms, "test.accuracy")


def test_pairs_are_made_by_seed_from_the_selected_weights_and_wait_for_the_other_arm(tmp_path: Path) -> None:
    (found,) = pairs(tmp_path, {1: (90.0, 91.0), 2: (90.0, 93.0), 3: (91.0, 90.5), 4: (90.0, None)})
    assert found.result.differences == (1.0, 3.0, -0.5)
    assert (found.a, found.b, found.waiting, found.result.wins, found.result.losses) == ("treat", "base", 1, 2, 1)


def test_the_band_is_the_t_interval_over_seeds_and_says_over_how_many(tmp_path: Path) -> None:
    for seed, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        log = EventLog(_run(tmp_path, seed))
        log.write("epoch", 5, kind="epoch", phase="main", epoch=0, evaluations={"val": {"loss": value}})
        if seed < 3:
            log.write("epoch", 10, kind="epoch", phase="main", epoch=1, evaluations={"val": {"loss": value / 2}})
        log.close()
    catalog = Catalog(tmp_path)
    catalog.scan(0.0, 0.0, 10.0)
    arm = groups.group("base", 0, catalog.runs())
    arm.want("val.loss", "epoch")
    groups.Follower([arm]).poll(5.0)
    band = groups.band(arm, "val.loss", "epoch")
    assert band.x.tolist() == [1.0, 2.0] and band.mean.tolist() == [2.0, 0.75]
    half = 4.302652729911275 / np.sqrt(3)  # t(0.975, 2) · sd/√n with sd 1
    assert band.high[0] - band.mean[0] == pytest.approx(half)
    assert band.label == "base n=2–3"


def _run(root: Path, seed: int) -> Path:
    path = root / "demo" / f"base-s{seed}"
    path.mkdir(parents=True)
    return path


def test_the_difference_of_specs_names_the_paths_and_both_values() -> None:
    one = {"train": {"lr": 0.1, "epochs": 3}, "phases": [{"name": "a", "task": "x"}], "plugins": {}}
    two = {"train": {"lr": 0.2, "epochs": 3}, "phases": [{"name": "a", "task": "y"}], "plugins": {"pc": {"rule": "f"}}}
    assert specs.differences([one, two]) == [
        ("train.lr", ["0.1", "0.2"]),
        ("phases[a].task", ["x", "y"]),
        ("plugins", ["{}", "–"]),
        ("plugins.pc.rule", ["–", "f"]),
    ]
