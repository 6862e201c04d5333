"""A run that is over, opened again: its model as its newest checkpoint has it, its tasks, and its phases' adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctr.engine import resume
from ctr.engine.adapter_files import SavedAdapter, check_same_base, read_adapter
from ctr.engine.adapters import Adapter
from ctr.engine.build import build
from ctr.engine.checkpoint import CheckpointStore, join_state
from ctr.engine.compositions import StandIn
from ctr.engine.errors import DataError, UsageError, VerificationError
from ctr.engine.host import discover
from ctr.engine.probe import Evaluator
from ctr.engine.rundir import RunDir
from ctr.engine.spec import RunSpec
from ctr.engine.task import Evaluation
from ctr.engine.tasks.language_models import LanguageModel
from ctr.engine.tasks.lora import base_digest
from ctr.engine.text import printable
from ctr.engine.yaml_reader import read

from .snapshots import Snapshots


@dataclass(frozen=True)
class FinishedRun:
    """What compositions of a run's adapters need. `base` is the sha256 of the model's weights without them.

    `saved` holds the folders of the phases' adapters, each verified against the checkpoint; `tasks` are all those of
    the run that can be scored again, in its order.
    """

    path: Path
    step: int
    model: LanguageModel
    adapter: Adapter
    tasks: Mapping[str, Any]
    device: torch.device
    base: str
    snapshots: Snapshots
    saved: Mapping[str, SavedAdapter]

    def evaluators(self) -> dict[str, Evaluator]:
        """Return by task what scores compositions beside the base."""
        stand = StandIn(self.model, self.adapter)
        found: dict[str, Evaluator] = {}
        for name, task in self.tasks.items():
            found[name] = Evaluator(task, self.model, "epoch", None, stand, found)
        return found

    def check_base(self, phases: Sequence[str]) -> None:
        """Raise `DataError` where phases adapted to another base than another of them did, or than the run ended with.

        A phase that trained all weights in between would make it so.
        """
        spoken = {phase: self.saved[phase] for phase in phases}
        check_same_base(spoken)
        for phase, one in spoken.items():
            if one.base is not None and one.base != self.base:
                text = (
                    f"{printable(one.folder)}: phase {phase} trained it beside another base (sha256 {one.base[:12]}…)"
                )
                raise DataError(f"{text} than the checkpoint holds ({self.base[:12]}…); no route can name it")

    def scores(self, model: Any) -> dict[str, Evaluation]:
        """Return by task the validation scores of another model, on the items that routes are scored on."""
        return {name: task.evaluate(model, "val") for name, task in self.tasks.items()}


def open_run(path: Path) -> FinishedRun:
    """Open a run whose phases trained a LoRA adapter; nothing in its folder is changed.

    Raises `UsageError` for a folder that is no such run, `DataError` where its checkpoint, an adapter or its data
    cannot be read, `VerificationError` where a phase's folder does not hold the adapter that the checkpoint has.
    """
    folder = RunDir(path)
    if not folder.spec.is_file():
        raise UsageError(f"{printable(path)}: is no folder of a run; it holds no spec.yaml")
    spec = RunSpec.from_document(read(folder.spec))
    if spec.adapter is None or getattr(spec.adapter, "kind", None) != "lora":
        raise UsageError(f"{printable(path)}: this run has no adapter: {{kind: lora}} that its phases could train")
    loaded = CheckpointStore(path).newest()
    if loaded is None:
        raise DataError(f"{printable(path)}: has no checkpoint that could be read, so there is no model to adapt")
    built = build(spec.model_copy(update={"plugins": {}}), path, discover(), {})
    if not isinstance(built.module, LanguageModel) or built.adapter is None:
        raise UsageError(f"{printable(path)}: its model is no language model, so PEFT could not load an adapter of it")
    built.module.load_state_dict(resume.module_tensors(loaded.tensors), strict=False)
    held = {n.removeprefix("state/"): t for n, t in loaded.tensors.items() if n.startswith("state/")}
    kept = join_state(loaded.record["state"], held).get("snapshots", {})
    if not kept:
        text = f"{printable(path)}: its checkpoint holds the adapter of no phase"
        raise DataError(f"{text}: none ended yet, an adapter was folded into the base, or an earlier ctr wrote it")
    snapshots = Snapshots.of(kept, built.adapter.factors)
    saved = {phase: _saved(path, phase, snapshots) for phase in snapshots.phases}
    base = base_digest(built.module)
    tasks = {name: task for name, task in built.tasks.items() if not getattr(task, "scored_once", False)}
    return FinishedRun(path, loaded.step, built.module, built.adapter, tasks, built.device, base, snapshots, saved)


def _saved(path: Path, phase: str, snapshots: Snapshots) -> SavedAdapter:
    """Read the folder of a phase's adapter, and hold it against what the checkpoint has of the phase's end."""
    saved = read_adapter(path / "adapters" / phase)
    state = snapshots.states[snapshots.ends[phase][1]]
    for target, (a, b) in state.items():
        pair = saved.delta.get(target)
        if pair is None or not (torch.equal(pair.a, a.cpu().float()) and torch.equal(pair.b, b.cpu().float())):
            text = f"{printable(saved.folder)}: does not hold the adapter that phase {phase} ended with"
            raise VerificationError(f"{text}, as the checkpoint has it at {target}; the folder was replaced")
    return saved
