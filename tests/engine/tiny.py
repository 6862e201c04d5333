"""A thirty-line task, and a run made of it with the real log and keeper: what the kernel's tests train."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ctr.engine import resume
from ctr.engine.adapters import Adapter, Factor
from ctr.engine.build import open_phase
from ctr.engine.checkpoint import CheckpointStore
from ctr.engine.events_log import EventLog
from ctr.engine.host import Host
from ctr.engine.keeper import Keeper
from ctr.engine.kernel import Kernel, Plan
from ctr.engine.matrix import Matrix
from ctr.engine.recorder import Recorder
from ctr.engine.rundir import Heartbeat, RunDir
from ctr.engine.seeding import torch_generator
from ctr.engine.series import SeriesWriter
from ctr.engine.task import Batch, Evaluation, Outputs, Phase

OPEN: list[Kernel] = []


class Tiny:
    """Sort 22 noisy points into 3 classes; micro-batches of 4, so that the last of an epoch is short."""

    metrics: Mapping[str, Any] = {}
    provides: frozenset[str] = frozenset()

    def __init__(
        self, seed: int = 0, items: int = 22, micro: int = 4, dropout: float = 0.2, lora: bool = False
    ) -> None:
        self.seed, self.micro, self.dropout, self.lora = seed, micro, dropout, lora
        draw = torch.Generator().manual_seed(7)
        self.x = torch.randn(items, 5, generator=draw)
        self.y = (self.x @ torch.randn(5, 3, generator=draw)).argmax(1)
        self.counts: dict[int, int] = {}  # micro-batch -> count to pretend
        self.documents: dict[int, tuple[int, ...]] = {}
        self.phase = Phase("main", 0, 1, micro)

    def build(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        hidden = LowRank(5, 8) if self.lora else torch.nn.Linear(5, 8)
        return torch.nn.Sequential(
            hidden, torch.nn.BatchNorm1d(8), torch.nn.Dropout(self.dropout), torch.nn.Linear(8, 3)
        )

    def pair(self, module: Any) -> Any:
        """Return the part of the module that has the factors, where there is an adapter."""
        return module[0]

    def groups(self, module: torch.nn.Module) -> Mapping[str, list[Any]]:
        return {"base": [p for p in module.parameters() if p.requires_grad]}

    def begin(self, phase: Phase) -> None:
        self.phase = phase

    def batches(self, epoch: int) -> int:
        return -(-len(self.x) // self.micro)

    def order(self, epoch: int) -> Any:
        return torch.randperm(
            len(self.x), generator=torch_generator(self.seed, "data", self.phase.index, epoch)
        ).numpy()

    def batch(self, epoch: int, index: int) -> Batch:
        ids = self.order(epoch)[index * self.micro : (index + 1) * self.micro]
        tensors = {"x": self.x[ids], "y": self.y[ids]}
        return Batch(ids.tolist(), self.counts.get(index, len(ids)), tensors, self.documents.get(index, ()))

    def forward(self, module: torch.nn.Module, batch: Batch, needs: Any) -> Outputs:
        logits = module(batch.tensors["x"])
        return Outputs(torch.nn.functional.cross_entropy(logits, batch.tensors["y"]), logits)

    def evaluate(self, module: torch.nn.Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        training = module.training
        module.eval()
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(module(self.x), self.y, reduction="none").double().numpy()
        module.train(training)
        return Evaluation(split, list(range(len(losses))), losses, np.ones_like(losses), {})

    def items(self, split: str) -> Sequence[int]:
        return list(range(len(self.x)))

    def probe(self, size: int) -> Sequence[Batch]:
        return [Batch([0, 1], 2, {"x": self.x[:2], "y": self.y[:2]})]

    def state(self) -> Mapping[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class LowRank(torch.nn.Module):
    """A frozen linear layer beside which a pair of factors learns."""

    def __init__(self, inputs: int, outputs: int, rank: int = 2) -> None:
        super().__init__()
        self.base = torch.nn.Parameter(torch.randn(outputs, inputs) / 2, requires_grad=False)
        self.a = torch.nn.Parameter(torch.randn(rank, inputs))
        self.b = torch.nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.base + 2.0 * self.b @ self.a).T


def train_spec(**more: Any) -> Any:
    """Return the settings of a phase as the kernel reads them."""
    optimizer = SimpleNamespace(
        kind=more.pop("optimizer", "sgd"), base_lr=more.pop("base_lr", 0.1), groups={},
        model_dump=lambda exclude: more.pop("settings", {"momentum": 0.9}),
    )  # fmt: skip
    schedule = SimpleNamespace(kind="cosine", warmup_epochs=1, per=more.pop("per", "epoch"))
    defaults = {"epochs": 3, "grad_accum": 1, "clip_norm": None, "reset_at": []}
    return SimpleNamespace(optimizer=optimizer, schedule=schedule, **{**defaults, **more})


def make(
    folder: Path,
    plugins: Mapping[str, Any] | None = None,
    *,
    task: Tiny | None = None,
    phases: Sequence[Any] | None = None,
    seed: int = 3,
    checkpoint: Mapping[str, Any] | None = None,
    log_steps: int = 64,
    stop: threading.Event | None = None,
    select: str = "val.loss",
    moments: str = "clear",
    **train: Any,
) -> Kernel:
    """Make a run in `folder`, resumed from its newest checkpoint where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    task = task or Tiny(seed)
    module = task.build()
    torch.use_deterministic_algorithms(True)
    every = {"every_steps": None, "every_epochs": None, "every_minutes": None, **(checkpoint or {})}
    run, store = RunDir(folder), CheckpointStore(folder)
    heartbeat = Heartbeat(run.path, interval=60.0)
    keeper = Keeper(
        run, store, heartbeat, checkpoint=SimpleNamespace(**every), updates=1, look_every=0.0,
        stop=stop or threading.Event(), select=SimpleNamespace(on=select, better="lower"),
    )  # fmt: skip
    plugins = plugins or {}
    generators = {name: torch.Generator() for name in plugins}
    specs = phases or [train_spec(**train)]
    plans = [_plan(index, spec, task, module, moments) for index, spec in enumerate(specs)]
    kernel = Kernel(
        plans=plans, tasks={"main": task}, module=module, host=Host(plugins, generators, seed), log=None,
        keeper=keeper, seed=seed, device=torch.device("cpu"), adapter=_adapter(module, task), matrix=Matrix(["main"]),
    )  # fmt: skip
    loaded = store.newest()
    series = SeriesWriter(folder)
    series.resume(loaded.record["series"] if loaded else {})
    offsets = np.cumsum([0, *(spec.epochs for spec in specs)]).tolist()
    declared = {name: getattr(plugin, "metrics", {}) for name, plugin in plugins.items()}
    kernel.log = Recorder(
        series, EventLog(folder), steps=log_steps, seconds=60.0, offsets=offsets, declared=declared, flag=kernel.flag
    )
    keeper.attach(kernel.log)
    resume.take_up(kernel, keeper, loaded)
    OPEN.append(kernel)
    return kernel


def close_all() -> None:
    """Close the files of every run made so far; `tests/conftest.py` calls it after each test."""
    while OPEN:
        kernel = OPEN.pop()
        kernel.keeper.heartbeat.stop()
        kernel.log.series.close()
        kernel.log.events.close()


def _adapter(module: Any, task: Tiny) -> Adapter | None:
    if not task.lora:
        return None
    pair = task.pair(module)
    factor = Factor("hidden", pair.a, pair.b, 2.0, pair.base)
    return Adapter([factor], lambda a, generator: torch.randn(a.shape, generator=generator))


def _plan(index: int, spec: Any, task: Tiny, module: torch.nn.Module, moments: str) -> Plan:
    about = Phase(getattr(spec, "name", "main" if index == 0 else f"phase{index}"), index, spec.epochs, task.micro)
    about = replace(about, seed=getattr(spec, "seed", None), adapts=task.lora)
    phase = SimpleNamespace(name=about.name, train=spec, moments=moments)
    opening = partial(open_phase, phase, task, module)
    return Plan(about, task, spec, getattr(spec, "fresh", True), opening, getattr(spec, "silent", False))


def finish(kernel: Kernel) -> Kernel:
    """Train to the end, with the log on disk."""
    kernel.run()
    kernel.log.flush(sync=True)
    kernel.keeper.heartbeat.stop()
    return kernel


def bits(kernel: Kernel) -> dict[str, bytes]:
    """Return every weight, buffer and moment as bytes."""
    found = {name: value.numpy().tobytes() for name, value in kernel.module.state_dict().items()}
    for p, state in kernel.optimizer.state.items():
        name = resume.names(kernel.module)[id(p)]
        found |= {f"{name}/{k}": v.numpy().tobytes() for k, v in state.items() if isinstance(v, torch.Tensor)}
    return found
