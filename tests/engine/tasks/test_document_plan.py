"""The arithmetic of a stream, against a plain telling of it that walks document by document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.engine.tasks.document_plan import StreamPlan, queue


def plan(targets: list[int], slots: int = 2, chunk: int = 48, window: int = 2048, **more: object) -> StreamPlan:
    return StreamPlan(np.array(targets), "given", slots, chunk, window, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 47, 48, 49, 2048, 2049, 5000])
def test_chunks_cover_every_target_once_from_a_window_that_ends_with_them(count: int) -> None:
    one = plan([count], slots=1)
    covered: list[int] = []
    for step in range(one.length(0)):
        event = one.event(0, step)
        start, first, end = int(event.start[0]), int(event.first[0]), int(event.end[0])
        covered += range(first, end)
        assert (first, end) == (48 * step, min(48 * step + 48, count))
        assert start == max(0, end - 2048) and start <= first
        assert bool(event.trains[0]) == (end < count)
    assert covered == list(range(count)) and one.rows == -(-count // 48)


def test_a_document_within_a_chunk_is_scored_and_never_trained_on() -> None:
    event = plan([48, 3, 49], slots=3).event(0, 0)
    assert event.trains.tolist() == [False, False, True]
    later = plan([48, 3, 49], slots=3).event(0, 1)
    assert later.slots.tolist() == [2] and not later.trains.any()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=17),
    st.integers(1, 5),
    st.integers(1, 20),
    st.integers(0, 30),
    st.sampled_from(["given", "longest_first", "shortest_first"]),
)
def test_a_plan_is_what_walking_group_by_group_gives(
    targets: list[int], slots: int, chunk: int, more: int, order: str
) -> None:
    found = StreamPlan(np.array(targets), order, slots, chunk, chunk + more)
    left = sorted(range(len(targets)), key=lambda i: {"given": i, "longest_first": -targets[i]}.get(order, targets[i]))
    steps = 0
    for number in range(0, len(left), slots):
        group = left[number : number + slots]
        for k in range(max(-(-targets[d] // chunk) for d in group)):
            event = found.event(0, steps)
            present = [d for d in group if targets[d] > k * chunk]
            assert event.documents.tolist() == present and event.slots.tolist() == [group.index(d) for d in present]
            assert event.group == number // slots and event.chunk == k
            assert event.end.tolist() == [min((k + 1) * chunk, targets[d]) for d in present]
            steps += 1
    assert found.length(0) == steps


def test_sorting_keeps_the_order_given_among_equals() -> None:
    lengths = np.array([5, 7, 5, 7, 1])
    assert queue(lengths, "longest_first").tolist() == [1, 3, 0, 2, 4]
    assert queue(lengths, "shortest_first").tolist() == [4, 0, 2, 1, 3]
    assert queue(lengths, "given").tolist() == [0, 1, 2, 3, 4]


def test_parts_end_with_the_group_in_hand() -> None:
    one = plan([10] * 2000, slots=64, parts=(666, 1333))
    assert one.bounds == [0, 11, 21, 32]  # 704 and 1344 documents, then the rest
    assert len(one.documents(1)) == 704 and len(one.documents(3)) == 2000
    assert one.length(0) + one.length(1) + one.length(2) == 32
    assert one.event(1, 0).group == 11 and one.event(2, 0).documents[0] == 1344


@pytest.mark.parametrize("count", [1, 8, 24, 25, 60])
def test_without_adapters_the_very_same_windows_are_scored(count: int) -> None:
    one = plan([count], slots=1, chunk=8, window=24)
    spans = {}
    for start, first, end in one.unadapted(0):
        for target in range(first, end):
            spans[target] = start, target
    for step in range(one.length(0)):
        event = one.event(0, step)
        for target in range(int(event.first[0]), int(event.end[0])):
            # a causal model reads from the window's start to the target: where that is the same, so is the score
            assert spans.pop(target) == (int(event.start[0]), target)
    assert not spans


def test_pieces_cover_documents_once() -> None:
    one = plan([50, 7], slots=2, chunk=8, window=24)
    assert one.pieces(np.array([0, 1])) == [(0, 0, 24), (0, 24, 48), (0, 48, 50), (1, 0, 7)]
