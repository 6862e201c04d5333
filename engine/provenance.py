"""What a run was made of: versions, hardware, and hashes of weights, data order and evaluation items."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from .build import Built
from .checkpoint import digest
from .order import Order
from .rundir import RunDir, read_json, write_json

PACKAGES = ("ctr-engine", "torch", "torchvision", "transformers", "peft", "pluggy", "pydantic", "numpy", "safetensors")


def versions() -> dict[str, str | None]:
    """Return the version of each package that takes part in training; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES}


def write_provenance(order: Order, run: RunDir, built: Built) -> None:
    """Write `provenance.json` before anything is trained."""
    order_hash, item_hash = hashlib.sha256(), hashlib.sha256()
    for plan in built.plans:
        plan.task.begin(plan.phase)
        for epoch in range(plan.train.epochs):
            order_hash.update(np.ascontiguousarray(plan.task.order(epoch)).tobytes())
    for name, task in built.tasks.items():
        for split in ("val", "test"):
            item_hash.update(f"{name}/{split}:{list(task.items(split))}".encode())
    provenance = {
        "identity": order.identity,
        "fingerprints": dict(order.fingerprints),
        "hashes": {
            "weights": digest(built.module.state_dict()),
            "base": digest(base_weights(built)),
            "data_order": order_hash.hexdigest(),
            "evaluation_items": item_hash.hexdigest(),
        },
        "versions": {"python": platform.python_version(), **versions()},
        "git": _git(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "device": torch.cuda.get_device_name(0) if built.device.type == "cuda" else platform.processor() or "cpu",
        },
        "threads": order.threads,
        "determinism": order.run.phases[0].train.determinism,
        "device": built.device.type,
        "parameters": sum(p.numel() for p in built.module.parameters()),
    }
    write_json(run.provenance, provenance)


def base_weights(built: Built) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name, those of an adapter left out."""
    gone = {id(tensor) for tensor in built.adapter.tensors()} if built.adapter is not None else set()
    named = [
        *built.module.named_parameters(remove_duplicate=False),
        *built.module.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor for name, tensor in named if id(tensor) not in gone}


def read_provenance(run: RunDir) -> dict[str, Any]:
    """Return what `provenance.json` holds; empty where there is none."""
    found = read_json(run.provenance)
    return found if isinstance(found, dict) else {}


def add_provenance(run: RunDir, **more: Any) -> None:
    """Say more about where a run comes from."""
    write_json(run.provenance, {**read_provenance(run), **more})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Return commit and cleanliness of the folder that ctr was started in; None outside a repository."""

    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None
