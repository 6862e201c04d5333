"""What the lower blocks of a model gave, batch after batch, so that passes that change none of them begin above.

Blocks hand their output to the next one and nothing else, which is tried out before it is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module

from ctr.engine.task import Enough


@dataclass
class Trunk:
    """The outputs of the first `height` blocks, one for each forward pass, in the order of the passes."""

    height: int
    outputs: list[Any] = field(default_factory=list)


@contextmanager
def on(blocks: list[Module], trunk: Trunk | None, height: int | None, through: bool = False) -> Iterator[Trunk | None]:
    """Begin the passes within above a trunk; with `height`, grow one so high, and end each pass by `Enough` there.

    With `through`, passes that grow a trunk go on to their own end.

    The passes must be those that grew the trunk, in the same order and below it with the same weights.
    """
    grown = None if height is None else Trunk(height)
    below = blocks[: trunk.height] if trunk is not None else []
    passes = iter(trunk.outputs if trunk is not None else ())
    now: list[Any] = []

    def start(*_: Any, **__: Any) -> Any:
        now[:] = [next(passes)]
        return now[0]

    def again(*_: Any, **__: Any) -> Any:
        return now[0]

    def keep(_: Module, __: Any, output: Any) -> None:
        assert grown is not None
        grown.outputs.append(output)
        if not through:
            raise Enough

    handle = None if grown is None else blocks[grown.height - 1].register_forward_hook(keep)
    for place, block in enumerate(below):
        block.forward = again if place else start
    try:
        yield grown
    finally:
        for block in below:
            del block.forward  # the class's own shows again
        if handle is not None:
            handle.remove()


@torch.no_grad()
def can_begin_above(model: Any, ids: torch.Tensor) -> bool:
    """Say whether passes that begin above each block give what whole passes give, to the last bit, on short rows."""
    blocks = model.blocks()
    try:
        whole = model.hidden(ids, None)
        for height in range(1, len(blocks)):
            with on(blocks, None, height) as trunk, suppress(Enough):
                model.hidden(ids, None)
            with on(blocks, trunk, None):
                if not torch.equal(model.hidden(ids, None), whole):
                    return False
    except (RuntimeError, TypeError, AttributeError, ValueError, StopIteration):
        return False
    return len(blocks) > 1
