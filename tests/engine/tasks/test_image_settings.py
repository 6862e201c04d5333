"""Settings that are wrong, in themselves or for the data, are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ctr.engine.errors import DataError
from ctr.engine.tasks.image_classification import ImageClassification

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
