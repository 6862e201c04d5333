"""The checkpoint gate at its moment: after each epoch it looks at metrics, and asks for a snapshot or does not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, Field

from ctr.engine.errors import GuardError
from ctr.engine.hooks import EpochAdvice, hookimpl

from .verdict import Gate, Rule, State, advance, begin

if TYPE_CHECKING:
    from torch import Generator

    from ctr.engine.events import Epoch

SPLITS = ("train", "val", "calibration")
UNGATED = "ungated"


def _readable(name: str) -> str:
    split, dot, metric = name.partition(".")
    if split == "test":
        raise ValueError("the test split decides nothing while a run goes on; gate on val or calibration")
    if split not in SPLITS or not dot or not metric:
        raise ValueError(f"must be a metric on a split, such as val.loss; splits: {', '.join(SPLITS)}")
    return name


Name = Annotated[str, Field(max_length=80), AfterValidator(_readable)]


class Settings(BaseModel, extra="forbid", frozen=True, allow_inf_nan=False):
    """What all settings share."""


class GateSettings(Settings, frozen=True):
    """One bound on one metric."""

    metric: Name = Field(description="what must keep the bound, such as calibration.loss")
    better: Literal["lower", "higher"] = Field(default="lower", description="which side is good")
    threshold: float = Field(description="the bound itself, or how much worse than the reference still passes")
    relative_to: Literal["none", "baseline", "best"] = Field(
        "none", description="the reference: none, the value before training, or the best so far"
    )


class Select(Settings, frozen=True):
    """What ranks the snapshots that pass."""

    metric: Name = Field(default="val.loss", description="what ranks the snapshots that pass")
    better: Literal["lower", "higher"] = Field(default="lower", description="which side is good")
    min_delta: float = Field(default=0.0, ge=0, description="how much better a snapshot must be to replace a kept one")


class CheckpointGate:
    """Keeps the best snapshot by one metric among those that pass guards on others; trains nothing otherwise."""

    trial: ClassVar[Mapping[str, Any]] = {
        "active": {
            "gates": [{"metric": "val.loss", "threshold": 0.1, "relative_to": "best"}],
            "keep": 2,
            "on_none": "best_ungated",
        },
        "inert": {"gates": [{"metric": "val.loss", "threshold": -1.0}]},
    }

    class Config(Settings, frozen=True):
        gates: Annotated[tuple[GateSettings, ...], Field(min_length=1, max_length=20)] = Field(
            description="bounds that must all be kept"
        )
        consecutive: int = Field(1, ge=1, le=1000, description="epochs in a row in which they must be kept")
        select: Select = Field(Select(), description="what ranks the snapshots that pass")
        phases: tuple[str, ...] | None = Field(None, description="phases in which snapshots are kept; null: the last")
        keep: int = Field(1, ge=1, le=20, description="snapshots that stay: gated-0, gated-1, …, in no order")
        on_none: Literal["last", "best_ungated", "fail"] = Field(
            "last", description="where none passed: the last weights stand, or the best by select, or the run fails"
        )

    @staticmethod
    def misfit(config: Config, run: Any, adapter: Any) -> str | None:
        """Say why these settings cannot act in a run; None when they can."""
        names = [phase.name for phase in run.phases]
        unknown = sorted(set(config.phases or ()) - set(names))
        if unknown:
            return f"phases names {unknown[0]}, and this run has {', '.join(names)}"
        chosen = [phase for phase in run.phases if phase.name in (config.phases or names[-1:])]
        if all(phase.plugins == "none" for phase in chosen):
            return "no plugin is asked in the phases in which it would keep snapshots"
        asked = next((phase for phase in run.phases if phase.plugins != "none"), run.phases[0])
        if any(gate.relative_to == "baseline" for gate in config.gates) and chosen[0] is not asked:
            text = f"a gate is relative to the baseline, which is measured before phase {asked.name}, not before phase"
            return f"{text} {chosen[0].name}; give an absolute threshold, or one relative to the best"
        return None

    def __init__(self, config: Config, generator: Generator | None) -> None:
        self.config = config
        gates = [Gate(gate.metric, gate.better == "lower", gate.threshold, gate.relative_to) for gate in config.gates]
        chosen = config.select
        self.rule = Rule(
            gates, chosen.metric, chosen.better == "lower", chosen.min_delta, config.consecutive, config.keep
        )
        self.memory = State()
        self.phase: str | None = None
        self.best_ungated: float | None = None

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> EpochAdvice | None:
        if epoch.kind == "start":
            self.memory = begin({name: read(epoch, name) for name in self._names()})
            return None
        if epoch.kind == "run":
            self._close(epoch)
        if epoch.kind != "epoch" or not self._asked(epoch):
            return None
        if epoch.phase != self.phase:  # another phase may have another task, with numbers of its own
            baseline = self.memory.baseline if self.phase is None else {}
            self.phase, self.memory, self.best_ungated = epoch.phase, State(baseline), None
        values = {name: read(epoch, name) for name in self._names()}
        self.memory = advance(self.memory, values, self.rule)
        verdict = self.memory.verdict
        assert verdict is not None
        slug = None if verdict.slot is None else f"gated-{verdict.slot}"
        said = {"epoch": epoch.epoch, "values": values, **asdict(verdict), "slug": slug}
        epoch.log.mark("decision", json.dumps(said, sort_keys=True))
        epoch.log("passed", float(verdict.passed))
        if slug is None and not self.memory.kept and self.config.on_none == "best_ungated":
            slug = self._ungated(values.get(self.rule.select))
        return EpochAdvice(save=slug, why=verdict.why) if slug else None

    def state(self) -> dict[str, Any]:
        memory = {key: value for key, value in asdict(self.memory).items() if key != "verdict"}
        memory["kept"] = list(memory["kept"])
        return {"memory": memory, "phase": self.phase, "best_ungated": self.best_ungated}

    def restore(self, state: Mapping[str, Any]) -> None:
        held = state["memory"]
        self.memory = State(held["baseline"], held["best"], held["streak"], tuple(held["kept"]))
        self.phase, self.best_ungated = state["phase"], state["best_ungated"]

    def _names(self) -> list[str]:
        return sorted({self.rule.select, *(gate.metric for gate in self.rule.gates)})

    def _asked(self, epoch: Epoch) -> bool:
        """Say whether snapshots are kept in this phase; without a list each phase begins anew, so the last stays."""
        return self.config.phases is None or epoch.phase in self.config.phases

    def _ungated(self, value: float | None) -> str | None:
        """Return the slug of the best so far whatever the gates say, if this is it."""
        sign = 1 if self.rule.lower else -1
        if value is None or (self.best_ungated is not None and sign * (self.best_ungated - value) <= 0):
            return None
        self.best_ungated = value
        return UNGATED

    def _close(self, epoch: Epoch) -> None:
        if self.memory.kept:
            kept = ", ".join(f"gated-{slot} ({value:.6g})" for slot, value in enumerate(self.memory.kept))
            epoch.log.mark("kept", f"{self.rule.select}: {kept}")
            return
        text = "no snapshot passed the gates"
        if self.config.on_none == "fail":
            raise GuardError(f"plugin checkpoint_gate: {text}, and on_none is fail", culprit="gates of checkpoint_gate")
        stands = "snapshots/last" if self.config.on_none == "last" or self.best_ungated is None else "snapshots/ungated"
        epoch.log.mark("none-passed", f"{text}; {stands} is what stands")


def read(epoch: Epoch, name: str) -> float | None:
    """Return a metric of a split as it is now; None where it is unknown or not finite, which never passes a gate."""
    split, _, metric = name.partition(".")
    if split == "train":
        value = getattr(epoch.train, metric, None) if epoch.train is not None else None
    else:
        found = epoch.evaluations.get(split)
        found = epoch.evaluate([{}], split)[0] if found is None else found
        value = found.mean(metric) if metric == "loss" or metric in found.metrics else None
    return None if value is None or not math.isfinite(value) else float(value)
