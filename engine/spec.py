"""A study as it was asked for: validated as a whole, every problem at once, and expanded into runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from .criteria_checks import read_criteria
from .errors import Problem, SpecError
from .nodes import Node, Place, difference, from_plain
from .overlay import load_tree, with_sets
from .phases import PhaseSpec
from .points import point_name
from .spec_checks import MAX_RUNS, check_references, read_arms, read_comparison
from .spec_problems import Checker
from .study_spec import CheckpointSpec, CompareSpec, LogSpec, RunRef, StudyFile, StudyHead
from .train_spec import Resolved, TrainSpec
from .treatment import ON_ERROR, Registry, TaskEntry, Treatment, read_treatment
from .yaml_reader import MAX_PROBLEMS
from .yaml_writer import write_text

__all__ = ["RunRef", "RunSpec", "Selected", "StudySpec", "difference", "json_schema", "load_study"]


class Selected(Resolved):
    """The metric whose best epoch gives the weights that are compared."""

    on: str
    better: str


class RunSpec(Resolved):
    """One resolved run: an arm with a seed at a point, every default written out."""

    study: str
    question: str
    arm: str
    seed: int
    point: dict[str, Any]
    model: Any
    adapter: Any
    tasks: dict[str, TaskEntry]
    phases: tuple[PhaseSpec, ...]
    plugins: dict[str, Any]
    on_error: dict[str, str] = {}
    select: Selected
    log: LogSpec
    checkpoint: CheckpointSpec

    @property
    def point_name(self) -> str:
        return point_name(self.point)

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}" + (f"-{self.point_name}" if self.point else "")

    def refs(self) -> dict[str, tuple[str, str | int]]:
        """Return the arm and the seed (`same`, `next` or a number) that each referring plugin names."""
        return {name: (config.arm, config.seed) for name, config in self.plugins.items() if isinstance(config, RunRef)}

    def with_ref(self, plugin: str, seed: int) -> RunSpec:
        """Return the run with a plugin's reference resolved to a seed."""
        settled = self.plugins[plugin].model_copy(update={"seed": seed})
        return self.model_copy(update={"plugins": {**self.plugins, plugin: settled}})

    def document(self) -> dict[str, Any]:
        """Return the run as plain data: what `spec.yaml` holds."""
        tasks = {name: {"kind": entry.kind, **_plain(entry.config)} for name, entry in self.tasks.items()}
        head = {"study": self.study, "question": self.question, "arm": self.arm, "seed": self.seed}
        return {
            **head,
            "point": dict(self.point),
            "model": _plain(self.model),
            "adapter": _plain(self.adapter),
            "tasks": tasks,
            "phases": [_plain(phase) for phase in self.phases],
            "plugins": {name: _plain(config) | self._policy(name) for name, config in self.plugins.items()},
            "select": _plain(self.select),
            "log": _plain(self.log),
            "checkpoint": _plain(self.checkpoint),
        }

    def _policy(self, plugin: str) -> dict[str, str]:
        return {ON_ERROR: self.on_error[plugin]} if plugin in self.on_error else {}

    def text(self) -> str:
        """Return the run as YAML."""
        return write_text(self.document())

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | Node, registry: Registry | None = None) -> RunSpec:
        """Return the run that `document` described; raises `SpecError` where the installed classes refuse it."""
        node = document if isinstance(document, Node) else from_plain(document, Place("spec.yaml"))
        checker = Checker()
        point = node.mapping["point"].data if "point" in node.mapping else {}
        made = read_treatment("", point, node, registry or _installed(), checker, resolved=True)
        about = {name: checker.check(kind, node.mapping[name]) for name, kind in _HEAD.items() if name in node.mapping}
        lacking = [name for name in _HEAD if name not in node.mapping]
        checker.add(*(node.problem("is missing", name) for name in lacking))
        _raise(checker)
        return cls(
            **about,
            point=point,
            model=made.model,
            adapter=made.adapter,
            tasks=dict(made.tasks),
            phases=made.phases,
            plugins=dict(made.plugins),
            on_error=dict(made.on_error),
        )

    def identity(
        self,
        fingerprints: Mapping[str, str],
        device_kind: str,
        refs: Mapping[str, str],
        phases: int | None = None,
        apart: Collection[str] = (),
        **more: Any,
    ) -> str:
        """Return the hash of all that decides the numbers of the run, or with `phases` of its first so many.

        `fingerprints` are the data's, `refs` the identities of the runs that plugins read. Names of study and arms,
        seed lists, contrasts, the question, log and checkpoint cadence and threads are not in it. Of the first phases
        neither what selects is in it, nor what none of them asks: plugins, of which those `apart` have no part in any
        phase, an adapter, the run's own seed. `more` is what the caller adds.
        """
        content = {key: value for key, value in self.document().items() if key in _DECIDES}
        content["seed"], content["select"] = self.seed, self.select.on
        for phase in content["phases"]:
            phase["train"] = {key: value for key, value in phase["train"].items() if key not in ("device", "threads")}
        for plugin in refs:
            content["plugins"][plugin] = {
                k: v for k, v in content["plugins"][plugin].items() if k not in ("arm", "seed")
            }
        content["plugins"] = {name: one for name, one in content["plugins"].items() if name not in apart}
        whole = {**content, "refs": dict(refs), **(_first(content, phases) if phases else {})}
        whole |= {"device": device_kind, "data": dict(fingerprints), **more}
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _first(content: Mapping[str, Any], phases: int) -> dict[str, Any]:
    """Return what is otherwise in the content of an identity where only the first phases count."""
    kept = content["phases"][:phases]
    silent = all(phase["plugins"] == "none" for phase in kept)
    whole = all(phase["trains"] == "all" for phase in kept)
    # plugins and resets of an adapter draw from the run's seed, whatever seed the phase has
    seeded = silent and whole and all(phase["seed"] is not None for phase in kept)
    return {
        "phases": kept,
        "select": None,
        **({"plugins": {}, "refs": {}} if silent else {}),
        **({"adapter": None} if whole else {}),
        **({"seed": None} if seeded else {}),
    }


_DECIDES = ("model", "adapter", "tasks", "phases", "plugins")
_HEAD: Mapping[str, Any] = {
    name: RunSpec.model_fields[name].annotation
    for name in ("study", "question", "arm", "seed", "select", "log", "checkpoint")
}


class StudySpec(Resolved):
    """A validated study. `source` is what was given: extended files and `--set` values laid into one mapping."""

    study: str
    question: str
    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    treatments: tuple[Treatment, ...]
    contrasts: tuple[tuple[str, str], ...]
    on: tuple[str, ...]
    select: Selected
    metrics: dict[str, dict[str, str]]
    criteria: tuple[dict[str, Any], ...]
    log: LogSpec
    checkpoint: CheckpointSpec
    source: dict[str, Any]

    @property
    def train(self) -> TrainSpec:
        """The training of the first run's first phase; `device`, `threads` and `determinism` are the whole study's."""
        return self.treatments[0].phases[0].train

    def runs(self) -> list[RunSpec]:
        """Return arms × points × seeds, in the order of the spec."""
        return [self._run(treatment, seed) for treatment in self.treatments for seed in self.seeds]

    def _run(self, made: Treatment, seed: int) -> RunSpec:
        return RunSpec(
            study=self.study, question=self.question, arm=made.arm, seed=seed, point=dict(made.point), model=made.model,
            adapter=made.adapter, tasks=dict(made.tasks), phases=made.phases, plugins=dict(made.plugins),
            on_error=dict(made.on_error),
            select=self.select, log=self.log, checkpoint=self.checkpoint,
        )  # fmt: skip

    def text(self) -> str:
        """Return the study as one YAML file that needs no other: what `study.yaml` holds."""
        return write_text(self.source)

    def index(self) -> dict[str, Any]:
        """Return what `study.json` says about the study itself."""
        points = {point_name(made.point): dict(made.point) for made in self.treatments}
        return {
            "study": self.study,
            "question": self.question,
            "seeds": list(self.seeds),
            "arms": list(self.arms),
            "points": [{"name": name, "values": values} for name, values in points.items()],
            "contrasts": [list(pair) for pair in self.contrasts],
            "on": list(self.on),
            "select": _plain(self.select),
            "determinism": self.train.determinism,
            "metrics": self.metrics,
            **({"criteria": list(self.criteria)} if self.criteria else {}),
        }


def load_study(path: Path, sets: Sequence[str] = (), registry: Registry | None = None) -> StudySpec:
    """Read, extend, override and validate a study; raises `SpecError` with every problem found.

    `sets` are `key=value` texts that lie over the file; `registry` is what is installed, found where it is not given.
    """
    registry = registry or _installed()
    checker = Checker()
    problems: list[Problem] = []
    root = with_sets(load_tree(Path(path), problems), sets, problems)
    checker.add(*problems)
    checker.names(root, [key for key in StudyFile.model_fields if key != "extends" or key not in root.mapping])
    head = _head(root, checker)
    treatments = read_arms(root, registry, checker)
    seeds = head.seeds if head else ()
    check_references(root, treatments, seeds, checker)
    if len(seeds) * len(treatments) > MAX_RUNS:
        text = f"{len(treatments)} arms and points by {len(seeds)} seeds are more than {MAX_RUNS} runs"
        checker.add(root.mapping["seeds"].problem(text))
    compare = head.compare if head else checker.check(CompareSpec, root.mapping.get("compare", Node({}, root.place)))
    comparison = read_comparison(compare, root, treatments, registry, checker) if compare else None
    criteria: list[dict[str, Any]] = []
    used = dict(comparison.metrics) if comparison else {}
    if head and comparison and head.criteria:
        criteria, more = read_criteria(head.criteria, root, comparison.contrasts, treatments, registry, checker)
        used |= more
    _raise(checker)
    assert head is not None and comparison is not None
    select = head.compare.select.on
    return StudySpec(
        study=head.study, question=head.question, seeds=head.seeds, arms=tuple(root.mapping["arms"].mapping),
        treatments=tuple(treatments), contrasts=comparison.contrasts, on=head.compare.on,
        select=Selected(on=select, better=used[select]["better"]), metrics=used, criteria=tuple(criteria),
        log=head.log, checkpoint=head.checkpoint, source=root.data,
    )  # fmt: skip


def _head(root: Node, checker: Checker) -> StudyHead | None:
    entries, removed = (
        {key: node for key, node in part.items() if key in StudyHead.model_fields}
        for part in (root.mapping, root.removed)
    )
    head: StudyHead | None = checker.check(StudyHead, Node(entries, root.place, root.path, removed=removed))
    return head


def _raise(checker: Checker) -> None:
    found = sorted(checker.problems)
    if len(found) > MAX_PROBLEMS:
        rest = Problem(found[0].file, 0, 0, "", f"{len(found) - MAX_PROBLEMS} more problems are not shown")
        found = [rest, *found[:MAX_PROBLEMS]]
    if found:
        raise SpecError(found)


def _installed() -> Registry:
    from .host import discover

    return discover()


def _plain(value: Any) -> Any:
    return to_jsonable_python(value, by_alias=True)


def json_schema(registry: Registry | None = None) -> dict[str, Any]:
    """Return the JSON schema of a study file with the settings of what is installed, for editors."""
    from .spec_schema import study_schema

    return study_schema(registry or _installed())
