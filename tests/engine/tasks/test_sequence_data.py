"""The rule by a loop, the source's first row, and training data that are pure in their position."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctr.engine.errors import DataError
from ctr.engine.tasks.sequence import SequencePrediction
from ctr.engine.tasks.sequence_config import SequenceData
from ctr.engine.tasks.sequence_data import Consecutive, draw, names
from tests.engine.tasks.sequences import task

FIRST = [14, 21, 31, 7, 29, 6, 15, 23, 14, 23, 30, 7, 29, 7, 14, 23, 14, 21, 0, 9, 30, 7, 16, 25]
STREAMS = ["positional", "consecutive"]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loop(content: int, seq: int, items: int, seed: int) -> list[list[int]]:
    """Return base_0 … base_seq of each sequence, number by number."""
    drawing = generator(seed)
    start = torch.randint(0, content, (items, 1), generator=drawing)
    mode = torch.randint(0, 4, (items, 1), generator=drawing)
    noise = torch.randint(0, 3, (items, seq + 1), generator=drawing)
    return [
        [
            int(start[i] + t * (mode[i] + 1) + (t % 4) * (mode[i] + 2) + noise[i, t]) % content
            for t in range(seq + 1)
        ]
        for i in range(items)
    ]  # fmt: skip


def test_the_first_row_is_the_sources() -> None:
    inputs, targets = draw(SequenceData(), 1, generator(0))
    assert inputs.tolist() == [FIRST] and targets.tolist() == [[*FIRST[1:], 13]]


@pytest.mark.parametrize(("marker", "offset"), [(None, 0), (None, 5), (0, 0), (1, 0), (2, 14)])
def test_the_rule_agrees_with_a_loop(marker: int | None, offset: int) -> None:
    data = SequenceData.model_validate({"seq": 9, "marker": marker, "offset": offset})
    content, up = (32, 0) if marker is None else (29, 3)
    inputs, targets = draw(data, 7, generator(4))
    for row, one, expected in zip(by_loop(content, 9, 7, 4), inputs.tolist(), targets.tolist(), strict=True):
        assert expected == [(value + offset) % content + up for value in row[1:]]
        assert one[1:] == [value + up for value in row[1:-1]]
        assert one[0] == (row[0] if marker is None else marker)


def test_markers_stand_at_the_first_place_alone() -> None:
    inputs, targets = draw(SequenceData(marker=2, offset=14), 500, generator(0))
    assert (inputs[:, 0] == 2).all() and inputs[:, 1:].min() == 3 and targets.min() == 3
    assert inputs.max() == 31 and targets.max() == 31


@pytest.mark.parametrize("stream", STREAMS)
def test_a_micro_batch_is_pure_in_its_position(stream: str) -> None:
    """In any order, asked for twice, by a task that was made anew, and however long an epoch is."""
    fixed = {"stream": stream}
    one, other, shorter = task(fixed, 3), task(fixed, 3), task(fixed, 3, epoch_batches=5)
    there = [one.batch(0, index) for index in (0, 1, 7, 2, 7)]
    assert len({tuple(batch.ids) for batch in there}) == 4 and there[2].ids == there[4].ids
    for index, batch in zip((7, 2, 0), (there[2], there[3], there[0]), strict=True):
        again = other.batch(0, index)
        assert again.ids == batch.ids and torch.equal(again.tensors["inputs"], batch.tensors["inputs"])
        assert torch.equal(again.tensors["targets"], batch.tensors["targets"])
    assert shorter.batch(1, 2).ids == there[2].ids


@pytest.mark.parametrize("stream", STREAMS)
def test_seeds_phases_and_epochs_draw_other_sequences(stream: str) -> None:
    fixed = {"stream": stream}
    places = [(seed, phase, epoch) for seed in (0, 1) for phase in (0, 1) for epoch in (0, 1)]
    seen = [task(fixed, seed, phase=phase).batch(epoch, 0).ids for seed, phase, epoch in places]
    assert len({tuple(ids) for ids in seen}) == 8


def test_the_consecutive_stream_is_one_generators_draws() -> None:
    data, drawing = SequenceData(), generator(10005)
    expected = [draw(data, 4, drawing) for _ in range(6)]
    stream = Consecutive(data, 4, 5, phase=1)
    for number in (5, 0, 3):
        assert all(torch.equal(*pair) for pair in zip(stream(number), expected[number], strict=True))


def test_an_epoch_is_items_per_epoch_in_whole_micro_batches_or_epoch_batches() -> None:
    assert task({"items_per_epoch": 25}, micro=8).batches(0) == 4
    assert task({}, micro=32).batches(0) == 80
    assert task({"items_per_epoch": 25}, micro=8, epoch_batches=3).batches(0) == 3


@pytest.mark.parametrize("stream", STREAMS)
def test_order_names_the_sequences_that_are_trained(stream: str) -> None:
    made = task({"stream": stream}, epoch_batches=3)
    trained = [number for index in range(3) for number in made.batch(1, index).ids]
    assert made.order(1).tolist() == trained and len(set(trained)) == 12
    other = task({"stream": stream, "marker": 2}, epoch_batches=3)
    assert set(other.order(1).tolist()).isdisjoint(trained)


def test_an_id_is_of_every_token() -> None:
    inputs, targets = draw(SequenceData(), 1, generator(0))
    found = {names(inputs, targets)[0]}
    for place in range(24):
        for tokens in (inputs, targets):
            tokens[0, place] += 1
            found.add(names(inputs, targets)[0])
            tokens[0, place] -= 1
    assert len(found) == 49 and all(0 <= number < 2**63 for number in found)


def test_splits_hang_on_the_split_seed_alone() -> None:
    sizes = {"val_items": 5, "calibration_items": 3, "test_items": 7}
    one, other = task(sizes, 1), task(sizes, 2, phase=1)
    found: dict[str, Any] = {split: one.items(split) for split in ("val", "calibration", "test")}
    assert {split: len(ids) for split, ids in found.items()} == {"val": 5, "calibration": 3, "test": 7}
    assert found == {split: other.items(split) for split in found}
    assert len({number for ids in found.values() for number in ids}) == 15
    assert task({**sizes, "split_seed": 1}).items("val") != found["val"]


def test_a_split_that_is_not_there_is_refused_with_the_way_out() -> None:
    assert SequencePrediction.splits(SequencePrediction.Config()) == {"val", "test"}
    with pytest.raises(DataError, match=r"no split 'calibration'; they have test, val; set data.calibration_items"):
        task().items("calibration")
    with pytest.raises(DataError, match=r"no split 'train'; they have test, val$"):
        task().items("train")


def test_the_probe_is_the_first_of_val_in_batches() -> None:
    made = task({"val_items": 300})
    batches = made.probe(280)
    assert [len(batch.ids) for batch in batches] == [256, 24] and [batch.count for batch in batches] == [6144, 576]
    assert [number for batch in batches for number in batch.ids] == list(made.items("val"))[:280]
    assert sum(len(batch.ids) for batch in made.probe(10**6)) == 300
