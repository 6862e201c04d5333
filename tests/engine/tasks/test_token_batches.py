"""Rows of tokens become micro-batches: every token once, in its place, whatever goes together."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.engine.tasks.token_batches import (
    Passes,
    Tokens,
    bucketed,
    by_budget,
    gather,
    layout,
    packed,
)

Kind = Literal["bucket", "pack", "pad"]
KINDS: tuple[Kind, ...] = ("bucket", "pack", "pad")
PAD = 999
LENGTHS = st.lists(st.integers(2, 12), min_size=1, max_size=40)
QUICK = settings(max_examples=40, deadline=None)


def tokens_of(lengths: list[int], seed: int = 0) -> Tokens:
    """Return rows of ever new ids, of which about two thirds are trained."""
    random = np.random.RandomState(seed)
    ids = np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1])
    return Tokens(ids, [random.rand(len(row)) < 0.66 for row in ids])


def batches(tokens: Tokens, kind: Kind, number: int = 0, micro: int = 3, seed: int = 1, phase: int = 0) -> list[Any]:
    passes = Passes(tokens, kind, micro, 12, seed, phase)
    names = [f"r{row}" for row in range(len(tokens))]
    at = [passes.at(number, index) for index in range(passes.per_pass)]
    return [gather(tokens, one, names, PAD, torch.device("cpu")) for one in at]


@QUICK
@given(LENGTHS, st.sampled_from(KINDS), st.integers(1, 5))
def test_every_row_comes_once_and_every_trained_token_is_predicted(lengths: list[int], kind: Kind, micro: int) -> None:
    tokens = tokens_of(lengths)
    found = batches(tokens, kind, micro=micro)
    assert sorted(name for batch in found for name in batch.ids) == sorted(f"r{row}" for row in range(len(lengths)))
    labels = torch.cat([batch.tensors["labels"] for batch in found])
    assert sorted(labels.tolist()) == tokens.flat[tokens.trained].tolist()
    assert sum(batch.count for batch in found) == tokens.counts.sum() == tokens.trained.sum()


@QUICK
@given(LENGTHS, st.sampled_from(KINDS))
def test_what_predicts_a_token_is_the_one_before_it_in_its_row(lengths: list[int], kind: Kind) -> None:
    tokens = tokens_of(lengths)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for batch in batches(tokens, kind):
        t = batch.tensors
        before = t["ids"].flatten()[t["where"]]
        assert torch.equal(before + 1, t["labels"]), "ids count up through all rows"
        assert [f"r{row}" for row in owner[t["labels"].numpy()].tolist()] == [batch.ids[i] for i in t["rows"]]
        assert torch.equal(t["mask"], t["ids"] != PAD)
        assert torch.equal(t["mask"].flatten()[t["where"]], torch.ones(len(t["where"]), dtype=torch.bool))


@QUICK
@given(LENGTHS)
def test_positions_of_packed_rows_begin_anew(lengths: list[int]) -> None:
    tokens = tokens_of(lengths)
    inside = np.concatenate([np.arange(size) for size in lengths])
    for batch in batches(tokens, "pack"):
        t = batch.tensors
        if "positions" in t:
            assert t["positions"][t["mask"]].tolist() == inside[t["ids"][t["mask"]]].tolist()
            gaps = t["positions"][~t["mask"]]
            assert (gaps > 0).all() and (gaps < t["ids"].shape[1]).all(), "padding is no row, and no place too far"
        else:
            assert len(batch.ids) == len(t["ids"])


@QUICK
@given(LENGTHS, st.integers(12, 30))
def test_no_line_is_wider_than_allowed_and_few_are_half_empty(lengths: list[int], width: int) -> None:
    sizes = np.array(lengths)
    lines = packed(sizes, np.arange(len(sizes)), width)
    assert sorted(np.concatenate(lines).tolist()) == list(range(len(sizes)))
    filled = [int(sizes[line].sum()) for line in lines]
    assert max(filled) <= width
    assert sum(2 * size <= width for size in filled[-16:]) <= 1, "two such lines would have been one"


@pytest.mark.parametrize("kind", KINDS)
def test_passes_differ_and_repeat(kind: Kind) -> None:
    tokens = tokens_of([3, 4, 5, 6, 7, 8, 9, 10, 11, 12] * 3)

    def order(**more: Any) -> list[list[str]]:
        return [batch.ids for batch in batches(tokens, kind, **more)]

    assert order() == order()
    for other in ({"number": 1}, {"seed": 2}, {"phase": 1}):
        assert order(**other) != order()
    assert len(order(number=1)) == len(order()), "passes have equally many micro-batches"


def test_like_lengths_go_together_and_yet_not_always_the_same() -> None:
    lengths = np.random.RandomState(0).randint(2, 100, 640)
    waste = []
    for order in (np.arange(640), np.random.RandomState(1).permutation(640)):
        groups = bucketed(lengths, order, 4)
        assert sorted(np.concatenate(groups).tolist()) == list(range(640))
        waste.append(sum(int(lengths[g].max() * len(g) - lengths[g].sum()) for g in groups) / lengths.sum())
    assert max(waste) < 0.05
    tokens = tokens_of(lengths.tolist())
    passes = Passes(tokens, "bucket", 4, 100, 1, 0)
    longest = [[int(lengths[passes.at(n, i).rows].max()) for i in range(passes.per_pass)] for n in range(2)]
    assert longest[0] != sorted(longest[0]) and longest[0] != longest[1], "batches do not come by length"
    together = [{frozenset(passes.at(n, i).rows.tolist()) for i in range(passes.per_pass)} for n in range(2)]
    assert len(together[0] & together[1]) < 16


def test_pad_is_as_wide_as_it_is_told_and_bucket_as_its_longest_row() -> None:
    tokens = tokens_of([3, 5, 4, 2, 7])
    assert {batch.tensors["ids"].shape[1] for batch in batches(tokens, "pad")} == {12}
    for batch in batches(tokens, "bucket"):
        longest = max(int(tokens.lengths[int(name[1:])]) for name in batch.ids)
        assert batch.tensors["ids"].shape == (len(batch.ids), longest)


@QUICK
@given(LENGTHS, st.integers(2, 60))
def test_a_pass_of_an_evaluation_keeps_to_its_budget(lengths: list[int], budget: int) -> None:
    sizes = np.array(lengths)
    groups = by_budget(sizes, budget)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(sizes)))
    assert all(len(g) == 1 or sizes[g].max() * len(g) <= budget for g in groups)


def test_nothing_predicts_the_first_token_of_a_row() -> None:
    ids = [np.arange(3, dtype=np.int32), np.arange(3, 7, dtype=np.int32)]
    tokens = Tokens(ids, [np.ones(3, bool), np.array([True, False, True, False])])
    assert tokens.trained.tolist() == [False, True, True, False, False, True, False]
    assert tokens.counts.tolist() == [2, 1]
    batch = gather(tokens, layout(tokens, np.array([1, 0])), ["a", "b"], PAD, torch.device("cpu"))
    assert batch.ids == ["b", "a"] and batch.count == 3
    assert batch.tensors["labels"].tolist() == [5, 1, 2] and batch.tensors["rows"].tolist() == [0, 1, 1]
