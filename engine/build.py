"""From a resolved run to a kernel that can train it: device, exactness, tasks, model, plugins, optimizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .adapters import Adapter
from .errors import CtrError, MissingDependency, PluginError, Problem, SpecError, UsageError
from .host import Host, Registry
from .kernel import Plan
from .matrix import Matrix
from .optim import Rates, build_optimizer, keep_moments
from .seeding import mix, stream
from .task import Context, Phase
from .text import printable


@dataclass
class Built:
    """The parts of a run that do not depend on where it stands."""

    plans: list[Plan]
    tasks: dict[str, Any]
    module: torch.nn.Module
    host: Host
    adapter: Adapter | None
    matrix: Matrix | None
    device: torch.device
    needs: dict[str, frozenset[int]]


def device_of(name: str) -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `mps` means here; one that is absent is a `UsageError`."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    if (name == "cuda" and not cuda) or (name == "mps" and not mps):
        raise UsageError(f"train.device is {name}, but this machine has none; use auto or cpu")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


def settle_exactness(determinism: str, threads: int) -> None:
    """Make arithmetic repeatable: threads fixed, deterministic algorithms, TF32 off; `fast` lifts the last two."""
    torch.set_num_threads(threads)
    strict = determinism == "strict"
    if strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(strict)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not strict
    torch.backends.cuda.matmul.allow_tf32 = not strict
    torch.backends.cudnn.allow_tf32 = not strict


def build(run: Any, folder: Path, registry: Registry, sources: Mapping[str, Path]) -> Built:
    """Build every part of a run; `sources` holds the folder of the run that a plugin's `RunRef` points to."""
    first = run.phases[0].train
    device = device_of(first.device)
    context = Context(run.seed, device, folder / "data")
    tasks = {name: registry.tasks[entry.kind](entry.config, context) for name, entry in run.tasks.items()}
    module = _module(run, tasks, device)
    host, needs = _plugins(run, registry, sources, device, tasks)
    adapter = _adapter(tasks, module)
    _check_plugins(run, registry, adapter)
    plans = [
        _plan(index, run.phases, tasks[phase.task], module, adapter is not None)
        for index, phase in enumerate(run.phases)
    ]
    trains = {phase.name: phase.task for phase in run.phases}
    measured = [name for name, task in tasks.items() if not getattr(task, "scored_once", False)]
    matrix = Matrix(tasks=measured, metric="loss", better="lower", phases=trains) if measured else None
    return Built(plans, tasks, module, host, adapter, matrix, device, needs)


def _module(run: Any, tasks: Mapping[str, Any], device: torch.device) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(mix(stream(run.seed, "init")))
    torch.default_generator.manual_seed(mix(stream(run.seed, "init")))
    module: torch.nn.Module | None = None
    for task in tasks.values():
        if module is None:
            module = task.build(run.model, run.adapter, generator)
        else:
            task.share(module)
    assert module is not None
    return module.to(device)


def _adapter(tasks: Mapping[str, Any], module: torch.nn.Module) -> Adapter | None:
    make = getattr(next(iter(tasks.values())), "adapter", None)
    found: Adapter | None = make(module) if make else None
    return found


def _plugins(
    run: Any, registry: Registry, sources: Mapping[str, Path], device: torch.device, tasks: Mapping[str, Any]
) -> tuple[Host, dict[str, frozenset[int]]]:
    plugins: dict[str, Any] = {}
    generators: dict[str, torch.Generator] = {}
    needs: dict[str, set[int]] = {}
    for name in sorted(run.plugins):
        config, kind = run.plugins[name], registry.plugins[name]
        generators[name] = torch.Generator(device=device).manual_seed(mix(stream(run.seed, f"plugin:{name}")))
        more = {"source": sources[name]} if name in sources else {}
        plugins[name] = _made(name, "be made", partial(kind, config, generators[name], **more))
        for what, layers in _asked(name, kind, config).items():
            _check_needs(name, what, tasks)
            needs.setdefault(what, set()).update(layers)
    return Host(plugins, generators, run.seed, run.on_error), {
        what: frozenset(layers) for what, layers in needs.items()
    }


def _made(plugin: str, what: str, make: Callable[[], Any]) -> Any:
    """Return what a plugin's own code makes, or say whose code it was that raised."""
    try:
        return make()
    except CtrError:
        raise
    except ImportError as error:
        raise MissingDependency(f"plugin {plugin} needs a package that is not installed: {error}") from error
    except Exception as error:
        text = f"plugin {plugin} could not {what}: {type(error).__name__}: {printable(error, 500)}"
        raise PluginError(text, plugin=plugin) from error


def _asked(plugin: str, kind: Any, config: Any) -> Mapping[str, Iterable[int]]:
    asked = _made(plugin, "say what it needs", partial(kind.needs, config)) if hasattr(kind, "needs") else {}
    if not isinstance(asked, Mapping) or not all(isinstance(layers, Iterable) for layers in asked.values()):
        text = f"plugin {plugin}: needs answered {printable(asked, 80)}; a map from a need to layers is expected"
        raise PluginError(text, plugin=plugin)
    return asked


def _check_needs(plugin: str, what: str, tasks: Mapping[str, Any]) -> None:
    for name, task in tasks.items():
        if what not in task.provides:
            has = ", ".join(sorted(task.provides)) or "nothing"
            raise PluginError(f"plugin {plugin} needs {what}, but task {name} provides {has}", plugin=plugin)


def _check_plugins(run: Any, registry: Registry, adapter: Adapter | None) -> None:
    """Ask each plugin whose class can tell why its settings cannot act in this run; nothing has been trained yet."""
    problems = []
    for name in sorted(run.plugins):
        judge = getattr(registry.plugins[name], "misfit", None)
        why = _made(name, "judge the run", partial(judge, run.plugins[name], run, adapter)) if judge else None
        if why is not None:
            problems.append(Problem("spec", 0, 0, f"plugins.{name}", printable(why, 500)))
    if problems:
        raise SpecError(problems)


def _plan(index: int, phases: Sequence[Any], task: Any, module: torch.nn.Module, has_adapter: bool) -> Plan:
    phase = phases[index]
    train, adapts = phase.train, phase.trains == "adapter"
    about = Phase(
        phase.name, index, train.epochs, train.micro_batch, train.epoch_batches,
        seed=phase.seed, adapts=adapts, bf16=train.precision == "bf16",
        checkpointing=train.gradient_checkpointing, compile=train.compile,
        turn=sum(before.task == phase.task and before.trains == "adapter" for before in phases[:index]),
    )  # fmt: skip
    fresh = phase.adapter == "fresh" and (adapts or not has_adapter)
    opening = partial(open_phase, phase, task, module)
    return Plan(about, task, train, fresh, opening, silent=phase.plugins == "none")


def open_phase(phase: Any, task: Any, module: torch.nn.Module, before: Any) -> tuple[Any, Rates]:
    """Make the optimizer and the base rates of a phase; `before` is the optimizer of the one before it, if any."""
    groups = task.groups(module)
    batches = task.batches(0)
    optimizer = build_optimizer(phase.train.optimizer, groups, getattr(task, "optimizer", None))
    if before is not None and phase.moments == "keep":
        keep_moments(before, optimizer, phase.name)
    return optimizer, Rates(phase.train, groups, batches)
