"""A finished run opened again for its phases' adapters, each held against the folder that others may load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ctr.engine.adapter_files import SavedAdapter, check_same_base, read_adapter
from ctr.engine.adapters import Adapter
from ctr.engine.errors import DataError, UsageError, VerificationError
from ctr.engine.probe import Evaluator
from ctr.engine.reopen import Reopened, reopen
from ctr.engine.task import Evaluation
from ctr.engine.tasks.language_models import LanguageModel
from ctr.engine.tasks.lora import base_digest
from ctr.engine.text import printable

from .methods import Comparison
from .plugin import Routed
from .scoring import Scorer
from .settings import RoutedConfig
from .snapshots import Snapshots


@dataclass(frozen=True)
class FinishedRun:
    """What compositions of a run's adapters need. `base` is the sha256 of the model's weights without them.

    `saved` holds the folders of the phases' adapters, each verified against the checkpoint.
    """

    about: Reopened
    model: LanguageModel
    adapter: Adapter
    base: str
    snapshots: Snapshots
    saved: Mapping[str, SavedAdapter]

    @property
    def path(self) -> Path:
        return self.about.run.path

    @property
    def evaluate(self) -> Mapping[str, Evaluator]:
        """What scores compositions beside the base, by task; a task that is scored once has none."""
        return {name: self.about.evaluate[name] for name in self._tasks()}

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
        return {name: task.evaluate(model, "val") for name, task in self._tasks().items()}

    def compared(self, config: RoutedConfig) -> Comparison:
        """Return the methods of some settings on the run; raises `UsageError` where they cannot act in it."""
        problem = Routed.misfit(config, self.about.spec, self.adapter)
        if problem is not None:
            raise UsageError(problem)
        self.check_base(self.snapshots.phases)
        trained = {phase.name: phase.task for phase in self.about.spec.phases if phase.name in self.snapshots.phases}
        return Comparison(config, Scorer(self.evaluate, self.snapshots, trained, config.split))

    def _tasks(self) -> dict[str, Any]:
        return {name: task for name, task in self.about.tasks.items() if not getattr(task, "scored_once", False)}


def open_run(path: Path) -> FinishedRun:
    """Open a run whose phases trained a LoRA adapter; nothing in its folder is changed.

    Raises `UsageError` for a folder that is no such run, `DataError` where its checkpoint, an adapter or its data
    cannot be read, `VerificationError` where a phase's folder does not hold the adapter that the checkpoint has.
    """
    about, shown = reopen(path), printable(path, 200)
    adapter, model = about.adapter, about.module
    if adapter is None or not adapter.one:
        raise UsageError(f"{shown}: its last phase trains no adapter: {{kind: lora}} that could be composed")
    if not isinstance(model, LanguageModel):
        raise UsageError(f"{shown}: its model is no language model, so PEFT could not load an adapter of it")
    if not about.snapshots:
        text = f"{shown}: its checkpoint holds the adapter of no phase"
        raise UsageError(f"{text}: it was folded into the base, or an earlier ctr wrote it; train the run again")
    snapshots = Snapshots.of(about.snapshots, adapter.factors)
    saved = {phase: _saved(path, phase, snapshots) for phase in snapshots.phases}
    return FinishedRun(about, model, adapter, base_digest(model), snapshots, saved)


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
