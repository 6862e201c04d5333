"""What one arm does to a run at one point: the validated model, tasks, phases and plugin settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from .nodes import Node, shown
from .overlay import merge
from .spec_problems import Checker, missing, unknown
from .text import printable, slug_problem
from .train_spec import MATCHED, Settings, TrainSpec


class Registry(Protocol):
    """What is installed, by name; `broken` holds the load error of what could not be imported."""

    @property
    def tasks(self) -> Mapping[str, Any]: ...

    @property
    def plugins(self) -> Mapping[str, Any]: ...

    @property
    def broken(self) -> Mapping[str, str]: ...


class NoConfig(Settings):
    """The settings of a class that has none."""


class PhaseEntry(Settings):
    """A phase as a study names it."""

    name: str | None = Field(default=None, description="name of the phase; null takes the task's")
    task: str = Field(description="the task trained on; one of `tasks`")
    trains: Literal["all", "adapter"] = Field(default="all", description="train all weights, or the adapter alone")
    adapter: Literal["fresh", "continued"] = Field(
        default="fresh", description="begin with a new adapter, or go on with it"
    )
    moments: Literal["clear", "keep"] = Field(
        default="clear", description="begin with a new optimizer, or keep its memory"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the study's `train`; any key")


class Resolved(BaseModel):
    """The base of what is made from valid settings: frozen, and holding objects of foreign classes as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class PhaseSpec(Resolved):
    """A phase with every setting resolved."""

    name: str
    task: str
    trains: Literal["all", "adapter"]
    adapter: Literal["fresh", "continued"]
    moments: Literal["clear", "keep"]
    train: TrainSpec


class TaskEntry(Resolved):
    """A task by its kind, with its validated settings."""

    kind: str
    config: Any


@dataclass(frozen=True)
class Treatment:
    """An arm at a point. `node` is the tree it was made from, for problems found later."""

    arm: str
    point: Mapping[str, Any]
    model: Any
    tasks: Mapping[str, TaskEntry]
    phases: tuple[PhaseSpec, ...]
    plugins: Mapping[str, Any]
    node: Node


def read_treatment(
    arm: str,
    point: Mapping[str, Any],
    tree: Node,
    registry: Registry,
    checker: Checker,
    *,
    resolved: bool = False,
) -> Treatment:
    """Validate a run's tree; what it returns is whole only if `checker` found nothing.

    In a `resolved` tree every phase holds all its settings, those of the whole study included.
    """
    tasks, first = _tasks(tree, registry, checker)
    model = None
    if "model" not in tree.mapping:
        checker.add(missing(tree, "model", "what is trained, such as {kind: small_resnet, width: 8}"))
    elif first is not None:
        model = checker.check(getattr(first, "Model", NoConfig), tree.mapping["model"], f"task class {first.__name__}")
    phases = _phases(tree, checker, resolved)
    plugins = _plugins(tree, registry, checker)
    return Treatment(arm, point, model, tasks, tuple(phases), plugins, tree)


def _tasks(tree: Node, registry: Registry, checker: Checker) -> tuple[dict[str, TaskEntry], Any]:
    node = tree.mapping.get("tasks")
    if node is None:
        checker.add(missing(tree, "task", "what is trained on, such as {kind: image_classification, ...}"))
        return {}, None
    if not isinstance(node.value, dict) or not node.value:
        checker.add(node.problem(f"must be a mapping of task names to tasks, given {shown(node.data)}"))
        return {}, None
    found: dict[str, TaskEntry] = {}
    first: Any = None
    for number, (name, entry) in enumerate(node.mapping.items()):
        if why := slug_problem(name):
            checker.add(entry.problem(f"as the name of a task this {why}", at_key=True))
        kind = _class_of(entry, registry, checker)
        first = kind if number == 0 else first
        if kind is not None:
            rest = replace(entry, value={key: child for key, child in entry.mapping.items() if key != "kind"})
            config = checker.check(getattr(kind, "Config", NoConfig), rest, f"task {name}")
            found[name] = TaskEntry(kind=str(entry.mapping["kind"].value), config=config)
    return found, first


def _class_of(entry: Node, registry: Registry, checker: Checker) -> Any:
    if not isinstance(entry.value, dict):
        checker.add(entry.problem(f"must be a mapping with the kind of the task, given {shown(entry.data)}"))
        return None
    kind = entry.mapping.get("kind")
    if kind is None:
        checker.add(missing(entry, "kind", f"one of {', '.join(sorted(registry.tasks))}"))
    elif not isinstance(kind.value, str) or kind.value not in registry.tasks:
        checker.add(kind.problem(_not_installed(kind.data, "task", registry.tasks, registry.broken)))
    else:
        return registry.tasks[kind.value]
    return None


def _not_installed(name: Any, what: str, known: Mapping[str, Any], broken: Mapping[str, str]) -> str:
    if isinstance(name, str) and name in broken:
        return f"{what} {shown(name)} is installed but cannot be loaded: {printable(broken[name], 300)}"
    return unknown(name, known, what) if isinstance(name, str) else f"must name a {what}, given {shown(name)}"


def _plugins(tree: Node, registry: Registry, checker: Checker) -> dict[str, Any]:
    node = tree.mapping.get("plugins")
    if node is None:
        return {}
    if not isinstance(node.value, dict):
        checker.add(node.problem(f"must be a mapping of plugin names to settings, given {shown(node.data)}"))
        return {}
    found: dict[str, Any] = {}
    for name, gone in node.removed.items():
        if name not in registry.plugins and name not in registry.broken:
            checker.add(gone.problem(unknown(name, registry.plugins, "plugin"), at_key=True))
    for name, settings in node.mapping.items():
        if name not in registry.plugins:
            checker.add(
                settings.problem(_not_installed(name, "plugin", registry.plugins, registry.broken), at_key=True)
            )
        elif not isinstance(settings.value, dict):
            text = f"must be a mapping of settings, {{}} for none, given {shown(settings.data)}"
            checker.add(settings.problem(text))
        else:
            config = getattr(registry.plugins[name], "Config", NoConfig)
            found[name] = checker.check(config, settings, f"plugin {name}")
    return dict(sorted(found.items()))


def _phases(tree: Node, checker: Checker, resolved: bool) -> list[PhaseSpec]:
    tasks = tree.mapping["tasks"].mapping if "tasks" in tree.mapping else {}
    node = tree.mapping.get("phases")
    if node is None:
        train = _train(tree, None, checker)
        if len(tasks) > 1:
            text = "a list that says in which order the tasks are trained, such as [{task: A}, {task: B}]"
            checker.add(missing(tree, "phases", text))
        name = next(iter(tasks), "main")
        if train is None:
            return []
        return [PhaseSpec(name=name, task=name, trains="all", adapter="fresh", moments="clear", train=train)]
    if not node.items:
        checker.add(node.problem(f"must be a list of one or more phases, given {shown(node.data)}"))
        return []
    found: list[PhaseSpec] = []
    for item in node.items:
        entry: PhaseEntry | None = checker.check(PhaseEntry, item)
        if not resolved:
            check_matched(item.mapping.get("train"), checker)
        train = _train(tree, item.mapping.get("train"), checker)
        if entry is not None and train is not None:
            about = entry.model_dump(exclude={"name", "train"})
            name = entry.name or _fresh_name(entry.task, [phase.name for phase in found])
            found.append(PhaseSpec(name=name, train=train, **about))
            _check_phase(item, found, tasks, checker)
    return found


def _fresh_name(task: str, taken: list[str]) -> str:
    return next(name for i in range(1, len(taken) + 2) if (name := task if i == 1 else f"{task}-{i}") not in taken)


def _train(tree: Node, over: Node | None, checker: Checker) -> TrainSpec | None:
    base = tree.mapping.get("train")
    if over is not None and isinstance(over.value, dict):
        base = merge(base, over) if base else over
    if base is None:
        checker.add(missing(tree, "train", "how to train, such as {epochs: 12, micro_batch: 128, optimizer: ...}"))
        return None
    train: TrainSpec | None = checker.check(TrainSpec, base)
    return train


def check_matched(train: Node | None, checker: Checker) -> None:
    """Refuse, in an arm or a phase, what would make the runs of a study unlike each other."""
    for key in MATCHED:
        if train is not None and key in train.mapping:
            checker.add(train.mapping[key].problem("is one for the whole study; set it in its own train", at_key=True))


def _check_phase(item: Node, phases: list[PhaseSpec], tasks: Mapping[str, Node], checker: Checker) -> None:
    phase, before = phases[-1], phases[:-1]
    at = item.mapping
    if why := slug_problem(phase.name):
        checker.add(at.get("name", item).problem(f"as the name of a phase this {why}"))
    if phase.name in [earlier.name for earlier in before]:
        checker.add(at.get("name", item).problem(f"a phase {shown(phase.name)} exists already"))
    if tasks and phase.task not in tasks:
        checker.add(at["task"].problem(unknown(phase.task, tasks, "task")))
    if phase.adapter == "continued" and not before:
        checker.add(at["adapter"].problem("the first phase has no adapter to go on with"))
    if phase.moments == "keep" and not before:
        checker.add(at["moments"].problem("the first phase has no optimizer whose memory it could keep"))
    if phase.moments == "keep" and before and before[-1].train.optimizer.kind != phase.train.optimizer.kind:
        text = (
            f"the phase before trains with {before[-1].train.optimizer.kind}, whose memory {phase.train.optimizer.kind}"
        )
        checker.add(at["moments"].problem(f"{text} cannot keep"))
