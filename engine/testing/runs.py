"""Whole runs in a few milliseconds: the real kernel, log and keeper around a tiny task and a host of given plugins."""

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
from ctr.engine.series import SeriesWriter
from ctr.engine.task import Phase

from .tiny import Tiny

OPEN: list[Kernel] = []


def train_spec(**more: Any) -> Any:
    """Return the settings of a phase as the kernel reads them."""
    optimizer = SimpleNamespace(
        kind=more.pop("optimizer", "sgd"), base_lr=more.pop("base_lr", 0.1), groups={},
        model_dump=lambda exclude: more.pop("settings", {"momentum": 0.9}),
    )  # fmt: skip
    schedule = SimpleNamespace(kind="cosine", warmup_epochs=1, per=more.pop("per", "epoch"))
    defaults: dict[str, Any] = {"epochs": 3, "grad_accum": 1, "clip_norm": None, "reset_at": []}
    return SimpleNamespace(optimizer=optimizer, schedule=schedule, **{**defaults, **more})


def make(
    folder: Path,
    plugins: Mapping[str, Any] | None = None,
    *,
    task: Any = None,
    phases: Sequence[Any] | None = None,
    seed: int = 3,
    checkpoint: Mapping[str, Any] | None = None,
    log_steps: int = 64,
    stop: threading.Event | None = None,
    select: str = "val.loss",
    moments: str = "clear",
    needs: Mapping[str, frozenset[int]] | None = None,
    device: str = "cpu",
    generators: Mapping[str, torch.Generator] | None = None,
    on_error: Mapping[str, str] | None = None,
    **train: Any,
) -> Kernel:
    """Make a run in `folder`, resumed from its newest checkpoint where there is one.

    `plugins` are instances by name, and nothing else is hosted; `generators` are those they were made with, which the
    host seeds by position; `needs` is what they ask of a forward pass; `train` are settings of training such as
    `epochs`, `grad_accum` and `reset_at`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    task = task or Tiny(seed)
    if where.type != "cpu":
        task.to(where)
    module = task.build().to(where)
    torch.use_deterministic_algorithms(True)
    every = {"every_steps": None, "every_epochs": None, "every_minutes": None, **(checkpoint or {})}
    run, store = RunDir(folder), CheckpointStore(folder)
    heartbeat = Heartbeat(run.path, interval=60.0)
    keeper = Keeper(
        run, store, heartbeat, checkpoint=SimpleNamespace(**every), updates=1, look_every=0.0,
        stop=stop or threading.Event(), select=SimpleNamespace(on=select, better="lower"),
    )  # fmt: skip
    plugins = plugins or {}
    own = {name: (generators or {}).get(name) or torch.Generator(where) for name in plugins}
    specs = phases or [train_spec(**train)]
    plans = [_plan(index, spec, task, module, moments) for index, spec in enumerate(specs)]
    kernel = Kernel(
        plans=plans, tasks={"main": task}, module=module, host=Host(plugins, own, seed, on_error), log=None,
        keeper=keeper, seed=seed, device=where, adapter=_adapter(module, task), matrix=Matrix(["main"]),
        needs=needs or {},
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
    """Close the files of every run made so far: one that was made to raise closes nothing itself."""
    while OPEN:
        kernel = OPEN.pop()
        kernel.keeper.heartbeat.stop()
        kernel.log.series.close()
        kernel.log.events.close()


def _adapter(module: Any, task: Any) -> Adapter | None:
    if not task.lora:
        return None
    pair = task.pair(module)
    factor = Factor("hidden", pair.a, pair.b, 2.0, pair.base)
    return Adapter([factor], lambda a, generator: torch.randn(a.shape, generator=generator))


def _plan(index: int, spec: Any, task: Any, module: torch.nn.Module, moments: str) -> Plan:
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
