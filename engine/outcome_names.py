"""How a criterion names a number: `test.loss`, `geometry.effective_rank`, `backward_transfer.A.after.B`.

`value.A.after.B` is the entry of the evaluation matrix itself.
"""

from __future__ import annotations

from typing import NamedTuple, get_args, get_type_hints

from .matrix import Reading

SPLITS = ("train", "val", "calibration", "test")
VALUE = "value"


class Place(NamedTuple):
    """A reading's name, taken apart."""

    kind: str
    task: str
    after: str


def owner_of(name: str) -> str:
    """Return what stands before the first dot: a split, a plugin, or a kind of reading."""
    return name.partition(".")[0]


def reading_kinds() -> list[str]:
    """Return the kinds of readings that a matrix gives, as names hold them."""
    return [VALUE, *(kind_name(kind) for kind in get_args(get_type_hints(Reading)["kind"]))]


def kind_name(kind: str) -> str:
    return kind.replace(" ", "_")


def reading_place(name: str) -> Place | None:
    """Take a reading's name apart; None where it has not the form of one."""
    kind, _, rest = name.partition(".")
    task, after, phase = rest.rpartition(".after.")
    return Place(kind, task, phase) if after and kind and task and phase else None
