"""Images as tensors on the device: passes in random order, augmentation, and scoring.

Nothing here runs per item: an order is drawn once a pass, a batch is one gather of uint8 pixels, then normalised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, pad

from ctr.engine.seeding import torch_generator
from ctr.engine.task import Batch, Needs, Outputs

from .image_config import Augment
from .image_models import captured
from .image_splits import Rows


@dataclass(frozen=True)
class Normaliser:
    """Turn uint8 pixels into float32: (pixel / peak - mean) / std, per channel, as one multiplication and addition."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: NDArray[np.float64], std: NDArray[np.float64], peak: int, device: torch.device) -> Normaliser:
        """Work the two constants out in float64, once."""
        constants = [torch.from_numpy(c.astype(np.float32)).view(1, -1, 1, 1) for c in (1 / (peak * std), -mean / std)]
        return cls(*(constant.to(device) for constant in constants))

    def __call__(self, pixels: Tensor) -> Tensor:
        return torch.addcmul(self.shift, pixels.float(), self.scale)


class ImageTensors:
    """One split on the device: `pixels` (items, channels, height, width) in uint8, and labels."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        pixels = np.ascontiguousarray(rows.images.pixels.transpose(0, 3, 1, 2))
        self.pixels = torch.from_numpy(pixels).to(device)
        self.labels = torch.from_numpy(rows.images.labels).to(device)
        self.ids = rows.ids

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class _Pass:
    """One walk over the training images: everything in the order in which it is trained."""

    number: int
    ids: list[int]
    order: Tensor
    labels: Tensor
    top: Tensor
    left: Tensor
    mirrored: Tensor


class Passes:
    """Micro-batches of pass after pass over the training images; any of them can be asked for at any time."""

    def __init__(self, images: ImageTensors, normalise: Normaliser, augment: Augment, micro_batch: int) -> None:
        self._images, self._normalise, self._augment = images, normalise, augment
        self.micro_batch = micro_batch
        self.per_pass = -(-len(images) // micro_batch)
        self._windows = windows(images.pixels, augment.crop) if augment.crop else None
        self._seed, self._phase = 0, -1
        self._now: _Pass | None = None

    def begin(self, seed: int, phase: int) -> None:
        """Start counting passes anew, with the random numbers of this phase."""
        self._seed, self._phase, self._now = seed, phase, None

    def order(self, number: int) -> NDArray[np.int64]:
        """Return the ids of the items in the order of a pass."""
        ids: NDArray[np.int64] = self._images.ids[self._permutation(number).numpy()]
        return ids

    def batch(self, number: int, index: int) -> Batch:
        """Return micro-batch `index` of a pass; the last one of a pass may be short."""
        now = self._now
        if now is None or now.number != number:
            now = self._now = self._turn(number)
        start = index * self.micro_batch
        stop = start + self.micro_batch
        ids = now.ids[start:stop]
        pixels = self._gather(now, start, stop)
        return Batch(ids, len(ids), {"images": self._normalise(pixels), "labels": now.labels[start:stop]})

    def _gather(self, now: _Pass, start: int, stop: int) -> Tensor:
        order = now.order[start:stop]
        if self._windows is None:
            pixels = self._images.pixels.index_select(0, order)
        else:
            pixels = self._windows[order, :, now.top[start:stop], now.left[start:stop]]
        return torch.where(now.mirrored[start:stop], pixels.flip(3), pixels) if self._augment.flip else pixels

    def _permutation(self, number: int) -> Tensor:
        assert self._phase >= 0, "begin(phase) comes before the first batch"
        generator = torch_generator(self._seed, "data", self._phase, number)
        return torch.randperm(len(self._images), generator=generator)

    def _turn(self, number: int) -> _Pass:
        order = self._permutation(number)
        top, left, mirrored = (
            draw[order].to(self._images.pixels.device)
            for draw in draws(len(self._images), self._augment.crop, self._seed, self._phase, number)
        )
        ids = self._images.ids[order.numpy()].tolist()
        order = order.to(self._images.pixels.device)
        labels = self._images.labels[order]
        return _Pass(number, ids, order, labels, top, left, mirrored.view(-1, 1, 1, 1))


def draws(items: int, crop: int, seed: int, phase: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw, for each item of a pass, where its crop begins (from the top, from the left) and whether it is mirrored.

    One `rand(items, 3)` on the CPU, whatever is switched on: so the same on every device, and a flip changes no crop.
    """
    uniform = torch.rand(items, 3, generator=torch_generator(seed, "augment", phase, number))
    corners = (uniform[:, :2] * (2 * crop + 1)).long()  # the highest draw, 1 - 2^-24, rounds down: 2 crop + 1 is odd
    return corners[:, 0], corners[:, 1], uniform[:, 2] < 0.5


def windows(pixels: Tensor, crop: int) -> Tensor:
    """Return every crop of every image as a view (items, channels, 2 crop + 1, 2 crop + 1, height, width).

    Images get a border of `crop` black pixels; `windows[i, :, y, x]` begins y below and x right of its corner.
    """
    height, width = pixels.shape[2:]
    return pad(pixels, (crop, crop, crop, crop)).unfold(2, height, 1).unfold(3, width, 1)


def forward(module: Module, batch: Batch, needs: Needs) -> Outputs:
    """Run the module on a batch: mean cross-entropy in float32, logits, and the hidden states that are asked for."""
    wanted = needs.get("hidden")
    if not wanted:
        logits = module(batch.tensors["images"])
        return Outputs(cross_entropy(logits.float(), batch.tensors["labels"]), logits)
    with captured(module, wanted) as hidden:  # type: ignore[arg-type]
        logits = module(batch.tensors["images"])
    return Outputs(cross_entropy(logits.float(), batch.tensors["labels"]), logits, hidden=hidden)


def score(
    module: Module, images: ImageTensors, normalise: Normaliser, items: Sequence[int] | None, size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return loss and correctness (0 or 1) per item, in eval mode without gradients, by one transfer at the end."""
    pixels, labels = images.pixels, images.labels
    if items is not None:
        index = torch.as_tensor(np.asarray(items, np.int64)).to(pixels.device)
        pixels, labels = pixels.index_select(0, index), labels.index_select(0, index)
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():  # not inference mode: what a module keeps from it could never be trained on
            chunks = zip(torch.split(pixels, size), torch.split(labels, size), strict=True)
            rows = [_score(module, normalise(chunk), expected) for chunk, expected in chunks]
            both = torch.cat(rows, dim=1).cpu().numpy().astype(np.float64)
    finally:
        for part in training:
            part.training = True
    return both[0], both[1]


def _score(module: Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = module(images).float()
    loss = cross_entropy(logits, labels, reduction="none")
    return torch.stack([loss, (logits.argmax(dim=1) == labels).float()])
