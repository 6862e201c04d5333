"""A folder of image files, one subfolder per class, as a source of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError

from .image_arrays import Images, Source
from .image_config import FolderData

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # by name: others start foreign programs


def folder_files(data: FolderData) -> list[Path]:
    """Return every image file below the folder, class by class, training images first."""
    train, test = _layout(data)
    return [path for classes in (train, test) for files in classes.values() for path in files]


def read_folder(data: FolderData) -> Source:
    """Decode every image file into memory, as RGB squares of `size` pixels."""
    train, test = _layout(data)
    return Source(data.path, _decode(train, data.size), _decode(test, data.size) if test else None)


def _layout(data: FolderData) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    root = Path(data.path)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data.path must hold one subfolder of images per class")
    if not ((root / "train").is_dir() and (root / "test").is_dir()):
        if data.test_fraction is None:
            text = f"{root}: has no train/ and test/ subfolders; make them"
            raise DataError(f"{text}, or set data.test_fraction (0.2, say) to take the test split out of the images")
        return _classes(root), {}
    if data.test_fraction is not None:
        text = f"{root}: has a test/ subfolder, and data.test_fraction is {data.test_fraction:g}"
        raise DataError(f"{text}; remove data.test_fraction")
    train, test = _classes(root / "train"), _classes(root / "test")
    if list(train) != list(test):
        odd = sorted(set(train) ^ set(test))[0]
        text = f"{root}: class {odd} is only in {'train' if odd in train else 'test'}/"
        raise DataError(f"{text}; both must hold the same classes")
    return train, test


def _classes(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        found[path.name] = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found[path.name]:
            raise DataError(f"{path}: a class without images; known suffixes are {' '.join(sorted(SUFFIXES))}")
    if not found:
        raise DataError(f"{folder}: has no subfolders; put the images of each class into a folder named after it")
    return found


def _decode(classes: dict[str, Sequence[Path]] | dict[str, list[Path]], size: int) -> Images:
    files = [(path, label) for label, paths in enumerate(classes.values()) for path in paths]
    pixels = np.empty((len(files), size, size, 3), np.uint8)
    for row, (path, _) in enumerate(files):
        pixels[row] = _decode_one(path, size)
    return Images(pixels, np.array([label for _, label in files], np.int64))


def _decode_one(path: Path, size: int) -> NDArray[Any]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return np.asarray(ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is not an image of a known format ({', '.join(FORMATS)}); remove it") from error
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as e:
        raise DataError(f"{path}: cannot be decoded: {e}; replace or remove it") from e
