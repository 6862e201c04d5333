"""A finished run as it stood at its end, to be looked at again; nothing is trained, nothing in its folder changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import resume
from .adapters import Adapter
from .build import build, settle_exactness
from .checkpoint import CheckpointStore, join_state
from .compositions import StandIn
from .errors import DataError, UsageError
from .host import discover
from .matrix import Matrix
from .planning import fingerprints_of
from .probe import Evaluator
from .provenance import read_provenance
from .rundir import RunDir, Status
from .spec import RunSpec
from .text import printable
from .yaml_reader import read


@dataclass(frozen=True)
class Reopened:
    """A run's model with its last weights, and what may be scored with it.

    `evaluate` holds an evaluator for every task by name, `snapshots` the adapter at both ends of each phase, as an
    event of kind `run` shows them. `step` counts the updates that the weights have had.
    """

    run: RunDir
    spec: RunSpec
    module: torch.nn.Module
    tasks: Mapping[str, Any]
    adapter: Adapter | None
    snapshots: Mapping[str, Mapping[str, Mapping[str, torch.Tensor]]]
    matrix: Matrix | None
    evaluate: Mapping[str, Evaluator]
    device: torch.device
    step: int


def reopen(folder: Path) -> Reopened:
    """Build a run's tasks and model anew and put its last checkpoint's weights back.

    Raises `UsageError` for what is no folder of a finished run, `DataError` where no checkpoint can be read or the data
    or the pretrained model are no longer those that it was trained with.
    """
    run, shown = RunDir(folder), printable(folder, 200)
    if not run.spec.is_file():
        raise UsageError(f"{shown}: is no folder of a run; it holds no spec.yaml")
    status = Status.from_file(run.status)
    if status is None or status.status != "finished":
        said = "unknown" if status is None else status.status
        raise UsageError(f"{shown}: the run is {said}, and only a finished one has its last state; train it to its end")
    registry = discover()
    spec = RunSpec.from_document(read(run.spec), registry).model_copy(
        update={"plugins": {}}
    )  # they are not asked again
    about = read_provenance(run)
    _check_same(shown, about.get("fingerprints"), fingerprints_of(spec, registry, {}))
    loaded = CheckpointStore(folder).newest()
    if loaded is None:
        raise DataError(f"{shown}: has no checkpoint that could be read, so its weights are lost; train it again")
    threads = about.get("threads")
    settle_exactness(spec.phases[0].train.determinism, threads if type(threads) is int and threads > 0 else 1)
    built = build(spec, folder, registry, {})
    built.module.load_state_dict(resume.module_tensors(loaded.tensors), strict=False)
    held = {n.removeprefix("state/"): t for n, t in loaded.tensors.items() if n.startswith("state/")}
    state = join_state(loaded.record["state"], held)
    last = built.plans[-1]
    last.task.begin(last.phase)
    stand, evaluators = StandIn(built.module, built.adapter), dict[str, Evaluator]()
    for name, task in built.tasks.items():
        evaluators[name] = Evaluator(task, built.module, "run", lambda _: None, stand, evaluators)
    matrix = Matrix.from_document(loaded.record["matrix"], built.matrix.phases) if built.matrix is not None else None
    snapshots = {
        phase: {moment: {n: t.to(built.device) for n, t in tensors.items()} for moment, tensors in moments.items()}
        for phase, moments in state.get("snapshots", {}).items()
    }
    return Reopened(
        run, spec, built.module, built.tasks, built.adapter if last.phase.adapts else None, snapshots, matrix,
        evaluators, built.device, loaded.step,
    )  # fmt: skip


def _check_same(run: str, then: Any, now: Mapping[str, str]) -> None:
    """Refuse what reads other data, or another model, than the run did: its items would be others."""
    if not isinstance(then, dict):
        raise DataError(f"{run}: provenance.json does not say what the run read, so its items cannot be known again")
    differs = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if differs:
        text = f"{run}: {printable(differs[0], 80)} is no longer what the run read"
        raise DataError(f"{text}; put the file back as it was, or train the run again")
