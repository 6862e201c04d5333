"""Images by source: which reader serves which settings, and the fingerprint of what it reads; without torch."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ctr.engine.errors import DataError

from .cifar10 import cifar10_files, read_cifar10
from .image_arrays import Source, checked, hash_arrays, hash_files
from .image_config import Cifar10Data, DigitsData, FolderData, NpzData
from .image_folder import folder_files, read_folder

AnyData: TypeAlias = DigitsData | Cifar10Data | NpzData | FolderData

NPZ_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
NPZ_TROUBLE = (
    ValueError, OSError, EOFError, RuntimeError, OverflowError, MemoryError, SyntaxError, KeyError,
    zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip  # all that numpy and zipfile were seen to raise over a damaged archive


def read(data: AnyData) -> Source:
    """Read and check a source; raises `DataError` with what was expected, where, and the way out."""
    if isinstance(data, DigitsData):
        return _read_digits()
    if isinstance(data, NpzData):
        return _read_npz(Path(data.path))
    return read_cifar10(data) if isinstance(data, Cifar10Data) else read_folder(data)


def fingerprint(data: AnyData) -> dict[str, str]:
    """Return the source's name and the sha256 of what is read from it."""
    if isinstance(data, Cifar10Data):
        return {data.source: hash_files((path.name, path) for path in cifar10_files(data))}
    if isinstance(data, FolderData):
        files = folder_files(data)
        return {data.source: hash_files((path.relative_to(data.path).as_posix(), path) for path in files)}
    return {data.source: hash_arrays(read(data))}


def _read_digits() -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Source("digits", checked("digits", "all", digits.images.astype(np.uint8), digits.target), peak=16)


def _read_npz(path: Path) -> Source:
    if not path.is_file():
        text = f"{path.absolute()}: no such file; data.path must be an .npz file with {', '.join(NPZ_ARRAYS)}"
        raise DataError(f"{text}, and is seen from the folder where ctr is run")
    try:
        with path.open("rb") as file:
            zipped = zipfile.is_zipfile(file)
    except OSError as error:  # `is_zipfile` of a path answers False where the disk refuses
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not zipped:
        text = f"{path}: is not an .npz archive, or is cut short"
        raise DataError(f"{text}; save it by numpy.savez with {', '.join(NPZ_ARRAYS)}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in NPZ_ARRAYS if name not in archive.files]
            if missing:
                text = f"{path}: lacks {', '.join(missing)}; it holds {', '.join(sorted(archive.files)) or 'nothing'}"
                raise DataError(f"{text}. Save it by numpy.savez with {', '.join(NPZ_ARRAYS)}")
            arrays = {name: archive[name] for name in NPZ_ARRAYS}
    except NPZ_TROUBLE as error:
        raise DataError(f"{path}: cannot be read as an .npz archive of plain arrays: {error}") from error
    pool = checked(str(path), "train", arrays["train_images"], arrays["train_labels"])
    return Source(str(path), pool, checked(str(path), "test", arrays["test_images"], arrays["test_labels"]))
