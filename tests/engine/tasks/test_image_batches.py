"""Batches are pure in their position, whatever was asked before, and augmentation is that of one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ctr.engine.seeding import torch_generator
from ctr.engine.tasks.images import draws

DIGITS = {"data": {"source": "digits"}}
POSITIONS = [(0, 0), (1, 3), (0, 2), (2, 1), (1, 0), (0, 0)]


def test_a_pass_trains_every_training_image_once(make: Any) -> None:
    task = make(DIGITS, micro_batch=100)
    assert task.batches(0) == 11
    batches = [task.batch(0, i) for i in range(11)]
    assert [batch.count for batch in batches] == [100] * 10 + [79]
    ids = [i for batch in batches for i in batch.ids]
    assert sorted(ids) == list(task.items("train"))
    assert ids == task.order(0).tolist()
    assert ids != sorted(ids)


def test_the_order_is_randperm_of_seed_phase_and_pass(make: Any) -> None:
    train = np.array(make(DIGITS).items("train"))
    expected = train[torch.randperm(len(train), generator=torch_generator(5, "data", 2, 1)).numpy()]
    assert (make(DIGITS, seed=5, phase=2).order(1) == expected).all()


def test_orders_differ_by_seed_phase_and_pass(make: Any) -> None:
    orders = [make(DIGITS, seed=s, phase=p).order(e).tobytes() for s in (1, 2) for p in (0, 1) for e in (0, 1)]
    assert len(set(orders)) == 8


@pytest.mark.parametrize("augment", [None, {"crop": 2, "flip": True}])
def test_a_batch_does_not_depend_on_what_was_asked_before(make: Any, npz: Any, augment: Any) -> None:
    config = {"data": npz, "augment": augment}
    used = make(config)
    for position in POSITIONS:
        fresh, again = make(config).batch(*position), used.batch(*position)
        assert fresh.ids == again.ids and fresh.count == again.count == len(again.ids)
        assert all(torch.equal(fresh.tensors[name], again.tensors[name]) for name in ("images", "labels"))


def test_batches_draw_nothing_from_the_global_generators(make: Any, npz: Any) -> None:
    task = make({"data": npz, "augment": {"crop": 2, "flip": True}})
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    task.batch(0, 0)
    task.batch(1, 1)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tobytes()


def test_labels_and_ids_belong_to_the_images(make: Any, npz: Any, arrays: Any) -> None:
    task = make({"data": {**npz, "normalise": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}}})
    batch = task.batch(1, 2)
    expected = arrays["train_images"][batch.ids].transpose(0, 3, 1, 2).astype(np.float32) / 255
    np.testing.assert_allclose(batch.tensors["images"].numpy(), expected, rtol=1e-6)
    assert batch.tensors["labels"].tolist() == arrays["train_labels"][batch.ids].tolist()


@pytest.mark.parametrize("source", ["npz", "digits"])
def test_auto_normalises_the_training_split_to_mean_0_and_deviation_1(make: Any, npz: Any, source: str) -> None:
    task = make({"data": npz} if source == "npz" else DIGITS, micro_batch=2000)
    images = task.batch(0, 0).tensors["images"].double()
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert (images.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-6


# ---- augmentation ----------------------------------------------------------------------------------------------


def one_at_a_time(pixels: Any, top: int, left: int, mirrored: bool, crop: int, mean: Any, std: Any) -> Any:
    """Border by black, cut, mirror, normalise: the long way, in numpy, for one image of height x width x channels."""
    height, width, channels = pixels.shape
    bordered = np.zeros((height + 2 * crop, width + 2 * crop, channels))
    bordered[crop : crop + height, crop : crop + width] = pixels
    cut = bordered[top : top + height, left : left + width]
    if mirrored:
        cut = cut[:, ::-1]
    return ((cut / 255 - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize(("crop", "flip"), [(0, True), (2, False), (1, True), (4, True)])
def test_augmentation_equals_that_of_one_image_at_a_time(
    make: Any, npz: Any, arrays: Any, crop: int, flip: bool
) -> None:
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    config = {"data": {**npz, "normalise": {"mean": mean, "std": std}}, "augment": {"crop": crop, "flip": flip}}
    task = make(config, seed=9, phase=1)
    train = list(task.items("train"))
    top, left, mirrored = draws(len(train), crop, 9, 1, 2)
    for index in range(task.batches(2)):
        batch = task.batch(2, index)
        rows = [train.index(i) for i in batch.ids]
        expected = [
            one_at_a_time(
                arrays["train_images"][i], int(top[r]), int(left[r]), flip and bool(mirrored[r]), crop, mean, std
            )
            for i, r in zip(batch.ids, rows, strict=True)
        ]
        np.testing.assert_allclose(batch.tensors["images"].numpy(), np.stack(expected), rtol=1e-5, atol=1e-5)


def test_augmentation_does_not_depend_on_the_size_of_a_batch(make: Any, npz: Any) -> None:
    config = {"data": npz, "augment": {"crop": 2, "flip": True}}
    small, large = make(config, micro_batch=7), make(config, micro_batch=1000)
    parts = torch.cat([small.batch(1, i).tensors["images"] for i in range(small.batches(1))])
    assert torch.equal(parts, large.batch(1, 0).tensors["images"])


def test_crops_are_uniform_and_half_of_the_images_are_mirrored() -> None:
    top, left, mirrored = draws(90_000, 1, 3, 0, 0)
    for corner in (top, left):
        counts = torch.bincount(corner)
        assert counts.shape == (3,) and (counts / 90_000 - 1 / 3).abs().max() < 0.008  # sd 0.0016
    assert (mirrored.float().mean() - 0.5).abs() < 0.008
    correlation = torch.corrcoef(torch.stack([top, left, mirrored]).double()) - torch.eye(3)
    assert correlation.abs().max() < 0.02  # sd 0.0033


def test_switching_flips_on_changes_no_crop_and_passes_differ() -> None:
    assert not torch.equal(draws(100, 4, 1, 0, 0)[0], draws(100, 4, 1, 0, 1)[0])
    assert not torch.equal(draws(100, 4, 1, 0, 0)[0], draws(100, 4, 1, 1, 0)[0])
    assert torch.equal(draws(100, 4, 1, 0, 0)[2], draws(100, 0, 1, 0, 0)[2])


def test_the_highest_draw_stays_inside_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    highest = torch.tensor(1 - 2**-24)
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: highest.expand(*shape))
    for crop in range(257):
        top, left, _ = draws(3, crop, 1, 0, 0)
        assert top.max() == left.max() == 2 * crop


# ---- epochs of a given number of micro-batches -----------------------------------------------------------------


def test_epoch_batches_walk_through_one_pass_after_another(make: Any, npz: Any) -> None:
    whole, cut = make({"data": npz}), make({"data": npz}, epoch_batches=3)
    assert whole.batches(0) == 4 and cut.batches(0) == 3  # 54 images: 16 + 16 + 16 + 6
    walked = [cut.batch(m // 3, m % 3).ids for m in range(12)]
    assert walked == [whole.batch(m // 4, m % 4).ids for m in range(12)]
    assert [len(ids) for ids in walked] == [16, 16, 16, 6] * 3


@pytest.mark.parametrize("epoch_batches", [1, 3, 4, 5, 9, None])
def test_order_lists_the_ids_of_an_epochs_batches(make: Any, npz: Any, epoch_batches: int | None) -> None:
    task = make({"data": npz}, epoch_batches=epoch_batches)
    for epoch in range(4):
        ids = [i for index in range(task.batches(epoch)) for i in task.batch(epoch, index).ids]
        assert task.order(epoch).tolist() == ids


def test_a_phase_begins_its_own_count_of_passes(make: Any, npz: Any) -> None:
    from ctr.engine.task import Phase

    task = make({"data": npz})
    first = task.batch(0, 0).ids
    task.begin(Phase("again", 1, 2, 16))
    assert task.batch(0, 0).ids != first
    assert task.batch(0, 0).ids == make({"data": npz}, phase=1).batch(0, 0).ids
