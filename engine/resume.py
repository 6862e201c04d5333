"""What a checkpoint holds of a run, and how a run is put back to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import join_state, split_state
from .optim import optimizer_state, restore_optimizer
from .task import Evaluation


@dataclass(frozen=True)
class Captured:
    """A run's state as safetensors and JSON can hold it."""

    tensors: dict[str, Tensor]
    record: dict[str, Any]


def trained(module: torch.nn.Module, moved: Collection[str] = ()) -> dict[str, Tensor]:
    """Return trained parameters and buffers by name, aliases of tied weights included; what is frozen stays out.

    `moved` names what an earlier phase trained or a merge changed: frozen now, and yet not as it was built.
    """
    gone = {id(p) for name, p in module.named_parameters() if not (p.requires_grad or name in moved)}
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in gone}
    return {name: value for name, value in module.state_dict().items() if name not in frozen}


def names(module: torch.nn.Module) -> dict[int, str]:
    """Map the identity of each parameter to its name."""
    return {id(p): name for name, p in module.named_parameters()}


def module_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's part of a checkpoint's tensors."""
    return {name.removeprefix("module/"): value for name, value in tensors.items() if name.startswith("module/")}


def capture(kernel: Any, keeper: Any) -> Captured:
    """Gather everything that a resumed run needs: position, weights, moments, memories, sums, series lengths."""
    state = {
        "optimizer": optimizer_state(kernel.optimizer, names(kernel.module)) if kernel.optimizer else {},
        "tasks": {name: dict(task.state()) for name, task in kernel.tasks.items()},
        "plugins": kernel.host.state(),
        "remembered": kernel.remembered,
        "snapshots": kernel.snapshots,
        "increments": keeper.increments.state(),
        "adapter_start": kernel.adapter.start if kernel.adapter else {},
        "evaluations": {split: _packed(one) for split, one in kernel.evaluations.items()},
    }
    tree, tensors = split_state(state)
    record = {
        "state": tree,
        "position": asdict(kernel.position),
        "asked_accum": kernel.asked_accum,
        "moved": sorted(kernel.moved),
        "merged": sorted(keeper.merged),
        "matrix": kernel.matrix.document() if kernel.matrix is not None else None,
        "recorder": kernel.log.memory(),
        "best": keeper.best,
        "series": kernel.log.series.lengths(),
        "events": kernel.log.events.seq,
    }
    own = {f"module/{name}": value for name, value in trained(kernel.module, kernel.moved).items()}
    return Captured({**own, **{f"state/{name}": value for name, value in tensors.items()}}, record)


def take_up(kernel: Any, keeper: Any, loaded: Any | None) -> None:
    """Go on from a checkpoint, or anew where there is none; what the killed run said after it is superseded."""
    events = kernel.log.events
    if loaded is not None:
        reinstate(kernel, keeper, loaded)
        events.resumed(loaded.path.name, loaded.record["events"] - 1, kernel.position.step, loaded.skipped)
    elif events.seq:
        events.resumed("", -1, 0)
    keeper.drop_old_requests(kernel.position.step)


def reinstate(kernel: Any, keeper: Any, loaded: Any, own: Collection[str] = ()) -> None:
    """Put a run back where a checkpoint was taken; the next thing it does is what the killed one would have done.

    Of another run's checkpoint, the parts of the state that `own` names are left as this run has them.
    """
    record = loaded.record
    kernel.module.load_state_dict(module_tensors(loaded.tensors), strict=False)
    held = {n.removeprefix("state/"): t for n, t in loaded.tensors.items() if n.startswith("state/")}
    state = join_state(record["state"], held)
    for name, value in record["position"].items():
        setattr(kernel.position, name, value)
    kernel.asked_accum, kernel.moved = record["asked_accum"], set(record["moved"])
    keeper.merged = set(record.get("merged", ()))
    kernel.remembered, kernel.snapshots = state["remembered"], state.get("snapshots", {})
    keeper.increments.restore(state.get("increments", {}))
    kernel.evaluations = {split: _unpacked(split, one) for split, one in state["evaluations"].items()}
    if kernel.adapter and "adapter_start" not in own:
        kernel.adapter.start = {name: t.to(kernel.device) for name, t in state["adapter_start"].items()}
    if kernel.matrix is not None and record["matrix"] is not None:
        kernel.matrix = type(kernel.matrix).from_document(record["matrix"])
    if kernel.position.stage in ("train", "evaluate"):
        kernel.open(kernel.plans[kernel.position.phase])
    elif state["optimizer"] and kernel.position.phase > 0:
        kernel.open(kernel.plans[kernel.position.phase - 1])
    if kernel.optimizer is not None:
        restore_optimizer(kernel.optimizer, state["optimizer"], names(kernel.module))
    for name, task in kernel.tasks.items():
        task.restore(state["tasks"].get(name, {}))
    if "plugins" not in own:
        kernel.host.restore(state["plugins"])
    kernel.log.restore(record["recorder"])
    keeper.best = record["best"]


def _packed(one: Evaluation) -> dict[str, Any]:
    numbers = {"loss_sum": one.loss_sum, "count": one.count, **{f"metric.{k}": v for k, v in one.metrics.items()}}
    numbers |= {f"per.{k}": v for k, v in one.per.items()}
    return {"ids": list(one.ids), **{name: torch.from_numpy(np.array(value)) for name, value in numbers.items()}}


def _unpacked(split: str, held: Mapping[str, Any]) -> Evaluation:
    arrays = {name: value.numpy() for name, value in held.items() if name != "ids"}
    metrics = {name.removeprefix("metric."): value for name, value in arrays.items() if name.startswith("metric.")}
    per = {name.removeprefix("per."): value for name, value in arrays.items() if name.startswith("per.")}
    return Evaluation(split, held["ids"], arrays["loss_sum"], arrays["count"], metrics, per)
