"""What one arm does to a run at one point: the validated model, tasks, phases and plugin settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from .nodes import Node, shown
from .phases import PhaseSpec, read_phases
from .spec_problems import Checker, missing, unknown
from .text import printable, slug_problem
from .train_spec import Resolved, Settings

ON_ERROR = "on_error"  # beside the settings of any plugin: what becomes of a run in which it fails


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
    adapter: Any
    tasks: Mapping[str, TaskEntry]
    phases: tuple[PhaseSpec, ...]
    plugins: Mapping[str, Any]
    on_error: Mapping[str, str]
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
    adapter = _adapter(tree, first, checker)
    phases = read_phases(tree, _given(tree) is not None, checker, resolved)
    plugins, on_error = _plugins(tree, registry, checker)
    return Treatment(arm, point, model, adapter, tasks, tuple(phases), plugins, on_error, tree)


def _adapter(tree: Node, first: Any, checker: Checker) -> Any:
    """Return the validated settings of the run's adapter, None where it has none."""
    node = _given(tree)
    if node is None or first is None:
        return None
    if not hasattr(first, "Adapter"):
        checker.add(node.problem("the models of this task take no adapter; remove it", at_key=True))
        return None
    return checker.check(first.Adapter, node, f"task class {first.__name__}")


def _given(tree: Node) -> Node | None:
    node = tree.mapping.get("adapter")
    return None if node is None or node.value is None else node


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


def _plugins(tree: Node, registry: Registry, checker: Checker) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the settings of each plugin, and of those that are not to end the run with an error, what happens then."""
    node = tree.mapping.get("plugins")
    if node is None:
        return {}, {}
    if not isinstance(node.value, dict):
        checker.add(node.problem(f"must be a mapping of plugin names to settings, given {shown(node.data)}"))
        return {}, {}
    found: dict[str, Any] = {}
    on_error: dict[str, str] = {}
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
            policy = settings.mapping.get(ON_ERROR)
            own = replace(
                settings,
                value={key: child for key, child in settings.mapping.items() if key != ON_ERROR},
                removed={key: child for key, child in settings.removed.items() if key != ON_ERROR},
            )
            found[name] = checker.check(config, own, f"plugin {name}")
            said = checker.check(Literal["fail", "disable"], policy) if policy is not None else "fail"
            on_error |= {name: said} if said == "disable" else {}
    return dict(sorted(found.items())), dict(sorted(on_error.items()))
