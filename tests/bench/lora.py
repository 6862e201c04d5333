"""Small language models with LoRA, in the kernel as a run trains them and in a step that does what the source does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ctr.engine.host import Host
from ctr.engine.kernel import Kernel
from ctr.engine.task import Context, Phase
from ctr.engine.tasks.causal_lm import CausalLm
from ctr.engine.tasks.language_config import CausalLmConfig, LanguageModelSettings, LoraSettings
from ctr.engine.tasks.language_models import LanguageModel
from ctr.engine.train_spec import TrainSpec
from ctr.plugins.geometry.plugin import Geometry
from tests.engine.tiny import make

from .clock import Contestant, block
from .like_the_source import Padded, Step

SEED = 1
VAL = 16  # rows
QWEN2: Mapping[str, Any] = {
    "kind": "tiny", "family": "qwen2", "width": 64, "layers": 6, "heads": 4, "kv_heads": 2, "mlp": 176, "vocab": 2048,
    "init_seed": 0,
}  # fmt: skip
GPT2: Mapping[str, Any] = {
    "kind": "tiny",
    "family": "gpt2",
    "width": 64,
    "layers": 2,
    "heads": 4,
    "vocab": 2048,
    "init_seed": 0,
}
HALF_A_BILLION: Mapping[str, Any] = {
    "kind": "tiny", "family": "qwen2", "width": 896, "layers": 24, "heads": 14, "kv_heads": 2, "mlp": 4864,
    "vocab": 151_936, "init_seed": 0,
}  # fmt: skip
ADAPTER: Mapping[str, Any] = {"kind": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.05}


class Texts(CausalLm):
    """The task on lines of letters, as many a line as `lengths` says, and `VAL` lines like them to evaluate."""

    lora = False  # asks `make` for a toy's adapter, and this task attaches its own

    def __init__(
        self, folder: Path, lengths: Sequence[int], micro: int, model: Mapping[str, Any], most: int | None = None
    ) -> None:
        random = np.random.default_rng(SEED)
        sizes = [*lengths, *lengths[:VAL]]
        letters = [bytes(random.integers(ord("a"), ord("z") + 1, size, dtype=np.uint8)) for size in sizes]
        path = folder / "lines.txt"
        path.write_bytes(b"\n".join(letters) + b"\n")
        shares = {"val_fraction": len(lengths[:VAL]) / len(sizes), "test_fraction": 0.0}
        data = {"source": "text", "path": str(path), **shares}
        self.micro, self.most = micro, most or max(lengths)
        self.model: Any = TypeAdapter(LanguageModelSettings).validate_python(model)
        config = CausalLmConfig.model_validate({"data": data, "max_length": self.most})
        super().__init__(config, Context(SEED, torch.device("cpu"), folder))

    def build(self, *_: Any) -> LanguageModel:
        adapter = LoraSettings.model_validate(ADAPTER)
        module: Any = super().build(self.model, adapter, torch.Generator().manual_seed(SEED))
        return module

    def begin(self, phase: Phase) -> None:
        super().begin(replace(phase, adapts=True, epoch_batches=1_000_000))

    def padded(self, split: str) -> Padded:
        """Return a split as the source would hold it."""
        tokens = self._split(split)
        rows = [tokens.flat[start : start + size] for start, size in zip(tokens.starts, tokens.lengths, strict=True)]
        return Padded.of(rows, self.most, self._built().tokenizer.pad_token_id)


class Lora:
    """The kernel with its real log and keeper; with `geometry`, the plugin in its host, as a study would name it."""

    def __init__(self, folder: Path, task: Texts, geometry: Mapping[str, Any] | None = None) -> None:
        optimizer = {"kind": "adamw", "base_lr": 2e-3, "weight_decay": 0.01}
        train = TrainSpec.model_validate({"epochs": 100, "micro_batch": task.micro, "optimizer": optimizer})
        toy: Any = task
        self.kernel: Kernel = make(folder, task=toy, phases=[train], seed=SEED)
        if geometry is not None:
            config, generator = Geometry.Config.model_validate(geometry), torch.Generator()
            plugins = {"geometry": Geometry(config, generator)}
            self.kernel.host = Host(plugins, {"geometry": generator}, SEED)
            self.kernel.needs = Geometry.needs(config)
        self.plan = self.kernel.plans[0]
        self.kernel.open(self.plan)
        self.kernel.position.stage = "train"

    def step(self) -> None:
        """Make one update, and flush the log where that is due, as the loop of an epoch does."""
        kernel = self.kernel
        kernel._update(self.plan, 1_000_000, 1)
        if kernel.keeper.due(kernel.position.step):
            kernel.keeper.rest(kernel, "step")

    def close(self) -> None:
        self.kernel.keeper.heartbeat.stop()
        self.kernel.log.series.close()
        self.kernel.log.events.close()


def source_step(task: Texts, batch: int, accum: int, weights: Mapping[str, float]) -> Step:
    """Return the source's step on a model of its own with the task's weights, on the task's training rows."""
    return Step(task.build(), task.padded("train"), batch, accum, dict(weights))


def steps(step: Callable[[], None], number: int) -> Contestant:
    def work() -> None:
        for _ in range(number):
            step()

    return block(work, number)
