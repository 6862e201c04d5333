"""What the "Surface Tension Transformers" code calls the numbers that we read from an evaluation matrix.

`X_Y` is its loss on task X after phase Y, `before` the row `start`. Every reading of ours is oriented so that larger is
better; some of the source's grow as things get worse, and two of its names stand for more than one number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .matrix import Kind, Reading


@dataclass(frozen=True)
class Name:
    """One name of the source beside ours. `sign` turns ours into it: source = sign * ours, on matrices of losses."""

    reading: str
    ours: str
    source: str
    formula: str
    better: str
    sign: int
    where: str

    @property
    def turned(self) -> str:
        return "as ours" if self.sign > 0 else "minus ours"


_LEARNING = "R[row before t's phase][t] − R[t][t]"
_FROM_START = "R[start][t] − R[t][t]"
_TRANSFER = "R[t][t] − R[p][t]"
_INTERFERENCE = "R[row before p][t] − R[p][t]"
_RETENTION = "R[t][t] / R[p][t]"
_DELTAS = "mean over targets of cos(effective delta of p, of q)"

NAMES = (
    Name("learning", _LEARNING, "learning_a, learning_c", "A_before − A_A, C_B − C_C", "higher", 1, "accretion"),
    Name("learning", _LEARNING, "learning_b", "B_A − B_B", "higher", 1, "accretion, routed, oracle-route"),
    Name("learning", _LEARNING, "sequential_learning_c", "C_B − C_C", "higher", 1, "oracle-compose, routed"),
    Name("learning from start", _FROM_START, "learning_b", "B_before − B_B", "higher", 1, "continual"),
    Name("learning from start", _FROM_START, "sequential_learning_b", "B_before − B_B", "higher", 1, "oracle-compose"),
    Name("backward transfer", _TRANSFER, "accretion_a_after_b", "A_A − A_B", "higher", 1, "accretion"),
    Name("backward transfer", _TRANSFER, "sequential_accretion_a", "A_A − A_B", "higher", 1, "routed"),
    Name("backward transfer", _TRANSFER, "backward_transfer_a", "A_B − A_A", "lower", -1, "continual"),
    Name("backward transfer", _TRANSFER, "backward_transfer_a_after_b", "A_B − A_A", "lower", -1, "accretion"),
    Name("backward transfer", _TRANSFER, "forgetting_a", "A_B − A_A", "lower", -1, "continual"),
    Name("backward transfer", _TRANSFER, "interference_b_after_c", "B_C − B_B", "lower", -1, "accretion, routed"),
    Name("interference", _INTERFERENCE, "interference_a_after_c", "A_C − A_B", "lower", -1, "accretion, routed"),
    Name("retention", _RETENTION, "retention_ratio", "A_A / A_B", "higher", 1, "continual"),
    Name(
        "retention", _RETENTION, "retention_a_after_b, retention_a_after_c, retention_b_after_c",
        "A_A / A_B, A_A / A_C, B_B / B_C", "higher", 1, "accretion",
    ),
    Name("cosine of deltas", _DELTAS, "lora_cosine_a_b_mean", "the same, in float32", "higher", 1, "accretion"),
    Name("cosine of deltas", _DELTAS, "lora_cosine_a_c_mean, lora_cosine_b_c_mean", "same", "lower", 1, "accretion"),
    Name(
        "cosine of gradients", "cos(gradient on t, on u), on the probe", "grad_cosine_a_b_after_a",
        "the same, on the first training batches", "higher", 1, "accretion",
    ),
    Name(
        "cosine of gradients", "cos(gradient on t, on u), on the probe", "grad_cosine_a_c_after_b",
        "the same, on the first training batches", "lower", 1, "accretion",
    ),
)  # fmt: skip

NOTE = (
    "Every reading here is oriented so that larger is better. Accretion is backward transfer: the same number with the "
    "same sign. Interference of p on t equals backward transfer where p follows the phase of t at once, and is then "
    "told under that name. The source's learning_b has two zero points, the untouched model and the model after A. Its "
    "retention is 0 where the divisor is 0, here n/a. No change is told in per cent of a baseline, for that turns its "
    "sign with the baseline's."
)


def names(kind: Kind | str) -> list[Name]:
    """Return the source's names for one kind of reading, or of cosine."""
    return [name for name in NAMES if name.reading == kind]


def in_source(reading: Reading, name: Name) -> float:
    """Return a reading of a loss as the source would have logged it under `name`.

    Raises `ValueError` where the name belongs to another kind of reading.
    """
    if name.reading != reading.kind:
        raise ValueError(f"{name.source} is a name of {name.reading}, given {reading.kind}")
    return name.sign * reading.value


def document() -> list[dict[str, Any]]:
    """Return the table as report.json holds it."""
    return [{**asdict(name), "turned": name.turned} for name in NAMES]
