"""The effective deltas of a run's phases: taken when one ends, held against every earlier one, kept for a resume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .deltas import Pair, cosine, increment, packed, unpacked


class Increments:
    """One effective delta a phase, on the host. A phase that merged its adapter into the base on the way has none."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, Pair]] = {}
        self._merged = False

    def merged(self, kind: str) -> None:
        """Note that a boundary of this kind merged: within a phase, part of what it changes then leaves the adapter."""
        self._merged = self._merged or kind not in ("run", "phase")

    def end_phase(self, kernel: Any, phase: str) -> None:
        """Take what the phase changed since `kernel.remembered`, and record its cosine with each earlier phase."""
        if kernel.active is None or not kernel.active.one:
            return
        step = kernel.position.step
        if self._merged:
            self._merged = False
            text = f"phase {phase} merged its adapter into the base on the way, so no cosine of its delta can be told"
            kernel.log.event("warning", step, owner="engine", text=text, phase=phase)
            return
        delta = increment(kernel.active.factors, kernel.remembered)
        for earlier, before in self.phases.items():
            found = cosine(before, delta)
            kernel.log.event(
                "cosine", step, of="delta", left=earlier, right=phase, mean=found.mean, targets=dict(found.targets)
            )
        self.phases[phase] = delta

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"phases": packed(self.phases), "merged": self._merged}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; a checkpoint of an earlier version has nothing."""
        self.phases = unpacked(state.get("phases", {}))
        self._merged = bool(state.get("merged", False))
