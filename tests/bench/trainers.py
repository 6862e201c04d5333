"""ctr's overhead against that of Lightning's Trainer and HF's Trainer, each over a raw loop with its own data path.

All three log the loss of every step: ctr into its series files, Lightning into its CSV file, HF into its log history,
in memory. Checkpoints, progress bars and evaluations are off, the optimizer is the same fused SGD.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from .bench import Bench
from .clock import Contestant, interleave, surplus
from .digits import BATCH, BLOCK, Engine, Hand, network, sgd, steps
from .table import Row, Section

BLOCKS = 3
STEPS = BLOCKS * BLOCK
WARM_UP = 50  # steps of every fit before the clock starts: what a trainer sets up is not held against it


class Watch:
    """Counts forward passes and takes the CPU time at every block of them."""

    def __init__(self) -> None:
        self.count, self.times = 0, list[float]()

    def tick(self) -> None:
        self.count += 1
        if self.count % BLOCK == WARM_UP:
            self.times.append(process_time())

    @property
    def per_step(self) -> float:
        """The CPU seconds of a step in the quickest block of the fit."""
        assert len(self.times) == BLOCKS + 1, f"only {self.count} steps of {WARM_UP + STEPS} were made"
        return min(end - begin for begin, end in pairwise(self.times)) / BLOCK


class Net(torch.nn.Module):
    """The network that ctr trains as well, with a watch in its forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net, self.watch = network(width), Watch()

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.watch.tick()
        logits = self.net(images)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Items(Dataset[dict[str, Tensor]]):
    """The training images as a map-style dataset that hands out a batch at a time: torch's leanest path."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.images[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        at = torch.tensor(indices)
        return {"images": self.images[at], "labels": self.labels[at]}


def as_it_is(batch: Any) -> Any:
    return batch


def items(hand: Hand) -> Items:
    """Take the training images, normalised, out of the task."""
    batches = [hand.task.batch(0, index) for index in range(-(-len(hand.task.items("train")) // BATCH))]
    return Items(*(torch.cat([batch.tensors[name] for batch in batches]) for name in ("images", "labels")))


def loader(data: Items) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(data, batch_size=BATCH, shuffle=True, collate_fn=as_it_is)


def raw(width: int, data: Items) -> Contestant:
    """The loop by hand over the same loader: what both trainers are measured against."""
    batches = loader(data)

    def endless() -> Iterator[dict[str, Tensor]]:
        while True:
            yield from batches

    def run() -> float:
        net = Net(width)
        optimizer = sgd(net)
        for _, batch in zip(range(WARM_UP + STEPS), endless(), strict=False):
            optimizer.zero_grad(set_to_none=True)
            net(**batch)["loss"].backward()
            optimizer.step()
        return net.watch.per_step

    return run


def lightning(width: int, data: Items, folder: Path) -> Contestant:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    off: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Net(width)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            loss: Tensor = self.model(**batch)["loss"]
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.model)

    def run() -> float:
        module = Module()
        trainer = pl.Trainer(
            max_steps=WARM_UP + STEPS, max_epochs=-1, accelerator="cpu", devices=1, log_every_n_steps=1,
            logger=CSVLogger(folder, name=None), default_root_dir=folder, **off,
        )  # fmt: skip
        trainer.fit(module, loader(data))
        return module.model.watch.per_step

    return run


def hugging_face(width: int, data: Items, folder: Path) -> Contestant:
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.utils import logging as own_logging

    own_logging.set_verbosity_error()
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=WARM_UP + STEPS, per_device_train_batch_size=BATCH, logging_steps=1,
        logging_strategy="steps", save_strategy="no", eval_strategy="no", report_to="none", disable_tqdm=True,
        max_grad_norm=0.0, lr_scheduler_type="constant", use_cpu=True, remove_unused_columns=False,
        dataloader_pin_memory=False,
    )  # fmt: skip

    def run() -> float:
        net = Net(width)
        trainer = Trainer(
            net, arguments, data_collator=as_it_is, train_dataset=data, optimizers=(sgd(net), None)
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        assert len([row for row in trainer.state.log_history if "loss" in row]) == WARM_UP + STEPS
        return net.watch.per_step

    return run


def measure(bench: Bench) -> Section:
    """Fit in turn; an overhead is the difference to the raw loop of the same data path, measured in the same rounds."""
    width, rounds = bench.size.width, bench.rounds(12)
    hand, engine = Hand(width), Engine(bench.folder("engine"), width)
    data = items(hand)
    contestants = {"hand": several(steps(hand.train)), "ctr": several(steps(engine.train)), "raw": raw(width, data)}
    try:
        contestants["lightning"] = lightning(width, data, bench.folder("lightning"))
        contestants["hugging face"] = hugging_face(width, data, bench.folder("hugging-face"))
    except ImportError as error:
        bench.tell(f"{error}: install requirements-bench.lock to compare with other trainers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they warn of settings that are meant
        times = interleave(contestants, rounds, warm_up=1)
    engine.close()
    ours = surplus(times, "ctr", "hand")
    rows = [
        Row("a step of the loop by hand over ctr's data path", 1e6 * min(times["hand"]), "µs"),
        Row("a step of the loop by hand over a DataLoader", 1e6 * min(times["raw"]), "µs"),
        Row("ctr's overhead", ours[0], "µs", ours[1]),
    ]
    for name, shown in (("lightning", "Lightning Trainer"), ("hugging face", "HF Trainer")):
        if name in times:
            theirs = surplus(times, name, "raw")
            rows.append(Row(f"{shown}'s overhead", theirs[0], "µs", theirs[1]))
            rows.append(Row(f"{shown}'s over ctr's", theirs[0] / ours[0], "×", theirs[1] / ours[1], 5.0, least=True))
    method = (
        f"{bench.size}. The loss of every step is logged: ctr and Lightning into files, HF in memory. CPU time per "
    )
    method += f"step over {STEPS} steps after {WARM_UP} of warm-up, smallest of {rounds} interleaved fits, and the "
    method += "paired median. An overhead is what a step takes beyond the loop by hand over the same data path."
    return Section("Overhead against other trainers", method, rows)


def several(run: Contestant) -> Contestant:
    """Run a contestant's block as often as there are blocks in a fit, and take the quickest as a fit does."""
    return lambda: min(run() for _ in range(BLOCKS))
