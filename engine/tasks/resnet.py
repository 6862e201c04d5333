"""A small residual network for small images: three stages of two basic blocks.

stem conv3x3(channels → w), norm, ReLU · stages w, 2w, 4w; the first block of the second and third halves the
side · mean over height and width · linear(4w → classes). Convolutions have no bias; torch's own initialisation.
Parameters are made in the order in which they are read here, which decides what each one draws.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import BatchNorm2d, Conv2d, Identity, Linear, Module, ModuleList, ReLU, Sequential


class ImageModel(Module):
    """A module that sorts images into classes: what it takes and gives, and where its hidden states are.

    The output of `layers()[i]` is hidden state i; the input of `head`, pooled, is hidden state -1.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes

    def layers(self) -> dict[int, Module]:
        """Return the modules whose outputs are hidden states."""
        return {}

    def classifier(self) -> Module:
        """Return the module that turns features into logits."""
        raise NotImplementedError


class Pointwise(Conv2d):
    """A 1x1 convolution without bias as a product of matrices.

    OneDNN's gradient of such a convolution writes past the end of its weights where channels are few and the processor
    has AVX2 but not AVX-512 (seen by a memory checker with torch 2.15): a heap that is damaged in silence.
    """

    def forward(self, x: Tensor) -> Tensor:
        down, across = self.stride
        x = x[:, :, ::down, ::across]
        product: Tensor = self.weight.flatten(1) @ x.flatten(2)
        return product.view(*product.shape[:2], *x.shape[2:])


class Block(Module):
    """Two 3x3 convolutions and a shortcut: (batch, inputs, h, w) → (batch, outputs, h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = BatchNorm2d(outputs)
        self.conv2 = Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = BatchNorm2d(outputs)
        self.shortcut: Module = Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = Sequential(Pointwise(inputs, outputs, 1, stride, bias=False), BatchNorm2d(outputs))
        self.relu = ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        out += self.shortcut(x)
        result: Tensor = self.relu(out)
        return result


class SmallResNet(ImageModel):
    """The network of the module's docstring."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__(channels, classes)
        self.stem = Sequential(
            Conv2d(channels, width, 3, padding=1, bias=False), BatchNorm2d(width), ReLU(inplace=True)
        )
        plan = [(width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2)]
        self.stages = ModuleList(
            Sequential(Block(inputs, outputs, stride), Block(outputs, outputs, 1)) for inputs, outputs, stride in plan
        )
        self.head = Linear(4 * width, classes)

    def layers(self) -> dict[int, Module]:
        return dict(enumerate(self.stages))

    def classifier(self) -> Module:
        return self.head

    def forward(self, images: Tensor) -> Tensor:
        out = self.stem(images)
        for stage in self.stages:
            out = stage(out)
        logits: Tensor = self.head(out.mean(dim=(2, 3)))
        return logits
