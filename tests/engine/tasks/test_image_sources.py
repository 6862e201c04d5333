"""Every source reads what it says, names what is wrong with it, and no file it reads can run code."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ctr.engine.errors import DataError
from ctr.engine.tasks import cifar10
from ctr.engine.tasks.image_classification import ImageClassification
from ctr.engine.tasks.image_config import Cifar10Data, FolderData, NpzData
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


# ---- digits ----------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_without_change() -> None:
    from sklearn.datasets import load_digits

    source = read(ImageClassification.Config.model_validate({"data": {"source": "digits"}}).data)
    digits = load_digits()
    assert source.pool.pixels.shape == (1797, 8, 8, 1) and source.peak == 16 and source.classes == 10
    assert (source.pool.pixels[..., 0] == digits.images).all() and (source.pool.labels == digits.target).all()


def test_the_digits_fingerprint_is_pinned() -> None:
    data = ImageClassification.Config.model_validate({"data": {"source": "digits"}}).data
    assert fingerprint(data) == {"digits": "37d1610da92ad92a78def3c678fbe623977e7199b2facaf377b5d7a01f247022"}


# ---- npz -------------------------------------------------------------------------------------------------------


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


class Exploit:
    """An object whose unpickling would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_files_that_are_no_archive_are_refused(tmp_path: Path, npz: Any) -> None:
    whole = Path(npz["path"]).read_bytes()
    flipped = bytearray(whole)
    flipped[2000] ^= 0xFF
    single = tmp_path / "single.npy"
    np.save(single, np.zeros(3))
    header = whole.replace(b"{'descr'", b"{(((((((")
    assert header != whole and len(header) == len(whole)
    contents = {
        "truncated": whole[:-500], "flipped": bytes(flipped), "empty": b"", "text": b"images", "header": header,
        "single": single.read_bytes(), "pickle": pickle.dumps(Exploit(tmp_path / "ran")),
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


def test_the_exploit_of_these_tests_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


# ---- CIFAR-10 --------------------------------------------------------------------------------------------------


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
    cifar: Path, monkeypatch: pytest.MonkeyPatch, payload: str
) -> None:
    batches = {
        "exploit": {"data": Exploit(cifar / "ran"), "labels": []},
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


# ---- folder ----------------------------------------------------------------------------------------------------


def fill(folder: Path, classes: dict[str, int], mode: str = "RGB") -> None:
    random = np.random.RandomState(0)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.randint(0, 256, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")


def test_a_folder_with_train_and_test_is_read_class_by_class(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 3, "dog": 2})
    fill(tmp_path / "test", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    source = read(FolderData(source="folder", path=str(tmp_path), size=9))
    assert source.pool.labels.tolist() == [0, 0, 0, 1, 1] and source.pool.pixels.shape == (5, 9, 9, 3)
    middle = np.asarray(Image.open(tmp_path / "train" / "cat" / "0.png"))[:, 1:10]
    assert np.abs(source.pool.pixels[0].astype(int) - middle).max() <= 255
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


# ---- settings --------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "unknown source": ({"data": {"source": "mnist"}}, r"does not match any of the expected tags: 'digits', 'cifar10'"),
    "no source": ({"data": {}}, r"Unable to extract tag using discriminator 'source'"),
    "nothing left": ({"data": {"source": "digits", "val_fraction": 0.8}}, r"fractions add up to 1; they must leave"),
    "no validation": ({"data": {"source": "digits", "val_fraction": 0.0}}, r"greater than 0"),
    "nan": ({"data": {"source": "digits", "calibration_fraction": float("nan")}}, r"finite number"),
    "deviation 0": ({"data": {"source": "digits", "normalise": {"mean": [0], "std": [0]}}}, r"greater than 0"),
    "unequal": ({"data": {"source": "digits", "normalise": {"mean": [0], "std": [1, 1]}}}, r"mean has 1 channels and"),
    "normalise": ({"data": {"source": "digits", "normalise": "none"}}, r"Input should be 'auto'"),
    "text for number": ({"data": {"source": "digits"}, "eval_batch": "256"}, r"valid integer"),
    "truth for number": ({"data": {"source": "digits"}, "augment": {"crop": True}}, r"valid integer"),
    "unknown key": ({"data": {"source": "digits", "roots": "x"}}, r"Extra inputs are not permitted"),
    "a cifar10 key": ({"data": {"source": "npz", "path": "x", "download": True}}, r"Extra inputs are not permitted"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_settings_that_are_wrong_are_refused(case: str) -> None:
    settings, message = BAD_SETTINGS[case]
    with pytest.raises(ValidationError, match=message) as raised:
        ImageClassification.Config.model_validate(settings)
    assert raised.value.error_count() == 1


@pytest.mark.parametrize("source", [{"source": "digits"}, {"source": "cifar10", "root": "x"}])
def test_settings_survive_being_written_out(source: Any) -> None:
    config = ImageClassification.Config.model_validate({"data": source, "augment": {"crop": 4}})
    assert ImageClassification.Config.model_validate(config.model_dump()) == config


def test_a_number_of_means_other_than_the_channels_is_refused(make: Any) -> None:
    fixed = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(DataError, match=r"data.normalise has 3 channels, the images of digits have 1; give 1 numbers"):
        make({"data": {"source": "digits", "normalise": fixed}})


def test_a_channel_without_contrast_needs_numbers_of_its_own(make: Any, tmp_path: Path, arrays: Any) -> None:
    arrays["train_images"][..., 1] = 7
    np.savez(tmp_path / "flat.npz", **arrays)
    with pytest.raises(DataError, match=r"channel 1 has the same value in every training pixel.*give data.normalise"):
        make({"data": {"source": "npz", "path": str(tmp_path / "flat.npz")}})
