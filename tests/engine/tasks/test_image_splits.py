"""Splits are disjoint, proportionate in each class, and depend on the split seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.engine.errors import DataError
from ctr.engine.tasks.image_splits import stratified

LABELS = np.repeat([0, 1, 2], [500, 301, 20])


def test_digits_are_split_60_20_20(make: Any) -> None:
    task = make({"data": {"source": "digits"}})
    sizes = {name: len(task.items(name)) for name in ("train", "val", "test")}
    assert sizes == {"train": 1079, "val": 359, "test": 359}
    everything = [i for name in sizes for i in task.items(name)]
    assert sorted(everything) == list(range(1797))


def test_a_split_does_not_change_between_versions() -> None:
    cuts = stratified(np.arange(12) % 3, {"test": 0.25, "val": 0.25}, 0)
    assert {name: index.tolist() for name, index in cuts.items()} == {
        "test": [2, 4, 6], "val": [0, 5, 7], "train": [1, 3, 8, 9, 10, 11],
    }  # fmt: skip


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=200),
    st.floats(0.01, 0.45),
    st.floats(0.01, 0.45),
    st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_each_class_is_divided_in_proportion(labels: list[int], test: float, val: float, seed: int) -> None:
    classes = np.array(labels)
    cuts = stratified(classes, {"test": test, "val": val}, seed)
    assert sorted(np.concatenate(list(cuts.values())).tolist()) == list(range(len(classes)))
    for name, share in (("test", test), ("val", val)):
        assert len(cuts[name]) == int(share * len(classes) + 0.5)
        for label, size in enumerate(np.bincount(classes)):
            assert abs((classes[cuts[name]] == label).sum() - share * size) <= 2
            assert (np.diff(cuts[name]) > 0).all()


def test_classes_keep_their_shares_to_within_one_item() -> None:
    cuts = stratified(LABELS, {"test": 0.2, "val": 0.1}, 3)
    assert np.abs(np.bincount(LABELS[cuts["test"]]) - np.array([100, 60.2, 4])).max() < 1
    assert np.abs(np.bincount(LABELS[cuts["val"]]) - np.array([50, 30.1, 2])).max() < 1


def test_the_split_seed_decides_and_a_later_cut_changes_none_before_it() -> None:
    fractions = {"test": 0.2, "val": 0.1}
    one, two = stratified(LABELS, fractions, 3), stratified(LABELS, {**fractions, "calibration": 0.1}, 3)
    assert (one["test"] == two["test"]).all() and (one["val"] == two["val"]).all()
    assert set(two["calibration"]) < set(one["train"])
    assert set(stratified(LABELS, fractions, 4)["test"]) != set(one["test"])


def test_no_class_is_favoured_at_the_cut() -> None:
    labels = np.arange(50) % 5  # 5 of 50 for val: one of each class, but 7 are not a multiple of 5
    taken = sum(np.bincount(labels[stratified(labels, {"val": 0.14}, seed)["val"]], minlength=5) for seed in range(400))
    assert np.abs(taken / 400 - 1.4).max() < 0.12  # sd 0.025


def test_splits_do_not_depend_on_the_run_seed(make: Any, npz: Any) -> None:
    one, two = make({"data": npz}, seed=1), make({"data": npz}, seed=2)
    assert all(one.items(name) == two.items(name) for name in ("train", "val", "test"))
    other = make({"data": {**npz, "split_seed": 5}})
    assert one.items("val") != other.items("val") and one.items("test") == other.items("test")


def test_test_images_of_the_source_follow_the_others_in_ids(make: Any, npz: Any) -> None:
    task = make({"data": {**npz, "calibration_fraction": 0.2}})
    assert len(task.items("val")) == 6 and len(task.items("calibration")) == 12 and len(task.items("train")) == 42
    assert list(task.items("test")) == list(range(60, 80))


def test_calibration_exists_only_where_it_is_asked_for(make: Any, npz: Any) -> None:
    with pytest.raises(
        DataError, match=r"no split 'calibration'.*have test, train, val; set data.calibration_fraction"
    ):
        make({"data": npz}).items("calibration")


def test_an_empty_split_and_a_class_that_is_held_out_whole_are_refused(make: Any, npz: Any) -> None:
    with pytest.raises(DataError, match=r"the val split is empty: 0.001 of 60 images is none; raise data.val_fraction"):
        make({"data": {**npz, "val_fraction": 0.001}})
    with pytest.raises(DataError, match=r"class 2 has 15 images outside the test images, and none is left to train on"):
        make({"data": {**npz, "val_fraction": 0.97}})
