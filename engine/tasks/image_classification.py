"""The task `image_classification`: images with one label each, from four kinds of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ctr.engine.errors import DataError, Problem, SpecError
from ctr.engine.seeding import stream
from ctr.engine.task import Batch, Context, Evaluation, Metric, Needs, Outputs, Phase

from .image_config import Augment, ImageConfig, ImageModelSettings
from .image_sources import fingerprint, read
from .image_splits import Rows, divide, mean_std

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator
    from torch.nn import Module, Parameter

    from .images import ImageTensors


class ImageClassification:
    """Sort images into classes. All images lie in memory as uint8 tensors on the device.

    Micro-batch m of a phase belongs to pass m // per_pass over the training images; the last of a pass may be short
    and no micro-batch crosses from one pass into the next. Item ids count through the source's images.
    """

    Config: ClassVar[type[ImageConfig]] = ImageConfig
    Model: ClassVar[Any] = ImageModelSettings
    metrics: Mapping[str, Metric] = {"accuracy": Metric(unit="%", better="higher")}
    provides: frozenset[str] = frozenset({"hidden"})
    costly: Mapping[str, Sequence[str]] = {"evaluate": ["eval_batch"]}

    def __init__(self, config: ImageConfig, context: Context) -> None:
        from .images import Normaliser, Passes, forward, score

        source = read(config.data)
        self._config, self._context = config, context
        self._classes = source.classes
        self._rows = divide(source, config.data)
        self._tensors: dict[str, ImageTensors] = {}
        mean, std = mean_std(config.data, source, self._rows["train"])
        self._normalise = Normaliser.of(mean, std, source.peak, context.device)
        self._forward, self._score = forward, score
        train = self._split("train")
        self._shape: tuple[int, int, int] = tuple(train.pixels.shape[1:])  # type: ignore[assignment]
        self._new_passes = partial(Passes, train, self._normalise, config.augment or Augment(crop=0, flip=False))
        self._phase: Phase | None = None
        self._module: Module | None = None

    @staticmethod
    def fingerprints(config: ImageConfig) -> Mapping[str, str]:
        """Return the sha256 of the source's data by its name; loads torch only to fetch CIFAR-10."""
        return fingerprint(config.data)

    @classmethod
    def splits(cls, config: ImageConfig) -> set[str]:
        """Name the splits that these settings give beside the training split."""
        return {"test", *(name for name, share in config.data.fractions().items() if share)}

    def build(self, model: Any, adapter: Any, generator: Generator) -> Module:
        """Build the model; torch's initialisation draws from the default generator, which the caller has seeded."""
        if adapter is not None:
            text = "image_classification trains whole models and knows no adapter; remove it"
            raise SpecError([Problem("spec", 0, 0, "adapter", text)])
        from .image_models import build

        module = build(model, self._shape, self._classes)
        self.share(module)
        return module.to(self._context.device)

    def groups(self, module: Module) -> Mapping[str, list[Parameter]]:
        """Return the one group `base`: every parameter that is trained."""
        return {"base": [parameter for parameter in module.parameters() if parameter.requires_grad]}

    def share(self, module: Module) -> None:
        """Take a module that is built already, or refuse it by name where it does not fit the data."""
        self._module = module
        self._check()

    def _check(self) -> None:
        """Refuse a module that cannot train on the batches of the phase, as soon as both are known."""
        from .image_models import check_fit

        if self._module is not None and self._phase is not None:
            items, size = len(self._rows["train"].ids), self._phase.micro_batch
            check_fit(self._module, self._shape, self._classes, {min(size, items), items % size} - {0})

    def begin(self, phase: Phase) -> None:
        changed = self._phase is None or self._phase.micro_batch != phase.micro_batch
        self._phase = phase
        if changed:
            self._passes = self._new_passes(phase.micro_batch)
            self._check()
        self._epoch_batches = phase.epoch_batches
        self._passes.begin(self._context.seed if phase.seed is None else phase.seed, phase.index)

    def batches(self, epoch: int) -> int:
        return self._epoch_batches or self._passes.per_pass

    def batch(self, epoch: int, index: int) -> Batch:
        return self._passes.batch(*divmod(epoch * self.batches(epoch) + index, self._passes.per_pass))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the ids of an epoch's items in the order they are trained."""
        per_pass, size = self._passes.per_pass, self._passes.micro_batch
        first = epoch * self.batches(epoch)
        last = first + self.batches(epoch)
        parts = []
        for number in range(first // per_pass, -(-last // per_pass)):
            start, stop = (max(0, at - number * per_pass) for at in (first, last))
            parts.append(self._passes.order(number)[start * size : stop * size])
        return np.concatenate(parts)

    def forward(self, module: Module, batch: Batch, needs: Needs) -> Outputs:
        """Return loss and logits; hidden state i is stage i as (batch, places, features), -1 the pooled features."""
        return self._forward(module, batch, needs)

    def evaluate(self, module: Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        """Score a split, or the items at some positions of it; the module's modes are as before afterwards."""
        images = self._split(split)
        losses, correct = self._score(module, images, self._normalise, items, self._config.eval_batch)
        ids = images.ids if items is None else images.ids[np.asarray(items, np.int64)]
        return Evaluation(split, ids.tolist(), losses, np.ones_like(losses), {"accuracy": 100 * correct})

    def items(self, split: str) -> Sequence[int]:
        ids: list[int] = self._known(split).ids.tolist()
        return ids

    def probe(self, size: int) -> Sequence[Batch]:
        """Return at most `size` validation images, drawn by the data's split seed alone, in batches of `eval_batch`."""
        images, step = self._split("val"), self._config.eval_batch
        random = np.random.RandomState(stream(self._config.data.split_seed, "probe") & 0xFFFFFFFF)
        picked = np.sort(random.permutation(len(images))[:size])
        batches = []
        for part in (picked[start : start + step] for start in range(0, len(picked), step)):
            tensors = {"images": self._normalise(images.pixels[part]), "labels": images.labels[part]}
            batches.append(Batch(images.ids[part].tolist(), len(part), tensors))
        return batches

    def state(self) -> Mapping[str, Any]:
        """Return nothing: every batch follows from its position."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def _known(self, split: str) -> Rows:
        if split not in self._rows:
            hint = "; set data.calibration_fraction" if split == "calibration" else ""
            raise DataError(f"the data have no split {split!r}; they have {', '.join(sorted(self._rows))}{hint}")
        return self._rows[split]

    def _split(self, name: str) -> ImageTensors:
        from .images import ImageTensors

        if name not in self._tensors:
            self._tensors[name] = ImageTensors(self._known(name), self._context.device)
        return self._tensors[name]
