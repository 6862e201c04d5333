"""How images are divided into train, validation, calibration and test: in equal parts of each class, by a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError
from ctr.engine.seeding import stream

from .image_arrays import Images, Source
from .image_config import Data, MeanStd

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The images of one split; `ids` count through the source's images, its own test images last."""

    images: Images
    ids: Index


def divide(source: Source, data: Data) -> dict[str, Rows]:
    """Return the splits of a source by name; calibration is left out where its fraction is 0."""
    cuts = stratified(source.pool.labels, data.fractions(), data.split_seed)
    rows = {name: Rows(source.pool.take(index), index) for name, index in cuts.items()}
    if source.test is not None:
        first = len(source.pool.labels)
        rows["test"] = Rows(source.test, np.arange(first, first + len(source.test.labels)))
    for name, share in data.fractions().items():
        if share and not len(rows[name].ids):
            text = f"{source.place}: the {name} split is empty: {share:g} of {len(source.pool.labels)} images is none"
            raise DataError(f"{text}; raise data.{name}_fraction or give more images")
    _check_classes(source, rows["train"])
    return {name: part for name, part in rows.items() if len(part.ids)}


def stratified(labels: Index, fractions: Mapping[str, float], seed: int) -> dict[str, Index]:
    """Cut items into the named fractions and `train`, each class in proportion to within one item.

    Item r of a class of n, in random order, stands at (r + 1/2) / n; all items in the order of their places are cut
    at the fractions. A fraction cut later changes none cut earlier. Indices ascend within a split.
    """
    random = np.random.RandomState(stream(seed, "split") & 0xFFFFFFFF)  # its stream is frozen, a Generator's is not
    shuffled = random.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    sizes = np.bincount(labels)
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.empty(len(labels))
    place[by_class] = (rank + 0.5) / np.repeat(sizes, sizes)
    order = shuffled[np.argsort(place[shuffled], kind="stable")]
    cuts: dict[str, Index] = {}
    start = 0
    for name, share in fractions.items():
        stop = start + int(share * len(labels) + 0.5)
        cuts[name] = np.sort(order[start:stop]).astype(np.int64)
        start = stop
    return {**cuts, "train": np.sort(order[start:]).astype(np.int64)}


def _check_classes(source: Source, train: Rows) -> None:
    left = np.bincount(train.images.labels, minlength=source.classes)
    if not left.all():
        lost = int(np.flatnonzero(left == 0)[0])
        given = int((source.pool.labels == lost).sum())
        text = f"{source.place}: class {lost} has {given} images outside the test images, and none is left to train on"
        raise DataError(f"{text}; give more of them or lower the split fractions")


def mean_std(data: Data, source: Source, train: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation per channel, in [0, 1]: as given, or exactly those of the training split."""
    channels = train.images.pixels.shape[-1]
    if isinstance(data.normalise, MeanStd):
        if len(data.normalise.mean) != channels:
            text = (
                f"data.normalise has {len(data.normalise.mean)} channels, the images of {source.place} have {channels}"
            )
            raise DataError(f"{text}; give {channels} numbers for mean and for std, or `normalise: auto`")
        return np.array(data.normalise.mean), np.array(data.normalise.std)
    values = np.arange(256) / source.peak
    counts = np.stack([np.bincount(train.images.pixels[..., c].ravel(), minlength=256) for c in range(channels)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    if not std.all():
        text = f"{source.place}: channel {int(np.flatnonzero(std == 0)[0])} has the same value in every training pixel"
        raise DataError(f"{text}; check the images, or give data.normalise {{mean, std}}")
    return mean, std
