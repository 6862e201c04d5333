"""Attention maps beside scaled dot-product attention: the forward pass stays what it is, to the bit.

Transformers asks a registered function for the output of each attention layer. Ours returns what its own SDPA function
returns; where somebody collects, it also works out the maps of the layers that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

NAME = "ctr_sdpa"


class Collector:
    """The maps of one forward pass; `wanted` layers count from 0."""

    def __init__(self, wanted: frozenset[int]) -> None:
        self.wanted = wanted
        self.found: dict[int, Tensor] = {}


_COLLECTOR: ContextVar[Collector | None] = ContextVar("attention maps", default=None)


def register() -> str:
    """Make the function known to transformers, once a process, and return the name it goes by."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])  # masks as SDPA wants them
    return NAME


@contextmanager
def collecting(wanted: frozenset[int]) -> Iterator[dict[int, Tensor]]:
    """Collect maps (batch, heads, seq, seq), after the softmax and before dropout, of the passes within."""
    collector = Collector(wanted)
    token = _COLLECTOR.set(collector)
    try:
        yield collector.found
    finally:
        _COLLECTOR.reset(token)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    collector = _COLLECTOR.get()
    if collector is not None and module.layer_idx in collector.wanted:
        scaling = more.get("scaling")
        collector.found[module.layer_idx] = maps(query, key, attention_mask, scaling)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **more)


def maps(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Return softmax(scaling · q kᵀ + mask) over keys, (batch, heads, seq, seq), the softmax in float32.

    `query` is (batch, heads, seq, features), `key` (batch, key heads, seq, features), each key head read by as many
    query heads in a row. `mask` broadcasts to the scores, bool (true is seen) or added; None is causal. `scaling` is
    1 / sqrt(features) where it is None.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is None:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    elif mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    else:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32)
