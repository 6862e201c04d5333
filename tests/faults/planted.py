"""What a test installs beside ctr, as any package would: a plugin and a task that go wrong where they are told to.

It is copied into a folder of its own under the name `ctr_planted`, with entry points; see `site` in harness.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ctr.engine.events import Epoch, Forward, Step
from ctr.engine.hooks import EpochAdvice, LossTerm, LrAdvice, hookimpl
from ctr.engine.task import Batch, Context
from ctr.engine.tasks.image_classification import ImageClassification
from ctr.engine.tasks.image_config import ImageConfig


class Planted:
    """Adds a noisy term with a memory, saves a snapshot at every epoch, and at one step does what it must not."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        weight: float = Field(0.01, description="weight of the term")
        sleep: float = Field(0.0, description="seconds that each step takes longer")
        at: int = Field(-1, description="step at which the fault happens")
        what: str = Field("nothing", description="nothing, raise, term, gradient, rate or tensor_rate")

    def __init__(self, config: Config, generator: Any) -> None:
        self.config, self.generator = config, generator
        self.mean = 0.0

    @hookimpl
    def extra_loss(self, forward: Forward) -> list[LossTerm]:
        import torch

        logits = forward.outputs.logits
        assert logits is not None
        noise = torch.rand(logits.shape, generator=self.generator)
        value = (logits * noise).square().mean()
        self.mean = 0.9 * self.mean + 0.1 * float(value.detach())
        if forward.step == self.config.at:
            if self.config.what == "raise":
                raise ValueError("planted")
            if self.config.what == "term":
                value = value * math.nan
            if self.config.what == "gradient":
                value = value + (logits - logits.detach()).abs().sum().sqrt()  # 0, but with an infinite slope
        return [LossTerm("noise", value, self.config.weight)]

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        import torch

        if self.config.sleep:
            time.sleep(self.config.sleep)
        step.log("mean", self.mean)
        if step.step == self.config.at and self.config.what == "rate":
            return LrAdvice(scale=math.nan)
        if step.step == self.config.at and self.config.what == "tensor_rate":
            return LrAdvice(scale=torch.tensor(math.nan))
        return LrAdvice(scale=1.0 + 0.01 * (step.step % 3), why="planted")

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        epoch.log.state("parity", "odd" if epoch.epoch % 2 else "even")
        return EpochAdvice(save="latest", why="planted") if epoch.kind == "epoch" else None

    def state(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.mean = state["mean"]


class NanImages(ImageClassification):
    """The image task with one pixel that is no number, in one micro-batch."""

    class Config(ImageConfig):
        """As the images', and where the pixel lies."""

        epoch: int = 0
        micro: int = 0

    def __init__(self, config: Config, context: Context) -> None:
        super().__init__(config, context)
        self._bad = (config.epoch, config.micro)

    def batch(self, epoch: int, index: int) -> Batch:
        batch = super().batch(epoch, index)
        if (epoch, index) != self._bad:
            return batch
        images = batch.tensors["images"].clone()
        images[1, 0, 2, 3] = math.nan
        return Batch(batch.ids, batch.count, {**batch.tensors, "images": images}, batch.starts)
