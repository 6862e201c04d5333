"""How the weight of a term moves over a phase or a run."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["constant", "warmup", "cosine"]


def factor(kind: Kind, at: int, warmup: int = 0, until: int = 0, floor: float = 0.0) -> float:
    """Return the factor on a weight in unit `at`, counted from 0, as the rates of ctr are scheduled.

        (at + 1) / warmup                                              while at < warmup
        floor + (1 - floor) (1 + cos(pi x)) / 2,  x = (at - warmup) / (until - warmup)    then, for a cosine
        floor from `until` on; 1 after the warm-up for the other kinds

    Units are epochs of a phase or steps of the run. Breaks where a phase ends before `until`: nobody shortens it.
    """
    if at < warmup:
        return (at + 1) / warmup
    if kind != "cosine":
        return 1.0
    if at >= until:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * (at - warmup) / (until - warmup))) / 2
