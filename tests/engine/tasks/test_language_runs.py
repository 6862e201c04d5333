"""Whole runs of `causal_lm`: phases of all weights and of adapters, resumed, repeated, matched, with terms."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.checkpoint import CheckpointStore
from ctr.engine.events_log import read_events

from .small_text import bits, study, train

Run = Callable[..., Path]
ACTING = (
    "{plugins: {geometry: {gossip: {weight: 5, tau: 0.5}, diversity: {weight: 0.1}, metrics: {attention: [0, 1]}}}}"
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that trains a run of the study, with pieces replaced, to its end, and returns its folder."""
    path = tmp_path / "spec"
    path.mkdir()

    def run(name: str, replaced: dict[str, str] | None = None, dies_at: int | None = None, **more: Any) -> Path:
        folder = tmp_path / name / "spoken" / "run"  # a root of its own: below one root, ends of phases are shared
        spec = study(path, replaced)
        if dies_at is not None:
            outcome = train(spec, folder, dies_at=dies_at, **more)
            assert outcome.status == "failed" and outcome.error == "RuntimeError: killed"
        outcome = train(spec, folder, **more)
        assert outcome.status == "finished", outcome.error
        return folder

    return run


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the model's tensors that the last checkpoint holds."""
    loaded = CheckpointStore(folder).newest()
    assert loaded is not None
    return {name.removeprefix("module/"): t for name, t in loaded.tensors.items() if name.startswith("module/")}


def base(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors(folder).items() if ".lora_" not in name}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys() and left
    return all(torch.equal(left[name], right[name]) for name in left)


# what differs, updates between checkpoints, and where it is killed: in the base's phase and in the adapter's
CASES: dict[str, tuple[dict[str, str], int, tuple[int, int]]] = {
    "plain": ({}, 2, (6, 10)),
    "accumulated": ({"micro_batch: 4": "micro_batch: 2\n  grad_accum: 2"}, 1, (4, 6)),
    "packed": ({"max_length: 48, data": "max_length: 48, rows: pack, data"}, 2, (6, 10)),
    "terms": ({"baseline: {}": f"baseline: {ACTING}"}, 2, (6, 10)),
}


@pytest.mark.parametrize(("more", "every", "deaths"), CASES.values(), ids=CASES)
def test_a_resumed_run_equals_an_uninterrupted_one(
    more: dict[str, str], every: int, deaths: tuple[int, int], run: Run
) -> None:
    """Taken up in the middle of an epoch of either phase, after work that is lost and done again; with dropout."""
    spec = {"arms:": f"checkpoint: {{every_steps: {every}, every_epochs: 0, cache: false}}\narms:", **more}
    straight = bits(run("straight", spec))
    assert any("exp_avg" in name for name in straight) and any(".lora_B" in name for name in straight)
    for dies_at in deaths:
        folder = run(f"resumed{dies_at}", spec, dies_at=dies_at)
        taken_up = [e["step"] for e in read_events(folder) if e["event"] == "resumed"]
        assert taken_up == [(dies_at - 1) // every * every]
        resumed = bits(folder)
        assert [name for name in straight if straight[name] != resumed.get(name)] == []
        assert straight.keys() == resumed.keys()


def test_one_seed_gives_one_run_and_another_another(run: Run) -> None:
    seeds = {"seeds: [1]": "seeds: [1, 2]"}
    first, again, other = run("a", seeds), run("b", seeds), run("c", seeds, seed=2)
    assert bits(first) == bits(again)
    assert not equal(tensors(first), tensors(other))


def test_terms_without_weight_change_no_bit_and_terms_with_weight_do(run: Run) -> None:
    arms = {
        "baseline: {}": "baseline: {}\n  inert: {plugins: {geometry: {metrics: {attention: [0, 1]}}}}\n"
        f"  acting: {ACTING}"
    }
    folders = {arm: run(arm, arms, arm=arm) for arm in ("baseline", "inert", "acting")}
    assert equal(tensors(folders["baseline"]), tensors(folders["inert"]))
    assert not equal(tensors(folders["baseline"]), tensors(folders["acting"]))
    hashes = [json.loads((folder / "provenance.json").read_bytes())["hashes"] for folder in folders.values()]
    assert hashes[0] == hashes[1] == hashes[2], "arms are matched: weights, order, evaluation items"
    assert set(hashes[0]) == {"weights", "base", "data_order", "evaluation_items"}


def test_a_base_phase_of_its_own_seeds_gives_one_base_to_all_runs(run: Run) -> None:
    seeds = {
        "seeds: [1]": "seeds: [1, 2]", "context: 64": "context: 64, init_seed: 3",
        "trains: all}": "trains: all, seed: 4, plugins: none}",
    }  # fmt: skip
    one, two = run("a", seeds), run("b", seeds, seed=2)
    assert equal(base(one), base(two))
    assert not equal(tensors(one), tensors(two)), "and yet each its own adapter"
    without = run("c", {**seeds, ", seed: 4": ""}, seed=2)
    assert not equal(base(one), base(without)), "the phase's own seed decides"


def test_a_phase_moves_what_it_trains_and_nothing_else(run: Run) -> None:
    """`all` leaves the adapter aside, `adapter` leaves the base alone."""
    alone = run("alone", {"  - {task: A}\n": ""})
    both = run("both")
    assert equal(base(alone), base(both)), "the adapter's phase moves no weight of the base"
    assert tensors(alone).keys() == base(alone).keys(), "no factor was trained, so none is kept"
    assert not (alone / "adapters").exists() and [p.name for p in (both / "adapters").iterdir()] == ["A"]


def test_a_new_phase_begins_with_a_fresh_adapter_or_goes_on(run: Run) -> None:
    three = {
        "  - {task: A}\n": "  - {task: A}\n  - {task: base, name: again, MORE}\n".replace(", MORE", ", adapter: fresh")
    }
    fresh, continued = (
        run("fresh", three),
        run("continued", {k: v.replace("fresh", "continued") for k, v in three.items()}),
    )
    for folder, phases in ((fresh, ["A", "again"]), (continued, ["A"])):
        marks = [e for e in read_events(folder) if e["event"] == "boundary" and e["kind"] == "phase"]
        assert [mark["phase"] for mark in marks if mark["reset"]] == phases
        assert all(mark["reset"]["after"]["b"] == 0 for mark in marks if mark["reset"])
    assert sorted(p.name for p in (fresh / "adapters").iterdir()) == ["A", "again"]
    assert not equal(tensors(fresh), tensors(continued))


def test_bf16_trains_and_keeps_its_weights_in_full(run: Run) -> None:
    plain, short = run("plain"), run("short", {"threads: 1": "threads: 1\n  precision: bf16"})
    assert {t.dtype for t in tensors(short).values()} == {torch.float32}
    assert not equal(tensors(plain), tensors(short))
    losses = [e["values"]["loss"] for f in (plain, short) for e in read_events(f) if e["event"] == "evaluation"]
    assert losses[0] == pytest.approx(losses[len(losses) // 2], rel=0.05) and losses[0] < 5


def test_recomputed_activations_give_the_same_run(run: Run) -> None:
    plain, less = run("plain"), run("less", {"threads: 1": "threads: 1\n  gradient_checkpointing: true"})
    assert bits(plain) == bits(less)
