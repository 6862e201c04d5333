"""CIFAR-10 as its authors publish it, read without running what its pickle files might hold."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ctr.engine.errors import DataError

from .image_arrays import Images, Source, checked, read_bytes
from .image_config import Cifar10Data

FOLDER = "cifar-10-batches-py"
TEST_FILE = "test_batch"
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    TEST_FILE: "40351d587109b95175f43aff81a1287e",
}


def cifar10_files(data: Cifar10Data) -> list[Path]:
    """Return the batch files, fetched first where `download` asks for it; a missing one is a `DataError`."""
    files = [Path(data.root) / FOLDER / name for name in MD5]
    if data.download and not all(path.is_file() for path in files):
        _download(Path(data.root))
    for path in files:
        if not path.is_file():
            text = f"{path}: no such file; put the extracted {FOLDER} of CIFAR-10 (python version) into {data.root}"
            raise DataError(f"{text}, or set data.download: true")
    return files


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR10, utils  # loads torch, in the one case that needs it

    try:
        utils.download_and_extract_archive(CIFAR10.url, root, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError) as error:
        text = f"{root}: CIFAR-10 could not be fetched from {CIFAR10.url}: {error}"
        raise DataError(f"{text}; fetch and extract it by hand into {root}, and set data.download: false") from error


def read_cifar10(data: Cifar10Data) -> Source:
    """Read the six batch files; one whose bytes are not the published ones is refused."""
    parts = {path.name: _read_batch(path) for path in cifar10_files(data)}
    train = [part for name, part in parts.items() if name != TEST_FILE]
    pool = Images(np.concatenate([part.pixels for part in train]), np.concatenate([part.labels for part in train]))
    return Source(str(Path(data.root) / FOLDER), pool, parts[TEST_FILE])


def _read_batch(path: Path) -> Images:
    content = read_bytes(path)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != MD5[path.name]:
        text = f"{path}: md5 {digest}, the published file has {MD5[path.name]}; it is damaged or another file"
        raise DataError(f"{text}: delete it and fetch CIFAR-10 again, or give your own images as `source: npz`")
    try:
        batch = _Plain(io.BytesIO(content), encoding="latin1").load()
        pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = np.asarray(batch["labels"])
    except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError) as error:
        raise DataError(f"{path}: is not a batch of CIFAR-10: {error}") from error
    return checked(str(path), path.name, pixels, labels)


class _Plain(pickle.Unpickler):
    """A reader of pickled arrays that can name nothing else, so that no file can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        if (module, name) == ("_codecs", "encode"):
            return _encode
        raise pickle.UnpicklingError(f"it names {module}.{name}, which batches of CIFAR-10 do not hold")


def _empty_array(kind: type, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.ndarray.__new__(np.ndarray, shape, dtype)


def _dtype(name: str, align: int, copy: int) -> np.dtype[Any]:
    return np.dtype(name, align=bool(align), copy=bool(copy))  # numpy 2.4.0 to 2.4.4 warn of integers


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)
