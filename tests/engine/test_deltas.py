"""Effective deltas as pairs of factors, held against the dense matrices that they stand for; and in whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.adapters import Adapter, Factor
from ctr.engine.deltas import Pair, cosine, increment, inner, packed, unpacked
from ctr.engine.events_log import read_events
from ctr.engine.hooks import Reset, hookimpl
from ctr.engine.state_tree import join_state, split_state

from .test_kernel import crash_after
from .tiny import Tiny, finish, make, train_spec

torch.set_num_threads(1)
TARGETS = {"q": (6, 9), "v": (11, 4), "o": (3, 3)}


def drawn(seed: int, rank: int = 2, targets: Any = TARGETS) -> list[Factor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Factor(name, torch.randn(rank, i, generator=draw), torch.randn(o, rank, generator=draw), 1.5, torch.zeros(o, i))
        for name, (o, i) in targets.items()
    ]


def moved(factors: list[Factor], seed: int, size: float = 0.3) -> dict[str, torch.Tensor]:
    """Move every factor in place, and return where they stood."""
    start = Adapter(factors, lambda a, generator: a).snapshot()
    draw = torch.Generator().manual_seed(seed)
    for factor in factors:
        factor.a.add_(torch.randn(factor.a.shape, generator=draw), alpha=size)
        factor.b.add_(torch.randn(factor.b.shape, generator=draw), alpha=size)
    return start


def dense(factor: Factor, start: dict[str, torch.Tensor]) -> torch.Tensor:
    before = start[f"{factor.name}.b"].double() @ start[f"{factor.name}.a"].double()
    return factor.scaling * (factor.b.double() @ factor.a.double() - before)


def dense_cosine(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left * right).sum() / left.norm() / right.norm())


@pytest.mark.parametrize("seed", range(8))
def test_pairs_agree_with_dense_matrices(seed: int) -> None:
    """Two phases, the second going on from the first, as with a continued adapter."""
    factors = drawn(seed, rank=1 + seed % 3)
    starts = [moved(factors, seed + 100)]
    first, one = increment(factors, starts[0]), [dense(f, starts[0]) for f in factors]
    starts.append(moved(factors, seed + 200))
    second, two = increment(factors, starts[1]), [dense(f, starts[1]) for f in factors]
    for factor, left, right in zip(factors, one, two, strict=True):
        assert torch.allclose(first[factor.name].dense(), left, atol=1e-6)
        assert inner(first[factor.name], second[factor.name]) == pytest.approx(float((left * right).sum()), abs=1e-5)
    found = cosine(first, second)
    wanted = [dense_cosine(left, right) for left, right in zip(one, two, strict=True)]
    assert list(found.targets.values()) == pytest.approx(wanted, abs=1e-6)
    assert found.mean == pytest.approx(sum(wanted) / 3, abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_laws_of_a_cosine(seed: int) -> None:
    factors = drawn(seed)
    left, right = increment(factors, moved(factors, 1)), increment(factors, moved(factors, 2))
    assert cosine(left, left).mean == pytest.approx(1.0, abs=1e-12)
    assert cosine(left, right).mean == pytest.approx(cosine(right, left).mean, abs=1e-14)
    opposite = {name: Pair(p.a, -p.b, p.scaling) for name, p in left.items()}
    assert cosine(left, opposite).mean == pytest.approx(-1.0, abs=1e-12)
    larger = {name: Pair(p.a, p.b, 1000 * p.scaling) for name, p in right.items()}
    assert cosine(left, larger).mean == pytest.approx(cosine(left, right).mean, abs=1e-12)  # type: ignore[arg-type]
    turn = torch.linalg.qr(torch.randn(4, 4))[0]  # another pair of factors of the same change
    gauged = {name: Pair(turn @ p.a, p.b @ turn.T, p.scaling) for name, p in right.items()}
    assert cosine(left, gauged).mean == pytest.approx(cosine(left, right).mean, abs=1e-5)  # type: ignore[arg-type]


def test_a_small_change_of_large_factors_keeps_its_digits() -> None:
    """[B1, -B0][A1; A0] would take the difference of two products that agree in nearly every digit."""
    factors = drawn(3)
    for factor in factors:
        factor.a.mul_(1e4)
        factor.b.mul_(1e4)
    start = moved(factors, 5, size=0.5)
    found = increment(factors, start)
    for factor in factors:
        wanted = dense(factor, start)
        assert float((found[factor.name].dense() - wanted).norm() / wanted.norm()) < 1e-6
        assert cosine({"t": found[factor.name]}, {"t": found[factor.name]}).mean == pytest.approx(1.0, abs=1e-12)


def test_targets_that_did_not_change_are_left_out() -> None:
    factors = drawn(1)
    start = moved(factors, 2)
    left = increment(factors, start)
    right = dict(left) | {"v": Pair(left["v"].a, 0 * left["v"].b, 1.5)}
    found = cosine(left, right)
    assert found.targets["v"] is None and found.mean == pytest.approx(1.0)
    still = increment(factors, Adapter(factors, lambda a, generator: a).snapshot())
    nothing = cosine(left, still)
    assert nothing.mean is None and set(nothing.targets.values()) == {None}
    assert cosine(left, {}).mean is None and cosine({}, {}).mean is None


def test_a_cold_start_needs_half_the_rank_and_other_shapes_are_refused() -> None:
    factors = drawn(1)
    for factor in factors:
        factor.b.zero_()
    cold = increment(factors, moved(factors, 2))
    warm = increment(factors, moved(factors, 3))
    assert cold["q"].a.shape == (2, 9) and warm["q"].a.shape == (4, 9) and warm["q"].b.shape == (6, 4)
    with pytest.raises(ValueError, match=r"one shape, given \(6, 9\), \(11, 4\)"):
        inner(cold["q"], warm["v"])


def test_what_is_taken_does_not_move_with_the_adapter_and_survives_a_checkpoint() -> None:
    factors = drawn(1)
    for factor in factors:
        factor.b.zero_()
    delta = increment(factors, moved(factors, 2))
    before = {name: pair.dense() for name, pair in delta.items()}
    tree, tensors = split_state(packed({"A": delta}))
    back = unpacked(join_state(tree, tensors))["A"]
    moved(factors, 3)
    for name in TARGETS:
        assert torch.equal(delta[name].dense(), before[name]) and torch.equal(back[name].dense(), before[name])


# ------------------------------------------------------------------------------------------------ in whole runs
def phases() -> list[Any]:
    return [train_spec(name="A", epochs=2), train_spec(name="B", epochs=2), train_spec(name="C", epochs=1)]


def cosines(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_events(folder) if r["event"] == "cosine"]


def test_each_phase_is_held_against_every_earlier_one(tmp_path: Path) -> None:
    kernel = finish(make(tmp_path, task=Tiny(3, lora=True), phases=phases()))
    found = cosines(tmp_path)
    assert [(r["left"], r["right"], r["of"]) for r in found] == [("A", "B", "delta"), ("A", "C", "delta"),
                                                                ("B", "C", "delta")]  # fmt: skip
    dense = {name: delta["hidden"].dense() for name, delta in kernel.keeper.increments.phases.items()}
    for record in found:
        wanted = dense_cosine(dense[record["left"]], dense[record["right"]])
        assert record["mean"] == record["targets"]["hidden"] == pytest.approx(wanted, abs=1e-12)
        assert abs(wanted) > 1e-3
    last = kernel.adapter.factors[0]
    assert torch.allclose(dense["C"], 2.0 * (last.b @ last.a).detach().double(), atol=1e-6)


def test_a_continued_adapter_counts_from_where_the_phase_began(tmp_path: Path) -> None:
    specs = phases()
    specs[1].fresh = specs[2].fresh = False
    kernel = finish(make(tmp_path, task=Tiny(3, lora=True), phases=specs))
    parts = [delta["hidden"] for delta in kernel.keeper.increments.phases.values()]
    last = kernel.adapter.factors[0]
    whole = 2.0 * (last.b.double() @ last.a.double()).detach()
    assert torch.allclose(sum((p.dense() for p in parts), torch.zeros(8, 5)), whole, atol=1e-6)
    assert [p.a.shape[0] for p in parts] == [2, 4, 4] and len(cosines(tmp_path)) == 3


def test_a_resumed_run_tells_the_same_cosines(tmp_path: Path) -> None:
    def one(folder: Path) -> Any:
        return make(folder, task=Tiny(3, lora=True), phases=phases(), checkpoint={"every_steps": 5})

    finish(one(tmp_path / "a"))
    crash_after(one(tmp_path / "b"), 27)  # in phase C: the deltas of A and B come from the checkpoint
    finish(one(tmp_path / "b"))
    told = [[(r["left"], r["right"], r["mean"]) for r in cosines(tmp_path / folder)] for folder in "ab"]
    assert told[0] == told[1] and len(told[0]) == 3


def test_a_phase_that_merged_on_the_way_has_no_cosine_and_says_so(tmp_path: Path) -> None:
    class Merge:
        @hookimpl
        def adapter_reset(self, boundary: Any) -> Reset | None:
            return Reset(merge=True) if (boundary.kind, boundary.phase) in (("epoch", "B"), ("phase", "C")) else None

    specs = phases()
    specs[1].reset_at = ["epoch"]
    finish(make(tmp_path, {"m": Merge()}, task=Tiny(3, lora=True), phases=specs))
    assert [(r["left"], r["right"]) for r in cosines(tmp_path)] == [("A", "C")]
    (warning,) = [r for r in read_events(tmp_path) if r["event"] == "warning"]
    assert "phase B merged" in warning["text"]


def test_without_an_adapter_nothing_is_told(tmp_path: Path) -> None:
    kernel = finish(make(tmp_path, phases=phases()))
    assert not cosines(tmp_path) and not kernel.keeper.increments.phases and math.isfinite(kernel.position.step)
