"""What can be set about image data, augmentation and models; loads neither torch nor any data."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

Channels = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1)]


class Settings(BaseModel):
    """The base of every settings class here: no unknown key, no silent conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MeanStd(Settings):
    """Numbers to normalise with, one per channel; a pixel is between 0 (black) and 1 (brightest)."""

    mean: Channels = Field(description="subtracted from each channel; one number per channel")
    std: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="each channel is divided by it; one number per channel"
    )

    @model_validator(mode="after")
    def _equally_long(self) -> MeanStd:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} channels and std has {len(self.std)}; they must be equally many"
            )
        return self


def _normalise_tag(value: Any) -> str:
    return "fixed" if isinstance(value, dict | MeanStd) else "auto"


Normalise = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[MeanStd, Tag("fixed")], Discriminator(_normalise_tag)
]
Fraction = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
_NORMALISE = "`auto`: mean and standard deviation of the training split; or {mean, std}, a number per channel each"
_VAL = "fraction of the images other than the given test images that becomes the validation split"


class Data(Settings):
    """What every source of images has: how it is split and normalised."""

    split_seed: int = Field(0, description="what the splits and the probe are drawn from; the same for every run seed")
    val_fraction: Fraction = Field(0.1, description=_VAL)
    calibration_fraction: float = Field(
        0.0, ge=0, lt=1, allow_inf_nan=False, description="fraction of the same images kept for calibration; 0 for none"
    )
    normalise: Normalise = Field("auto", description=_NORMALISE)

    @model_validator(mode="after")
    def _something_is_left(self) -> Data:
        held_out = sum(self.fractions().values())
        if held_out >= 1:
            raise ValueError(f"the split fractions add up to {held_out:g}; they must leave something to train on")
        return self

    def fractions(self) -> dict[str, float]:
        """Return what is held out of the images that are split, in the order it is taken."""
        return {"val": self.val_fraction, "calibration": self.calibration_fraction}


class SplitData(Data):
    """A source whose test images may have to be taken from the rest."""

    test_fraction: Fraction | None

    def fractions(self) -> dict[str, float]:
        test = {} if self.test_fraction is None else {"test": self.test_fraction}
        return {**test, **super().fractions()}


class DigitsData(SplitData):
    """Scikit-learn's digits: 1797 handwritten digits of 8x8 grey pixels; ships with scikit-learn."""

    source: Literal["digits"]
    test_fraction: Fraction = Field(0.2, description="fraction of all images that becomes the test split")
    val_fraction: Fraction = Field(0.2, description="fraction of all images that becomes the validation split")


class Cifar10Data(Data):
    """CIFAR-10, the python version: 50,000 and 10,000 colour images of 32x32 in ten classes."""

    source: Literal["cifar10"]
    root: str = Field(min_length=1, description="folder that holds cifar-10-batches-py, seen from where ctr is run")
    download: bool = Field(False, description="fetch the data into root (170 MB) when they are not there")
    normalise: Normalise = Field(
        MeanStd(mean=[0.4914, 0.4822, 0.4465], std=[0.2470, 0.2435, 0.2616]), description=_NORMALISE
    )


class NpzData(Data):
    """One numpy archive with train_images, train_labels, test_images and test_labels; other arrays are not read."""

    source: Literal["npz"]
    path: str = Field(
        min_length=1, description="the .npz file: uint8 images N x H x W (x C), whole-number labels from 0"
    )


class FolderData(SplitData):
    """A folder with one subfolder of image files per class, or with train/ and test/ that are such folders."""

    source: Literal["folder"]
    path: str = Field(min_length=1, description="the folder, seen from where ctr is run")
    size: int = Field(
        ge=1, le=2048, description="side in pixels: the shorter side is scaled to it and the middle square is kept"
    )
    test_fraction: Fraction | None = Field(
        None, description="fraction of all images that becomes the test split; null where there is a test/ subfolder"
    )


class Augment(Settings):
    """Random changes of the training images, drawn anew in each pass over the data."""

    crop: int = Field(
        0, ge=0, le=256, description="pixels of black border from which an image's own size is cut out; 0 for no crop"
    )
    flip: bool = Field(False, description="mirror left and right with probability 1/2")


class ImageConfig(Settings):
    """The settings of the task `image_classification`."""

    data: DigitsData | Cifar10Data | NpzData | FolderData = Field(
        discriminator="source", description="where the images come from and how they are split"
    )
    augment: Augment | None = Field(None, description="random crops and flips of the training images; null for none")
    eval_batch: int = Field(256, ge=1, description="images per forward pass in evaluations")


class SmallResNetSettings(Settings):
    """A residual network of three stages with two blocks each, for small images."""

    kind: Literal["small_resnet"]
    width: int = Field(
        32, ge=1, le=512, description="channels of the first stage; the others have 2 and 4 times as many"
    )


class TorchvisionSettings(Settings):
    """A classifier of torchvision by name; a grey image is repeated into its three channels."""

    kind: Literal["torchvision"]
    name: str = Field(min_length=1, max_length=64, description="as torchvision.models.list_models() spells it")
    pretrained: bool = Field(
        False,
        description="start from torchvision's default weights, fetched once, with a new head; they expect "
        "data.normalise {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
    )


ImageModelSettings = Annotated[SmallResNetSettings | TorchvisionSettings, Field(discriminator="kind")]
