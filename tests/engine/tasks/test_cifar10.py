"""CIFAR-10 is read as torchvision reads it, but for its power to run code."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctr.engine.errors import DataError
from ctr.engine.tasks import cifar10
from ctr.engine.tasks.image_config import Cifar10Data
from ctr.engine.tasks.image_sources import fingerprint, read


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small batch files in the published form, with the checksums of these."""
    random = np.random.RandomState(0)
    (tmp_path / cifar10.FOLDER).mkdir()
    for name in cifar10.MD5:
        batch = {"data": random.randint(0, 256, (40, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(40)]}
        write_batch(monkeypatch, tmp_path / cifar10.FOLDER / name, batch)
    return tmp_path


def write_batch(monkeypatch: pytest.MonkeyPatch, path: Path, batch: Any) -> None:
    path.write_bytes(pickle.dumps(batch, protocol=2))
    monkeypatch.setitem(cifar10.MD5, path.name, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())


def test_cifar10_is_read_as_torchvision_reads_it(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    source = read(Cifar10Data(source="cifar10", root=str(cifar)))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    for part, train in ((source.pool, True), (source.test, False)):
        theirs = CIFAR10(cifar, train=train)
        assert part is not None and (part.pixels == theirs.data).all() and part.labels.tolist() == theirs.targets


def test_the_whole_numbers_of_old_pickles_are_taken_without_a_warning() -> None:
    assert cifar10._dtype("u1", 0, 0) == np.uint8


def test_the_checksums_are_those_torchvision_knows() -> None:
    from torchvision.datasets import CIFAR10

    assert list(cifar10.MD5.items()) == [tuple(row) for row in CIFAR10.train_list + CIFAR10.test_list]


def test_cifar10_is_normalised_by_the_published_numbers_unless_told_otherwise(make: Any, cifar: Path) -> None:
    task = make({"data": {"source": "cifar10", "root": str(cifar)}})
    batch = task.batch(0, 0)
    source = read(Cifar10Data(source="cifar10", root=str(cifar)))
    expected = (source.pool.pixels[batch.ids] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    np.testing.assert_allclose(batch.tensors["images"].numpy(), expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)


def test_missing_and_damaged_cifar10_files_are_named(cifar: Path) -> None:
    data = Cifar10Data(source="cifar10", root=str(cifar))
    path = cifar / cifar10.FOLDER / "data_batch_3"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")
    with pytest.raises(DataError, match=r"data_batch_3: md5 .* the published file has .* delete it and fetch"):
        read(data)
    path.unlink()
    for use in (read, fingerprint):
        with pytest.raises(DataError, match=r"data_batch_3: no such file; put .* or set data.download: true"):
            use(data)


@pytest.mark.parametrize("payload", ["exploit", "os.system", "not a batch", "other shape"])
def test_a_cifar10_file_with_the_right_checksum_still_cannot_run_code(
    cifar: Path, monkeypatch: pytest.MonkeyPatch, exploit: Any, payload: str
) -> None:
    batches = {
        "exploit": {"data": exploit(cifar / "ran"), "labels": []},
        "os.system": {"data": subprocess.run, "labels": []},
        "not a batch": {"images": 3},
        "other shape": {"data": np.zeros(7, np.uint8), "labels": [0]},
    }
    write_batch(monkeypatch, cifar / cifar10.FOLDER / "data_batch_1", batches[payload])
    with pytest.raises(DataError, match=r"data_batch_1: is not a batch of CIFAR-10"):
        read(Cifar10Data(source="cifar10", root=str(cifar)))
    assert not (cifar / "ran").exists()


def test_cifar10_is_fetched_only_when_asked_and_missing(
    cifar: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10, utils

    away = tmp_path_factory.mktemp("away")
    with tarfile.open(away / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(cifar / cifar10.FOLDER, cifar10.FOLDER)
    monkeypatch.setattr(CIFAR10, "tgz_md5", None)
    monkeypatch.setattr(utils, "download_url", lambda url, root, name, md5: shutil.copy(away / Path(url).name, root))
    root = tmp_path_factory.mktemp("root")
    with pytest.raises(DataError, match="set data.download: true"):
        fingerprint(Cifar10Data(source="cifar10", root=str(root)))
    fetched = fingerprint(Cifar10Data(source="cifar10", root=str(root), download=True))
    assert fetched == fingerprint(Cifar10Data(source="cifar10", root=str(cifar)))
    monkeypatch.setattr(CIFAR10, "url", "https://example.org/nothing")
    with pytest.raises(
        DataError, match=r"could not be fetched from https://example.org/nothing: .*; fetch and extract it by hand"
    ):
        fingerprint(Cifar10Data(source="cifar10", root=str(tmp_path_factory.mktemp("other")), download=True))
