"""What a merge leaves behind: base weights that are frozen, and yet no longer as they were built.

Checkpoints and snapshots leave frozen weights out, since a run builds them anew. Those that an adapter was folded into
must be among what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from torch.nn import Module

from . import resume
from .checkpoint import load_tensors, save_tensors


def sharing(module: Module, tensors: Iterable[Tensor]) -> set[str]:
    """Name the parameters that lie in the memory of some tensors, which may be views of them."""
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
    return {name for name, p in module.named_parameters() if p.untyped_storage().data_ptr() in places}


def complete(snapshot: Path, module: Module, bases: set[str]) -> None:
    """Add to a snapshot the base weights as they are before the first merge; what it holds stays as it is."""
    kept = load_tensors(snapshot)
    save_tensors(snapshot, {**resume.trained(module, bases), **kept})
