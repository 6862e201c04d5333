"""The key of a run's first phases: a hash of all that decides what a run holds when they are over."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .build import Built
from .checkpoint import digest
from .host import Registry, closes
from .order import Order
from .provenance import base_weights, versions


def phase_keys(order: Order, built: Built, registry: Registry) -> list[str]:
    """Return a key for the first phase, for the first two, and so on to all of them.

    What is built stands for its own settings: the weights that the run begins with are hashed, whatever seed or file
    they came from. So is the code of tasks and plugins, whose authors change it more often than its version.
    """
    run = order.run
    last = built.plans[-1].task
    common = {
        "order": list(run.tasks),
        "metrics": {name: asdict(metric) for name, metric in last.metrics.items()},
        "adapted": built.adapter is not None,
        "weights": digest(base_weights(built)),
        "threads": order.threads,
        "machine": _machine(built.device),
        "versions": versions(),
    }
    tasks = [registry.tasks[entry.kind] for entry in run.tasks.values()]
    apart = [name for name in run.plugins if closes(registry.plugins[name])]
    plugins = [registry.plugins[name] for name in run.plugins if name not in apart]
    keys = []
    for count in range(1, len(run.phases) + 1):
        asked = [] if silent(run, count) else plugins
        keys.append(
            run.identity(
                order.fingerprints,
                built.device.type,
                order.refs,
                count,
                apart,
                **common,
                code=_code([*tasks, *asked]),
            )
        )
    return keys


def silent(run: Any, count: int) -> bool:
    """Say whether no plugin is asked in the first `count` phases."""
    return all(phase.plugins == "none" for phase in run.phases[:count])


def whole(run: Any, count: int) -> bool:
    """Say whether an adapter stands aside in the first `count` phases."""
    return all(phase.trains == "all" for phase in run.phases[:count])


def _machine(device: torch.device) -> list[str]:
    """Name what chooses the kernels: they round differently from one kind of processor to the next."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device)]
    return [platform.machine(), torch.backends.cpu.get_cpu_capability()]


def _code(classes: Iterable[type]) -> str:
    packages = {_package(kind.__module__) for kind in classes} | {_package(__name__)}
    return hashlib.sha256("".join(_sources(name) for name in sorted(packages)).encode()).hexdigest()


def _package(module: str) -> str:
    """Return the outermost package with files of its own that a module lies in; the module where there is none."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return next(name for name in names if getattr(sys.modules.get(name), "__file__", None) or name == module)


@cache
def _sources(package: str) -> str:
    """Return a hash over the sources of a package, or of a module that lies in none."""
    found, whole = getattr(sys.modules.get(package), "__file__", None), hashlib.sha256(package.encode())
    if found is None:
        return whole.hexdigest()
    path = Path(found)
    paths = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    for one in paths:
        whole.update(f"{one.relative_to(path.parent)}\0".encode() + one.read_bytes())
    return whole.hexdigest()
