"""The laws that every built-in plugin keeps, by table: one row a plugin, and no plugin without a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.events_log import read_events
from ctr.engine.host import discover
from ctr.engine.matrix import Matrix
from ctr.engine.seeding import mix, stream
from tests.engine.tasks.sequences import Sequences
from tests.engine.tiny import Tiny, bits, finish, make, train_spec
from tests.plugins.test_geometry_standin import Text
from tests.plugins.warm_a.standin import Documents

torch.set_num_threads(1)
SEED = 3
EAGER = {
    "window": 2,
    "min_observations": 3,
    "s1_tau": 0.1,
    "s1_share": 1.0,
    "s1_confirm": 1,
    "s2_tau": 9.0,
    "s2_rho": 0.9,
    "leave_confirm": 0,
}


@dataclass(frozen=True)
class Row:
    """A plugin with settings that do nothing, and settings that act within a short run."""

    plugin: str
    inert: dict[str, Any]
    active: dict[str, Any]
    source: bool = False
    task: Callable[[], Any] = partial(Tiny, SEED)
    on: str = ""
    reset_at: tuple[str, ...] = ()


GEOMETRY = {
    "gossip": {"weight": 2.0, "tau": 0.1, "sample": 7},
    "repulsion": {"weight": 0.5, "sample": 8, "schedule": {"kind": "warmup", "warmup": 3}},
    "diversity": {"weight": 0.3},
    "sparsity": {"weight": 0.1},
    "branch_repulsion": {"weight": 0.2},
    "inhibition": {"weight": 0.2},
    "load_balance": {"weight": 5.0, "schedule": {"kind": "cosine", "per": "step", "until": 11}},
}
WARM = {"a": "pull", "rho": 0.5, "b": "scale", "gamma": 0.5, "at": ["document", "epoch"], "rewarm_steps": 4}
ONES = {"S0": 1.0, "S1": 1.0, "S2": 1.0, "S3": 1.0}
TABLE = [
    Row("constant_scale", {"scale": 1.0}, {"scale": 1.7, "from_epoch": 1}),
    Row(
        "phase_controller",
        {**EAGER, "factors": ONES, "accum": {"S0": 1, "S1": 1, "S2": 1, "S3": 1}},
        {**EAGER, "ramp_steps": 3, "patience": 1},
    ),
    Row(
        "random_regimes",
        {"last": 4, "first": 1, "factors": [1.0] * 4, "accum": [1] * 4},
        {"last": 4, "first": 1},
    ),
    Row("replay_rates", {"arm": "plain"}, {"arm": "acting"}, source=True),
    # hidden states, attention maps and branches to look at
    Row("geometry", {}, GEOMETRY, task=partial(Text, SEED, open_house=True)),
    Row("geometry", {}, GEOMETRY, task=partial(Sequences, SEED, open_house=True), on="sequence"),
    # inert is what the engine does where nobody answers
    Row("warm_a", {"a": "redraw"}, WARM, task=partial(Documents, SEED), reset_at=("epoch",)),
    Row(
        "warm_a",
        {"a": "redraw", "moments": "clear", "angle_slots": 0},
        {"guard": {"groups": 1, "margin": 0.01}, "until": 4},
        task=partial(Documents, SEED, compared=True),
        on="guarded",
    ),
]


def ids(row: Row) -> str:
    return f"{row.plugin}-{row.on}" if row.on else row.plugin


def build(row: Row, settings: dict[str, Any], sources: Path) -> Any:
    kind = discover().plugins[row.plugin]
    generator = torch.Generator().manual_seed(mix(stream(SEED, f"plugin:{row.plugin}")))
    more = {"source": sources / settings["arm"]} if row.source else {}
    return kind(kind.Config(**settings), generator, **more)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs to replay: one that nobody touched, one whose rate and accumulation were changed."""
    folder = tmp_path_factory.mktemp("sources")
    finish(make(folder / "plain", epochs=5))
    acting = Row("random_regimes", {}, {"last": 3, "first": 1})
    finish(make(folder / "acting", {"random_regimes": build(acting, acting.active, folder)}, epochs=5))
    return folder


def test_every_built_in_has_a_row() -> None:
    ours = {name for name, kind in discover().plugins.items() if kind.__module__.startswith("ctr.plugins.")}
    assert {row.plugin for row in TABLE} == ours


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], dict[str, bytes]]:
    """Return what a run without plugins ends with, on the task of a row."""

    @cache
    def trained(task: Callable[[], Tiny], reset_at: tuple[str, ...]) -> dict[str, bytes]:
        return bits(finish(make(tmp_path_factory.mktemp("plain"), task=task(), epochs=5, reset_at=reset_at)))

    return lambda row: trained(row.task, row.reset_at)


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_an_inert_setting_changes_no_bit(row: Row, sources: Path, plain: Any, tmp_path: Path) -> None:
    assert trained(row, row.inert, sources, tmp_path) == plain(row)


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_the_active_settings_of_the_table_act(row: Row, sources: Path, plain: Any, tmp_path: Path) -> None:
    """Otherwise the laws below would be kept by plugins that do nothing."""
    assert trained(row, row.active, sources, tmp_path) != plain(row)


def trained(row: Row, settings: dict[str, Any], sources: Path, folder: Path) -> dict[str, bytes]:
    """Return what a run with one plugin ends with."""
    plugins = {row.plugin: build(row, settings, sources)}
    return bits(finish(make(folder, plugins, task=row.task(), epochs=5, reset_at=row.reset_at)))


def test_the_order_of_registration_changes_no_bit(sources: Path, tmp_path: Path) -> None:
    def all_of(folder: Path, rows: list[Row]) -> dict[str, bytes]:
        plugins = {row.plugin: build(row, row.active, sources) for row in rows if row.on != "guarded"}
        task = Text(SEED, open_house=True, lora=True)
        return bits(finish(make(folder, plugins, task=task, epochs=5, reset_at=["epoch"])))

    assert all_of(tmp_path / "a", TABLE) == all_of(tmp_path / "b", TABLE[::-1])
    assert all_of(tmp_path / "c", TABLE[2:] + TABLE[:2]) == all_of(tmp_path / "a2", TABLE)


def stop_in(kernel: Any, step: int, where: str) -> None:
    """Raise inside the update after `step` updates: before it, in the middle of an accumulation, or in evaluation."""

    def die(*args: Any) -> Any:
        raise RuntimeError("killed")

    task, update, backward = kernel.plans[0].task, kernel._update, kernel.backward
    evaluate = task.evaluate

    def update_or_die(*args: Any) -> None:
        update(*args) if kernel.position.step < step or where != "step" else die()

    def backward_or_die(plan: Any, batch: Any, index: int, count: int) -> Any:
        second = kernel.position.step >= step and index % 2 == 1 and where == "accumulation"
        return die() if second else backward(plan, batch, index, count)

    kernel._update, kernel.backward = update_or_die, backward_or_die
    task.evaluate = lambda *a: die() if kernel.position.step >= step and where == "evaluation" else evaluate(*a)
    with pytest.raises(RuntimeError, match="killed"):
        kernel.run()
    kernel.keeper.heartbeat.stop()


CASES = [("step", 7, 1), ("step", 12, 1), ("accumulation", 7, 2), ("evaluation", 10, 2)]


@pytest.mark.parametrize(("where", "step", "accum"), CASES, ids=lambda case: str(case))
@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_resumed_equals_uninterrupted(
    row: Row, where: str, step: int, accum: int, sources: Path, tmp_path: Path
) -> None:
    """With dropout and batch statistics; checkpoints at every fifth update, so that work is lost and done again."""

    def run(folder: Path) -> Any:
        plugins = {row.plugin: build(row, row.active, sources)}
        more: dict[str, Any] = {"grad_accum": accum, "reset_at": row.reset_at, "checkpoint": {"every_steps": 5}}
        return make(folder, plugins, task=row.task(), epochs=5, **more)

    straight = finish(run(tmp_path / "a"))
    stop_in(run(tmp_path / "b"), step, where)
    resumed = finish(run(tmp_path / "b"))
    assert bits(straight) == bits(resumed)
    assert _series(tmp_path / "a") == _series(tmp_path / "b")
    told = [[(r["event"], r["step"], r.get("value"), r.get("why")) for r in read_events(tmp_path / f)] for f in "ab"]
    skip = ("checkpoint", "resumed")
    assert [r for r in told[0] if r[0] not in skip] == [r for r in told[1] if r[0] not in skip]


def _series(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / "series").iterdir()}
    return {name: data for name, data in found.items() if not name.startswith("clock.")}


@pytest.mark.parametrize("row", TABLE, ids=ids)
def test_a_new_phase_finds_every_plugin_ready(row: Row, sources: Path, tmp_path: Path) -> None:
    phases = [train_spec(name="A", epochs=3), train_spec(name="B", epochs=3)]
    kernel = finish(make(tmp_path, {row.plugin: build(row, row.active, sources)}, task=row.task(), phases=phases))
    assert isinstance(kernel.matrix, Matrix) and list(kernel.matrix.rows) == ["start", "A", "B"]


def test_both_arms_are_bit_identical_until_the_epoch_whose_observation_enters_s1(tmp_path: Path) -> None:
    """The recommendation of epoch N governs N + 1, so even the weights after the epoch that enters S1 are equal."""
    row = Row("phase_controller", {}, {"rule": "faithful", "s1_threshold": -0.001})
    kernel = make(tmp_path / "with", {row.plugin: build(row, row.active, tmp_path)}, epochs=6)
    base = make(tmp_path / "without", epochs=6)
    seen: dict[str, list[dict[str, bytes]]] = {"with": [], "without": []}
    for name, one in (("with", kernel), ("without", base)):
        one._end_epoch = _remember(one, seen[name])  # type: ignore[method-assign]
        finish(one)
    marks = [
        r for r in read_events(tmp_path / "with") if r["event"] == "mark" and "S0_EXPLORE -> S1_BOUNDARY" in r["why"]
    ]
    assert len(marks) == 1
    entered = int(marks[0]["why"].split()[1].rstrip(":"))
    same = [left == right for left, right in zip(seen["with"], seen["without"], strict=True)]
    assert 2 <= entered < 5
    assert same == [epoch <= entered for epoch in range(6)]


def _remember(kernel: Any, into: list[dict[str, bytes]]) -> Callable[[Any], None]:
    end = kernel._end_epoch

    def ended(plan: Any) -> None:
        into.append(bits(kernel))
        end(plan)

    return ended


def test_the_tiny_task_has_what_makes_resume_hard() -> None:
    module = Tiny(SEED).build()
    kinds = {type(part) for part in module}  # type: ignore[attr-defined]
    assert {torch.nn.Dropout, torch.nn.BatchNorm1d} <= kinds and Tiny(SEED).batches(0) * 4 > len(Tiny(SEED).x)
