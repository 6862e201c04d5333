"""Images as arrays, and what must hold for them wherever they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError


@dataclass(frozen=True)
class Images:
    """Pixels (items, height, width, channels) as uint8, with a label per item."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def take(self, index: NDArray[np.int64]) -> Images:
        """Return the items that `index` names."""
        return Images(self.pixels[index], self.labels[index])


@dataclass(frozen=True)
class Source:
    """All images of a source: `pool` is what is split, `test` what the source itself sets apart.

    `place` names the source in messages; `peak` is the brightest value that a pixel can have.
    """

    place: str
    pool: Images
    test: Images | None = None
    peak: int = 255

    def __post_init__(self) -> None:
        if self.test is not None and self.pool.pixels.shape[1:] != self.test.pixels.shape[1:]:
            ours, theirs = (" x ".join(map(str, part.pixels.shape[1:])) for part in (self.pool, self.test))
            text = f"{self.place}: training images are {ours} and test images are {theirs} (height x width x channels)"
            raise DataError(f"{text}; make them equal")
        self._check_classes()

    def _check_classes(self) -> None:
        if self.classes > len(self.pool.labels):
            text = (
                f"{self.place}: the highest label is {self.classes - 1}, but there are {len(self.pool.labels)} images"
            )
            raise DataError(f"{text}; number the classes 0, 1, 2, …")
        missing = np.flatnonzero(np.bincount(self.pool.labels, minlength=self.classes) == 0)
        if len(missing):
            text = f"{self.place}: no image to train on has label {missing[0]}, but labels go up to {self.classes - 1}"
            raise DataError(f"{text}; number the classes 0, 1, 2, … without gaps, each with images for training")
        if self.classes < 2:
            raise DataError(f"{self.place}: all labels are 0; a classifier needs at least two classes")

    @property
    def classes(self) -> int:
        """The number of classes: the highest label anywhere, plus one."""
        return 1 + max(int(part.labels.max()) for part in (self.pool, self.test) if part is not None)


def checked(place: str, name: str, pixels: NDArray[Any], labels: NDArray[Any]) -> Images:
    """Return two raw arrays as `Images`, or say what is wrong with them."""
    return Images(_checked_pixels(f"{place}: {name}_images", pixels), _checked_labels(place, name, labels, len(pixels)))


def _checked_pixels(what: str, pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype != np.uint8:
        holds = " that are not all finite" if pixels.dtype.kind == "f" and not np.isfinite(pixels).all() else ""
        raise DataError(f"{what} holds {pixels.dtype} values{holds}; it must be uint8, 0 (black) to 255 (brightest)")
    if pixels.ndim not in (3, 4):
        raise DataError(f"{what} has shape {pixels.shape}; it must be N x H x W, or N x H x W x C")
    if not pixels.size:
        raise DataError(f"{what} has shape {pixels.shape}, which is empty")
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[3] not in (1, 2, 3, 4):
        raise DataError(f"{what} has shape {pixels.shape}, channels first; store it as N x H x W x C")
    return np.ascontiguousarray(pixels if pixels.ndim == 4 else pixels[..., None])


def _checked_labels(place: str, name: str, labels: NDArray[Any], images: int) -> NDArray[np.int64]:
    what = f"{place}: {name}_labels"
    if labels.dtype.kind not in "iu":
        raise DataError(f"{what} holds {labels.dtype} values; it must be whole numbers, 0, 1, 2, …")
    if labels.shape not in ((images,), (images, 1)):
        text = f"{what} has shape {labels.shape}, {name}_images holds {images} images"
        raise DataError(f"{text}; give one label per image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= 2**31:
        raise DataError(f"{what} holds the label {low if low < 0 else high}; number the classes 0, 1, 2, …")
    return labels.reshape(-1).astype(np.int64)


def hash_arrays(source: Source) -> str:
    """Return the sha256 of a source's pixels and labels, with their shapes."""
    sha = hashlib.sha256()
    for part in (source.pool, source.test):
        for array in () if part is None else (part.pixels, part.labels):
            sha.update(f"{array.dtype.str}{array.shape}".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def hash_files(files: Iterable[tuple[str, Path]]) -> str:
    """Return the sha256 of named files: names, lengths and bytes."""
    sha = hashlib.sha256()
    for name, path in files:
        content = read_bytes(path)
        sha.update(f"{len(name.encode())}:{len(content)}:{name}".encode())
        sha.update(content)
    return sha.hexdigest()


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes; what the operating system says against it becomes a `DataError`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
