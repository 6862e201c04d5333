"""Folders of image files: what is read from them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ctr.engine.errors import DataError
from ctr.engine.tasks.image_config import FolderData
from ctr.engine.tasks.image_sources import fingerprint, read


def fill(folder: Path, classes: dict[str, int], mode: str = "RGB") -> None:
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(0, 256, (9, 13, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


def test_a_folder_with_train_and_test_is_read_class_by_class(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 3, "dog": 2})
    fill(tmp_path / "test", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    source = read(FolderData(source="folder", path=str(tmp_path), size=9))
    assert source.pool.labels.tolist() == [0, 0, 0, 1, 1] and source.pool.pixels.shape == (5, 9, 9, 3)
    with Image.open(tmp_path / "train" / "dog" / "0.png") as image:
        assert (source.pool.pixels[3] == np.asarray(image)[:, 2:11]).all()
    assert source.test is not None and source.test.labels.tolist() == [0, 1]


def test_the_middle_square_of_a_folders_image_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 1, "b": 1})
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    Image.fromarray(wide).save(tmp_path / "a" / "0.png")
    source = read(FolderData(source="folder", path=str(tmp_path), size=8, test_fraction=0.2))
    assert (source.pool.pixels[0] == 200).all()


def test_one_folder_is_split_and_grey_files_become_rgb(make: Any, tmp_path: Path) -> None:
    fill(tmp_path / "all", {"a": 20, "b": 20}, mode="L")
    data = {"source": "folder", "path": str(tmp_path / "all"), "size": 8, "test_fraction": 0.2}
    task = make({"data": data})
    assert [len(task.items(name)) for name in ("train", "val", "test")] == [28, 4, 8]
    assert task.batch(0, 0).tensors["images"].shape == (16, 3, 8, 8)


def test_a_folders_fingerprint_follows_names_and_bytes(tmp_path: Path) -> None:
    fill(tmp_path / "x", {"a": 2, "b": 2})
    data = FolderData(source="folder", path=str(tmp_path / "x"), size=8, test_fraction=0.2)
    first = fingerprint(data)
    (tmp_path / "x").rename(tmp_path / "y")
    assert fingerprint(data.model_copy(update={"path": str(tmp_path / "y")})) == first
    (tmp_path / "y" / "a" / "1.png").rename(tmp_path / "y" / "a" / "7.png")
    assert fingerprint(data.model_copy(update={"path": str(tmp_path / "y")})) != first


def test_folders_that_are_wrong_are_refused_by_name(tmp_path: Path) -> None:
    def refused(name: str, message: str, test_fraction: float | None = 0.2) -> None:
        data = FolderData(source="folder", path=str(tmp_path / name), size=8, test_fraction=test_fraction)
        with pytest.raises(DataError, match=message):
            read(data)

    refused("gone", r"gone: no such folder")
    fill(tmp_path / "flat", {"a": 2, "b": 2})
    refused("flat", r"has no train/ and test/ subfolders; make them, or set data.test_fraction", None)
    fill(tmp_path / "both" / "train", {"a": 2, "b": 2})
    fill(tmp_path / "both" / "test", {"a": 2})
    refused("both", r"has a test/ subfolder, and data.test_fraction is 0.2; remove data.test_fraction")
    refused("both", r"class b is only in train/; both must hold the same classes", None)
    (tmp_path / "bare").mkdir()
    refused("bare", r"bare: has no subfolders")
    (tmp_path / "bare" / "a").mkdir()
    refused("bare", r"bare/a: a class without images; known suffixes are")
    broken = tmp_path / "flat" / "a" / "0.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-60])
    refused("flat", r"a/0.png: cannot be decoded")
    broken.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    refused("flat", r"a/0.png: is not an image of a known format")
