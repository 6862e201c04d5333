"""What the lower blocks of a model gave, batch after batch, so that passes that change none of them begin above.

Blocks hand their output to the next one and nothing else, which is tried out before it is relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import Module


@dataclass
class Trunk:
    """The outputs of the first `height` blocks, one for each forward pass, in the order of the passes."""

    height: int
    outputs: list[Any] = field(default_factory=list)


@contextmanager
def on(blocks: list[Module], trunk: Trunk | None, keep: int | None) -> Iterator[Trunk | None]:
    """Begin the passes within above a trunk, and give the trunk of height `keep` that they grow, if one is asked for.

    The passes must be those that grew the trunk, in the same order and below it with the same weights.
    """
    grown = None if keep is None else Trunk(keep)
    handles: list[Any] = []
    if trunk is not None:
        passes = iter(trunk.outputs)
        now: list[Any] = [None]

        def start(*_: Any, **__: Any) -> Any:
            now[0] = next(passes)
            return now[0]

        def again(*_: Any, **__: Any) -> Any:
            return now[0]

        for place, block in enumerate(blocks[: trunk.height]):
            block.forward = again if place else start
    if grown is not None:
        handles.append(blocks[grown.height - 1].register_forward_hook(lambda _, __, out: grown.outputs.append(out)))
    try:
        yield grown
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks[: trunk.height] if trunk is not None else ():
            del block.forward  # the class's own shows again


@torch.no_grad()
def can_begin_above(model: Any, ids: torch.Tensor) -> bool:
    """Say whether passes that begin above each block give what whole passes give, to the last bit, on short rows."""
    blocks = model.blocks()
    try:
        whole = model.hidden(ids, None)
        for height in range(1, len(blocks)):
            with on(blocks, None, height) as trunk:
                model.hidden(ids, None)
            with on(blocks, trunk, None):
                if not torch.equal(model.hidden(ids, None), whole):
                    return False
    except (RuntimeError, TypeError, AttributeError, ValueError, StopIteration):
        return False
    return len(blocks) > 1
