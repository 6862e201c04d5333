"""Building image models: the small residual network, any torchvision classifier, and whether they fit the data."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, Linear, Module

from ctr.engine.errors import DataError, Problem, SpecError, guess

from .image_config import SmallResNetSettings, TorchvisionSettings
from .resnet import ImageModel, SmallResNet

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")


class TorchvisionModel(ImageModel):
    """A torchvision classifier; grey images are repeated into its three channels."""

    def __init__(self, net: Module, head: str, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.net = net
        self._head = head

    def classifier(self) -> Module:
        return self.net.get_submodule(self._head)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images.expand(-1, 3, -1, -1))
        return logits


def build(settings: SmallResNetSettings | TorchvisionSettings, shape: tuple[int, int, int], classes: int) -> ImageModel:
    """Return a model for images of `shape` (channels, height, width); draws from torch's default generator."""
    if isinstance(settings, SmallResNetSettings):
        return SmallResNet(settings.width, shape[0], classes)
    return _torchvision(settings, shape[0], classes)


def _torchvision(settings: TorchvisionSettings, channels: int, classes: int) -> TorchvisionModel:
    from torchvision import models

    known = models.list_models(module=models)
    if settings.name not in known:
        text = f"torchvision has no classifier {settings.name!r}.{guess(settings.name, known)}"
        raise _wrong("model.name", f"{text} It has {', '.join(known)}")
    if channels not in (1, 3):
        raise _wrong("model.name", f"torchvision's classifiers take 1 or 3 channels, the images have {channels}")
    if settings.pretrained:
        net, head = _pretrained(settings.name, classes)
    else:
        extra = {"aux_logits": False, "init_weights": True} if settings.name in _WITH_AUXILIARY_HEADS else {}
        net = models.get_model(settings.name, weights=None, num_classes=classes, **extra)
        head = _head(net, classes)
    return TorchvisionModel(net, head, channels, classes)


def _pretrained(name: str, classes: int) -> tuple[Module, str]:
    from torchvision import models

    try:
        with _tensors_only():
            net: Module = models.get_model(name, weights="DEFAULT")
    except pickle.UnpicklingError as error:
        cache = f"{torch.hub.get_dir()}/checkpoints"
        text = f"the pretrained weights of {name} in {cache} are damaged, or hold more than tensors"
        raise DataError(f"{text}; delete the file, so that it is fetched again") from error
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        text = f"the pretrained weights of {name} could not be loaded: {error}"
        raise DataError(f"{text}; check the network, delete a damaged file, or set model.pretrained: false") from error
    if name in _WITH_AUXILIARY_HEADS:
        net.aux_logits = False  # type: ignore[assignment]
        for auxiliary in ("AuxLogits", "aux1", "aux2"):
            if hasattr(net, auxiliary):
                setattr(net, auxiliary, None)
    path = _head(net, 1000)
    old, (parent, _, leaf) = net.get_submodule(path), path.rpartition(".")
    if isinstance(old, Conv2d):
        new: Module = Conv2d(old.in_channels, classes, old.kernel_size)  # type: ignore[arg-type]
    else:
        assert isinstance(old, Linear)
        new = Linear(old.in_features, classes, bias=old.bias is not None)
    setattr(net.get_submodule(parent), leaf, new)
    return net, path


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Let a weights file hold tensors and nothing that runs; torchvision offers no other way to ask for it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _head(net: Module, classes: int) -> str:
    heads: list[str] = [
        name
        for name, module in net.named_modules()
        if (isinstance(module, Linear) and module.out_features == classes)
        or (isinstance(module, Conv2d) and module.out_channels == classes)
    ]
    return heads[-1]


def check_fit(module: Any, shape: tuple[int, int, int], classes: int, batches: set[int]) -> None:
    """Refuse a module that cannot train on images of `shape` in batches of these sizes; computes with no numbers."""
    if not isinstance(module, ImageModel):
        text = f"{type(module).__name__} was not built for images, so image_classification cannot share it"
        raise _wrong("model", f"{text}; give this phase a task of the model's own kind")
    if (module.channels, module.classes) != (shape[0], classes):
        text = f"the model takes {module.channels} channels and {module.classes} classes"
        raise _wrong("model", f"{text}, the data have {shape[0]} and {classes}; tasks that share it must have the same")
    weights = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.items()}
    for size in sorted(batches):
        try:
            logits = torch.func.functional_call(module, empty, (torch.empty(size, *shape, device="meta"),))
        except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
            text = f"the model cannot train on {size} images of {shape[0]} x {shape[1]} x {shape[2]}: {error}"
            raise _wrong("model", f"{text}; take larger images, another model or another train.micro_batch") from error
        if not isinstance(logits, Tensor) or logits.shape != (size, classes):
            raise _wrong("model", f"the model does not give {classes} logits per image")


@contextmanager
def captured(module: ImageModel, wanted: frozenset[int]) -> Iterator[dict[int, Tensor]]:
    """Collect hidden states of the forward passes within: i as (batch, places, features), -1 as (batch, features)."""
    layers, found = module.layers(), dict[int, Tensor]()
    unknown = wanted - {-1, *layers}
    if unknown:
        known = ", ".join(map(str, sorted({-1, *layers})))
        raise _wrong("plugins", f"{type(module).__name__} has no hidden state {min(unknown)}; it has {known}")

    def keep(index: int, state: Tensor) -> None:
        if state.dim() == 4:
            state = state.mean(dim=(2, 3)) if index == -1 else state.flatten(2).transpose(1, 2)
        found[index] = state

    def keep_output(index: int) -> Any:
        return lambda _module, _inputs, output: keep(index, output)

    handles = [layers[index].register_forward_hook(keep_output(index)) for index in wanted - {-1}]
    if -1 in wanted:
        handles.append(module.classifier().register_forward_pre_hook(lambda _module, inputs: keep(-1, inputs[0])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _wrong(path: str, text: str) -> SpecError:
    return SpecError([Problem("spec", 0, 0, path, text)])
