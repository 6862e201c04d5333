"""What a study's parts say about each other: arms and their points, contrasts, metrics, references between runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from .nodes import Node, shown
from .overlay import merge
from .phases import check_matched
from .points import points
from .spec_problems import Checker, missing, unknown
from .study_spec import ArmFile, CompareSpec, RunRef
from .text import slug_problem
from .treatment import Registry, Treatment, read_treatment

MAX_RUNS = 10_000
ARM_KEYS = tuple(ArmFile.model_fields)
RUN_TREE = tuple(key for key in ARM_KEYS if key not in ("task", "sweep"))
_CONTRAST = re.compile(r"(\S+) +- +(\S+)\Z")
Metrics = dict[str, dict[str, str]]


@dataclass(frozen=True)
class Comparison:
    """The contrasts as pairs of arms, and how every metric that is named is to be read."""

    contrasts: tuple[tuple[str, str], ...]
    metrics: Metrics


# ------------------------------------------------------------------------------------------------------- arms
def read_arms(root: Node, registry: Registry, checker: Checker) -> list[Treatment]:
    """Return every arm at every point; the shared part is checked even where there is no arm to share it."""
    shared = replace(root, value={key: node for key, node in root.mapping.items() if key in RUN_TREE})
    arms = root.mapping.get("arms")
    if arms is None or not arms.mapping:
        about = "the treatments by name, such as {baseline: {}}"
        given = "" if arms is None else f", given {shown(arms.data)}"
        checker.add(missing(root, "arms", about) if arms is None else arms.problem(f"must be a mapping of arms{given}"))
        read_treatment("", {}, shared, registry, checker)
        return []
    found: list[Treatment] = []
    for name, arm in arms.mapping.items():
        _check_arm(name, arm, arms, shared, checker)
        if isinstance(arm.value, dict):
            over = replace(arm, value={key: node for key, node in arm.mapping.items() if key in RUN_TREE})
            tree = merge(shared, over)
            for point in points((root.mapping.get("sweep"), arm.mapping.get("sweep")), tree, checker):
                found.append(read_treatment(name, point.data, point.applied(tree), registry, checker))
    return found


def _check_arm(name: str, arm: Node, arms: Node, shared: Node, checker: Checker) -> None:
    if why := slug_problem(name):
        checker.add(arm.problem(f"as the name of an arm this {why}", at_key=True))
    twin = next((other for other in arms.mapping if other != name and other.lower() == name.lower()), None)
    if twin is not None and list(arms.mapping).index(twin) < list(arms.mapping).index(name):
        checker.add(arm.problem(f"differs from arm {twin} in upper and lower case alone", at_key=True))
    if not isinstance(arm.value, dict):
        checker.add(arm.problem(f"must be a mapping of what differs, {{}} for nothing, given {shown(arm.data)}"))
        return
    checker.names(arm, ARM_KEYS)
    check_matched(arm.mapping.get("train"), checker)
    tasks = shared.mapping.get("tasks")
    main = arm.mapping["tasks"].mapping.get("main") if "tasks" in arm.mapping else None
    if main is not None and main.path[-1:] == ("task",) and tasks is not None and "main" not in tasks.mapping:
        text = f"task is short for tasks: {{main: ...}}, but the tasks of this study are {', '.join(tasks.mapping)}"
        checker.add(main.problem(text, at_key=True))


# -------------------------------------------------------------------------------------------------- comparison
def read_comparison(
    compare: CompareSpec, root: Node, treatments: Sequence[Treatment], registry: Registry, checker: Checker
) -> Comparison:
    """Return contrasts and metrics of a study whose arms are known."""
    node = root.mapping.get("compare", root)
    arms = list(root.mapping["arms"].mapping) if "arms" in root.mapping else []
    on = node.mapping.get("on")
    select = node.mapping["select"].mapping.get("on") if "select" in node.mapping else None
    # contrasts read the last phase, whose task alone is tested; a snapshot is selected in every phase
    last, every = metrics_of(treatments, registry, of="last"), metrics_of(treatments, registry)
    wanted = [(name, ("test", "val"), on.items[index] if on else node, last) for index, name in enumerate(compare.on)]
    wanted.append((compare.select.on, ("val", "calibration"), select or node, every))
    used: Metrics = {}
    for name, splits, at, metrics in wanted:
        found = _metric(name, splits, metrics, at, checker)
        used.update(found)
        if found:
            check_split(name.partition(".")[0], treatments, registry, at, checker)
    return Comparison(tuple(_contrasts(compare, node, arms, checker)), used)


def _contrasts(compare: CompareSpec, node: Node, arms: Sequence[str], checker: Checker) -> Iterator[tuple[str, str]]:
    if compare.contrasts is None:
        yield from ((arm, arms[0]) for arm in arms[1:])
        return
    seen: set[frozenset[str]] = set()
    for text, at in zip(compare.contrasts, node.mapping["contrasts"].items, strict=True):
        pair = contrast_of(text, at, arms, checker)
        if pair is None:
            continue
        if frozenset(pair) in seen:
            checker.add(at.problem("compares two arms that an earlier contrast compares"))
        else:
            yield pair
        seen.add(frozenset(pair))


def contrast_of(text: str, at: Node, arms: Sequence[str], checker: Checker) -> tuple[str, str] | None:
    """Return the two arms of `treated - baseline`; None, with the problem kept, where these are not two known arms."""
    match = _CONTRAST.match(text)
    if match is None:
        checker.add(at.problem(f"must be two arms joined by ' - ', such as treated - baseline, given {shown(text)}"))
        return None
    first, second = match.groups()
    wrong = next((arm for arm in (first, second) if arm not in arms), None)
    if wrong is not None:
        checker.add(at.problem(f"{shown(wrong)}: {unknown(wrong, arms, 'arm')}"))
    elif first == second:
        checker.add(at.problem(f"compares {first} with itself"))
    else:
        return first, second
    return None


def metrics_of(
    treatments: Sequence[Treatment], registry: Registry, of: Literal["every", "last"] = "every"
) -> Metrics | None:
    """Return the metrics of every task of the study, or of every last phase's task; None where one cannot be read."""
    kinds = {
        entry.kind
        for one in treatments
        for name, entry in one.tasks.items()
        if of == "every" or (one.phases and name == one.phases[-1].task)
    }
    if not kinds:
        return None
    tables = [
        {"loss": {"unit": "", "better": "lower"}}
        | {name: {"unit": m.unit, "better": m.better} for name, m in registry.tasks[kind].metrics.items()}
        for kind in sorted(kinds)
    ]
    return {name: about for name, about in tables[0].items() if all(name in table for table in tables)}


def _metric(name: str, splits: Sequence[str], metrics: Metrics | None, at: Node, checker: Checker) -> Metrics:
    if metrics is None:
        return {}
    split, _, metric = name.partition(".")
    if split in splits and metric in metrics:
        return {name: metrics[metric]}
    known = [f"{split}.{metric}" for split in splits for metric in metrics]
    checker.add(at.problem(f"{shown(name)}: {unknown(name, known, 'metric')}"))
    return {}


def check_split(split: str, treatments: Sequence[Treatment], registry: Registry, at: Node, checker: Checker) -> None:
    """Refuse a metric on a split that some task's settings leave out, where its class can tell."""
    for treatment in treatments:
        for name, entry in treatment.tasks.items():
            splits = getattr(registry.tasks[entry.kind], "splits", None)
            there = splits(entry.config) if splits and entry.config is not None else {split}
            if split not in there:
                known = ", ".join(sorted(there))
                text = f"in arm {treatment.arm}, task {name} as it is set has no {split} split; it has {known}"
                checker.add(at.problem(text))
                return


# -------------------------------------------------------------------------------------------------- references
def check_references(root: Node, treatments: Sequence[Treatment], seeds: Sequence[int], checker: Checker) -> None:
    """Refuse references to arms, seeds and points that do not exist, and arms that read each other in a circle.

    No `seeds` means that they could not be read.
    """
    arms = root.mapping["arms"].mapping if "arms" in root.mapping else {}
    reads: dict[str, set[str]] = {arm: set() for arm in arms}
    for treatment in treatments:
        for name, config in treatment.plugins.items():
            if isinstance(config, RunRef):
                node = treatment.node.mapping["plugins"].mapping[name]
                _check_arm_of(treatment, config, node.mapping["arm"], arms, treatments, checker)
                _check_seed_of(config, node.mapping.get("seed", node), seeds, checker)
                reads[treatment.arm].add(config.arm)
    for treatment in treatments:
        if _reaches(treatment.arm, treatment.arm, reads) and treatment.arm not in reads[treatment.arm]:
            name = next(n for n, config in treatment.plugins.items() if isinstance(config, RunRef))
            node = treatment.node.mapping["plugins"].mapping[name]
            checker.add(node.mapping["arm"].problem(f"arm {treatment.arm} reads itself through other arms"))


def _check_arm_of(
    treatment: Treatment, ref: RunRef, arm: Node, arms: Iterable[str], treatments: Sequence[Treatment], checker: Checker
) -> None:
    there = [other.point for other in treatments if other.arm == ref.arm]
    if ref.arm == treatment.arm:
        checker.add(arm.problem("a run cannot read a run of its own arm"))
    elif ref.arm not in arms:
        checker.add(arm.problem(f"{shown(ref.arm)}: {unknown(ref.arm, arms, 'arm')}"))
    elif there and treatment.point not in there and {} not in there:
        checker.add(arm.problem(f"arm {ref.arm} has no run at the same point of the sweep"))


def _check_seed_of(ref: RunRef, seed: Node, seeds: Sequence[int], checker: Checker) -> None:
    if ref.seed == "next" and len(seeds) == 1:
        checker.add(seed.problem("the study has one seed, so there is no next"))
    elif isinstance(ref.seed, int) and seeds and ref.seed not in seeds:
        checker.add(seed.problem(f"no such seed, given {ref.seed}; seeds: {', '.join(map(str, seeds))}"))


def _reaches(start: str, goal: str, reads: Mapping[str, set[str]]) -> bool:
    waiting, seen = [start], set[Any]()
    while waiting:
        for arm in reads.get(waiting.pop(), set()) - seen:
            if arm == goal:
                return True
            seen.add(arm)
            waiting.append(arm)
    return False
