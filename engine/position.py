"""Where a run stands; what a checkpoint writes down of the loop itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Position:
    """Where a run stands, between two updates. `stage` is what comes next.

    `start` reset and first evaluation · `phase` begin it · `train` its epochs · `evaluate` the epoch just trained ·
    `run` the closing moment · `done`.
    """

    stage: str = "start"
    phase: int = 0
    epoch: int = 0
    micro: int = 0
    step: int = 0
    bounded: int = 0  # the step at which the last boundary of kind `steps` fired
