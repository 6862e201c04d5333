"""The stretches of a run: what a study says about each, and each with every setting resolved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from .nodes import Node, shown
from .overlay import merge
from .spec_problems import Checker, missing, unknown
from .text import slug_problem
from .train_spec import MATCHED, Resolved, Settings, TrainSpec


class PhaseEntry(Settings):
    """A phase as a study names it."""

    name: str | None = Field(default=None, description="name of the phase; null takes the task's")
    task: str = Field(description="the task trained on; one of `tasks`")
    trains: Literal["all", "adapter"] | None = Field(
        default=None,
        description="train all weights (an adapter stands aside) or the adapter alone; null: the adapter if any",
    )
    adapter: Literal["fresh", "continued"] = Field(
        default="fresh", description="begin with a new adapter, or go on with it"
    )
    plugins: Literal["all", "none"] = Field(
        default="all", description="none: no plugin is asked in this phase, as while a base is trained for all arms"
    )
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(
        default=None, description="draw this phase's data order and dropout from this seed; null: from the run's"
    )
    moments: Literal["clear", "keep"] = Field(
        default="clear", description="begin with a new optimizer, or keep its memory"
    )
    train: dict[str, Any] = Field(default_factory=dict, description="what differs from the study's `train`; any key")


class PhaseSpec(Resolved):
    """A phase with every setting resolved."""

    name: str
    task: str
    trains: Literal["all", "adapter"]
    adapter: Literal["fresh", "continued"]
    plugins: Literal["all", "none"]
    seed: int | None = None
    moments: Literal["clear", "keep"]
    train: TrainSpec


def read_phases(tree: Node, adapter: bool, checker: Checker, resolved: bool) -> list[PhaseSpec]:
    """Return the phases of a run's tree, each with all its settings; one phase over all where none is named.

    `adapter` says whether the run has one. In a `resolved` tree every phase holds the settings of the whole study too.
    """
    trains: Literal["all", "adapter"] = "adapter" if adapter else "all"
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
        return [_phase(PhaseEntry(task=name), name, trains, train)]
    if not node.items:
        checker.add(node.problem(f"must be a list of one or more phases, given {shown(node.data)}"))
        return []
    found: list[PhaseSpec] = []
    for index, item in enumerate(node.items):
        entry: PhaseEntry | None = checker.check(PhaseEntry, item)
        if not resolved:
            check_matched(item.mapping.get("train"), checker)
        train = _train(tree, item.mapping.get("train"), checker)
        if entry is not None and train is not None:
            name = entry.name or _fresh_name(entry.task, [phase.name for phase in found])
            found.append(_phase(entry, name, trains, train))
            _check_name(item, found, tasks, checker)
            _check_start(item, index, found, adapter, checker)
    return found


def _phase(entry: PhaseEntry, name: str, trains: Literal["all", "adapter"], train: TrainSpec) -> PhaseSpec:
    about = entry.model_dump(exclude={"name", "train", "trains"})
    return PhaseSpec(name=name, trains=entry.trains or trains, train=train, **about)


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


def _check_name(item: Node, phases: list[PhaseSpec], tasks: Mapping[str, Node], checker: Checker) -> None:
    phase, at = phases[-1], item.mapping
    if why := slug_problem(phase.name):
        checker.add(at.get("name", item).problem(f"as the name of a phase this {why}"))
    if phase.name in [earlier.name for earlier in phases[:-1]]:
        checker.add(at.get("name", item).problem(f"a phase {shown(phase.name)} exists already"))
    if tasks and phase.task not in tasks:
        checker.add(at["task"].problem(unknown(phase.task, tasks, "task")))


def _check_start(item: Node, index: int, phases: list[PhaseSpec], adapter: bool, checker: Checker) -> None:
    phase, at = phases[-1], item.mapping
    if phase.trains == "adapter" and not adapter:
        checker.add(at["trains"].problem("the run has no adapter; use all, or add one: adapter: {kind: lora, ...}"))
    if phase.adapter == "continued" and adapter and all(earlier.trains == "all" for earlier in phases[:-1]):
        checker.add(at["adapter"].problem("no phase before this one has an adapter to go on with"))
    elif phase.adapter == "continued" and index == 0:
        checker.add(at["adapter"].problem("the first phase has no adapter to go on with"))
    if phase.moments == "keep" and index == 0:
        checker.add(at["moments"].problem("the first phase has no optimizer whose memory it could keep"))
    if phase.moments == "keep" and len(phases) > 1:
        kinds = [which.train.optimizer.kind for which in phases[-2:]]
        if kinds[0] != kinds[1]:
            text = f"the phase before trains with {kinds[0]}, whose memory {kinds[1]} cannot keep"
            checker.add(at["moments"].problem(text))
