"""What the loops train: digits through the image task's own data path, by a network sized to the wanted step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import Flatten, Linear, ReLU, Sequential
from torch.nn.functional import cross_entropy

from ctr.engine.kernel import Kernel
from ctr.engine.task import Context, Phase
from ctr.engine.tasks.image_classification import ImageClassification
from ctr.engine.tasks.image_config import ImageConfig
from ctr.engine.train_spec import TrainSpec
from tests.engine.tiny import make

from .clock import block, quiet

BATCH = 64
BLOCK = 128  # steps that are timed at one go: two flushes of the log, some seven passes over the data
SEED = 1
WANTED = (200.0, 250.0)  # µs
SGD: Mapping[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}
RATE = 0.01


class Digits(ImageClassification):
    """The image task on digits, with a network of two layers: 64 pixels → width → 10 classes."""

    lora, micro = False, BATCH

    def __init__(self, width: int) -> None:
        self.width = width
        context = Context(SEED, torch.device("cpu"), Path())
        super().__init__(ImageConfig.model_validate({"data": {"source": "digits"}}), context)

    def build(self, model: Any = None, adapter: Any = None, generator: Any = None) -> torch.nn.Module:
        return network(self.width)

    def begin(self, phase: Phase) -> None:
        super().begin(replace(phase, epoch_batches=BLOCK))


def network(width: int) -> Sequential:
    torch.manual_seed(SEED)
    return Sequential(Flatten(), Linear(64, width), ReLU(), Linear(width, 10))


def sgd(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=RATE, fused=True, **SGD)


class Hand:
    """The loop that anyone would write: batch, forward, backward, update. No guard, no seeding, no log."""

    def __init__(self, width: int) -> None:
        self.task = Digits(width)
        self.module = self.task.build()
        self.optimizer = sgd(self.module)
        self.task.begin(Phase("main", 0, 1, BATCH, BLOCK))
        self.epoch = 0

    def train(self) -> None:
        """Train one block."""
        batch_at, module, optimizer, epoch = self.task.batch, self.module, self.optimizer, self.epoch
        for index in range(BLOCK):
            batch = batch_at(epoch, index)
            optimizer.zero_grad(set_to_none=True)
            loss = cross_entropy(module(batch.tensors["images"]), batch.tensors["labels"])
            loss.backward()
            optimizer.step()
        self.epoch += 1


class Engine:
    """The kernel with its real log and keeper, in a run folder of its own; an epoch is one block."""

    def __init__(self, folder: Path, width: int, plugins: Mapping[str, Any] | None = None) -> None:
        optimizer = {"kind": "sgd", "base_lr": RATE, **SGD}
        train = TrainSpec.model_validate({"epochs": 100_000, "micro_batch": BATCH, "optimizer": optimizer})
        task: Any = Digits(width)
        self.kernel: Kernel = make(folder, plugins, task=task, phases=[train], seed=SEED)
        self.plan = self.kernel.plans[0]
        self.kernel.open(self.plan)
        self.kernel.position.stage = "train"

    def train(self) -> None:
        """Train one block as the kernel trains an epoch, its last flush included; no evaluation."""
        kernel = self.kernel
        kernel._train_epoch(self.plan)
        kernel.keeper.rest(kernel, "evaluate")
        kernel.log.begin_epoch()
        kernel.position.epoch += 1
        kernel.position.micro = 0

    def close(self) -> None:
        self.kernel.keeper.heartbeat.stop()
        self.kernel.log.series.close()
        self.kernel.log.events.close()


@dataclass(frozen=True)
class Size:
    """The hidden width found, and what a step of the loop written by hand took with it when it was found."""

    width: int
    microseconds: float

    def __str__(self) -> str:
        return f"digits, MLP 64-{self.width}-10, batch {BATCH}, fused SGD with momentum, one thread"


def find_size() -> Size:
    """Halve the range of widths until a step of the loop written by hand lies in the middle of what is wanted."""
    low, high, middle = 1, 128, sum(WANTED) / 2  # in units of 8
    while low < high:
        width = (low + high) // 2
        low, high = (low, width) if _hand_step(8 * width) >= middle else (width + 1, high)
    return Size(8 * low, _hand_step(8 * low))


def _hand_step(width: int) -> float:
    hand = Hand(width)
    run = block(hand.train, BLOCK)
    with quiet():
        return 1e6 * min(run() for _ in range(10))


def same_weights(hand: Hand, other: Engine) -> bool:
    """Say whether both hold the same bits after equally many steps: what was timed was the same training."""
    pairs = zip(hand.module.parameters(), other.kernel.module.parameters(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs)


def steps(work: Callable[[], None]) -> Callable[[], float]:
    return block(work, BLOCK)
