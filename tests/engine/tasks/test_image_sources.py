"""Archives and digits are read as they are; what is wrong with one is named; no torch is needed to read them."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctr.engine.errors import DataError
from ctr.engine.tasks.image_classification import ImageClassification
from ctr.engine.tasks.image_config import NpzData
from ctr.engine.tasks.image_sources import fingerprint, read

SUBSET = Path(__file__).parents[4] / "shared" / "data" / "cifar10-subset" / "cifar10_subset.npz"


def test_the_module_of_the_task_loads_no_torch_and_neither_do_fingerprints() -> None:
    code = (
        "import sys\n"
        "from ctr.engine.tasks.image_classification import ImageClassification as Task\n"
        "print(Task.fingerprints(Task.Config.model_validate({'data': {'source': 'digits'}})))\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "digits" in done.stdout


def test_digits_are_scikit_learns_without_change() -> None:
    from sklearn.datasets import load_digits

    source = read(ImageClassification.Config.model_validate({"data": {"source": "digits"}}).data)
    digits = load_digits()
    assert source.pool.pixels.shape == (1797, 8, 8, 1) and source.peak == 16 and source.classes == 10
    assert (source.pool.pixels[..., 0] == digits.images).all() and (source.pool.labels == digits.target).all()


def test_the_digits_fingerprint_is_pinned() -> None:
    data = ImageClassification.Config.model_validate({"data": {"source": "digits"}}).data
    assert fingerprint(data) == {"digits": "37d1610da92ad92a78def3c678fbe623977e7199b2facaf377b5d7a01f247022"}


def test_an_npz_archive_is_read_whole(npz: Any, arrays: Any) -> None:
    source = read(NpzData(**npz))
    assert (source.pool.pixels == arrays["train_images"]).all() and source.classes == 4
    assert source.test is not None and (source.test.labels == arrays["test_labels"]).all()


def test_grey_images_and_labels_in_a_column_are_taken(tmp_path: Path, arrays: Any) -> None:
    grey = {name: a[..., 0] if "images" in name else a[:, None].astype(np.uint8) for name, a in arrays.items()}
    np.savez_compressed(tmp_path / "grey.npz", **grey)
    source = read(NpzData(source="npz", path=str(tmp_path / "grey.npz")))
    assert source.pool.pixels.shape == (60, 6, 5, 1) and source.pool.labels.shape == (60,)
    assert source.pool.labels.dtype == np.int64


def test_a_fingerprint_follows_the_content_and_not_the_file(tmp_path: Path, npz: Any, arrays: Any) -> None:
    before = fingerprint(NpzData(**npz))
    np.savez_compressed(tmp_path / "moved.npz", **arrays)
    assert fingerprint(NpzData(source="npz", path=str(tmp_path / "moved.npz"))) == before
    arrays["test_labels"][3] = 1
    np.savez(tmp_path / "moved.npz", **arrays)
    assert fingerprint(NpzData(source="npz", path=str(tmp_path / "moved.npz"))) != before


def test_the_cifar10_subset_trains(make: Any) -> None:
    if not SUBSET.is_file():
        pytest.skip("the CIFAR-10 subset is not on this machine")
    task = make({"data": {"source": "npz", "path": str(SUBSET)}, "augment": {"crop": 4, "flip": True}}, micro_batch=128)
    assert [len(task.items(name)) for name in ("train", "val", "test")] == [3424, 381, 761]
    batch = task.batch(0, 0)
    assert batch.tensors["images"].shape == (128, 3, 32, 32) and batch.tensors["labels"].max() == 9


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {key: array for key, array in arrays.items() if key != name}


def with_item(index: int, value: int) -> Callable[[Any], Any]:
    def put(labels: Any) -> Any:
        labels = labels.copy()
        labels[index] = value
        return labels

    return put


NOT_FINITE = np.full((60, 6, 5, 3), np.nan, np.float32)
BAD_ARCHIVES: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "missing array": (without("test_labels"), r"lacks test_labels; it holds test_images, train_images, train_labels"),
    "no array": (lambda arrays: {}, r"lacks train_images, train_labels, test_images, test_labels; it holds nothing"),
    "float images": (changed("train_images", lambda a: a / 255), r"train_images holds float64 .* must be uint8"),
    "nan images": (changed("train_images", lambda a: NOT_FINITE), r"float32 values that are not all finite"),
    "int images": (changed("test_images", lambda a: a.astype(np.int64)), r"test_images holds int64 .* must be uint8"),
    "flat images": (changed("train_images", lambda a: a.reshape(60, -1)), r"shape \(60, 90\); it must be N x H x W"),
    "channels first": (changed("train_images", lambda a: a.transpose(0, 3, 1, 2)), r"\(60, 3, 6, 5\), channels first"),
    "no images": (changed("train_images", lambda a: a[:0]), r"shape \(0, 6, 5, 3\), which is empty"),
    "too few labels": (changed("train_labels", lambda a: a[:-1]), r"train_labels has shape \(59,\), .* 60 images"),
    "one-hot labels": (changed("train_labels", lambda a: np.eye(4, dtype=int)[a]), r"shape \(60, 4\).*one label per"),
    "float labels": (changed("train_labels", lambda a: a * 1.0), r"train_labels holds float64 .* whole numbers"),
    "text labels": (changed("test_labels", lambda a: a.astype(str)), r"test_labels holds <U21 .* whole numbers"),
    "true or false": (changed("train_labels", lambda a: a > 1), r"train_labels holds bool .* whole numbers"),
    "negative label": (changed("train_labels", with_item(5, -1)), r"holds the label -1; number the classes 0, 1, 2"),
    "huge label": (changed("train_labels", with_item(5, 2**40)), r"holds the label 1099511627776; number the classes"),
    "label over items": (changed("train_labels", with_item(5, 999)), r"highest label is 999, but there are 60 images"),
    "empty class": (changed("train_labels", lambda a: a + (a > 1)), r"no image to train on has label 2, .* go up to 4"),
    "class only in test": (changed("test_labels", with_item(0, 4)), r"no image to train on has label 4"),
    "one class": (lambda a: {k: v * 0 if "labels" in k else v for k, v in a.items()}, r"at least two classes"),
    "other size": (changed("test_images", lambda a: a[:, :5]), r"images are 6 x 5 x 3 and test images are 5 x 5 x 3"),
    "object array": (changed("train_labels", lambda a: a.astype(object)), r"cannot be read .* Object arrays cannot be"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_an_archive_that_is_wrong_is_refused_by_name(tmp_path: Path, arrays: Any, case: str) -> None:
    spoil, message = BAD_ARCHIVES[case]
    np.savez(tmp_path / "bad.npz", **spoil(arrays))
    data = NpzData(source="npz", path=str(tmp_path / "bad.npz"))
    for use in (read, fingerprint):
        with pytest.raises(DataError, match=message) as raised:
            use(data)
        assert str(raised.value).startswith(str(tmp_path / "bad.npz"))


def test_files_that_are_no_archive_are_refused(tmp_path: Path, npz: Any, exploit: Any) -> None:
    whole = Path(npz["path"]).read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 0xFF
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    header = whole.replace(b"{'descr'", b"{(((((((")
    assert header != whole and len(header) == len(whole)
    contents = {
        "truncated": whole[:-500], "flipped": bytes(flipped), "empty": b"", "text": b"images", "header": header,
        "single": single.read_bytes(), "pickle": pickle.dumps(exploit(tmp_path / "ran")),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(
            DataError, match=r"cannot be read as an .npz archive|is not an .npz archive, or is cut short"
        ):
            read(NpzData(source="npz", path=str(tmp_path / f"{name}.npz")))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DataError, match=r"gone.npz: no such file; data.path must be an .npz file with train_images"):
        read(NpzData(source="npz", path="gone.npz"))


def test_the_exploit_of_these_tests_works(tmp_path: Path, exploit: Any) -> None:
    pickle.loads(pickle.dumps(exploit(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()
