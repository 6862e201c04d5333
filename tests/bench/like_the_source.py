"""What the source of the geometry terms does in a step and in an evaluation, written plainly: the other side of ratios.

Every row is padded to the full length, attention is eager, all attention maps and hidden states are kept, all four
regularisers are computed whatever their weights, and the loss is read on the host after every micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ctr.engine.tasks.language_models import LanguageModel

IGNORED = -100


@dataclass(frozen=True)
class Padded:
    """Rows of token ids (rows, length), padded on the right; `mask` is 1 at tokens, `labels` -100 at padding."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    @classmethod
    def of(cls, rows: Sequence[np.ndarray[Any, Any]], length: int, pad: int) -> Padded:
        ids, mask = torch.full((len(rows), length), pad), torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.from_numpy(row)
            mask[index, : len(row)] = 1
        return cls(ids, mask, ids.masked_fill(mask == 0, IGNORED))

    def __len__(self) -> int:
        return len(self.ids)

    def at(self, index: Tensor) -> Padded:
        return Padded(self.ids[index], self.mask[index], self.labels[index])


@contextmanager
def eager(module: LanguageModel) -> Iterator[None]:
    """Let a model run eager attention within."""
    config = module.causal.config
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


def look(module: LanguageModel, rows: Padded) -> Any:
    """Run rows with everything kept; the model's own loss is the mean over the tokens that are no padding."""
    keep = {"output_attentions": True, "output_hidden_states": True, "use_cache": False}
    return module.net(input_ids=rows.ids, attention_mask=rows.mask, labels=rows.labels, **keep)


# -------------------------------------------------------------------------------------------------------- regularisers
def between_heads(maps: Sequence[Tensor]) -> Tensor:
    """Return the mean cosine of two heads' maps, over layers, samples and ordered pairs."""
    flat = normalize(torch.stack(list(maps), 1).flatten(3), dim=-1, eps=1e-12)  # (batch, layers, heads, seq²)
    return off_diagonal(flat @ flat.mT)


def off_diagonal(square: Tensor) -> Tensor:
    """Return the mean of what is off the diagonal of the last two axes."""
    return square[..., ~torch.eye(square.shape[-1], dtype=torch.bool)].mean()


def crowding(hidden: Tensor, most: int = 128) -> Tensor:
    """Return mean exp(-distance²) of the first `most` token vectors, padding included, on the sphere."""
    x = normalize(hidden.flatten(0, 1)[:most], dim=-1, eps=1e-12)
    return off_diagonal(torch.exp(-torch.cdist(x, x).square()))


def chance_pairs(hidden: Tensor, mask: Tensor, tau: float = 0.85, peers: int = 8, most: int = 256) -> Tensor:
    """Return mean relu(cosine - tau)² between real tokens and those each draws."""
    rows = hidden.flatten(0, 1)[mask.flatten() != 0]
    if len(rows) > most:
        rows = rows[torch.randperm(len(rows))[:most]]
    met = torch.randint(0, len(rows), (len(rows), peers))
    here = torch.arange(len(rows))[:, None]
    met = torch.where(met == here, (here + 1) % len(rows), met)
    x = normalize(rows, dim=-1, eps=1e-8)
    return torch.relu((x[:, None] * x[met]).sum(-1) - tau).square().mean()


# ------------------------------------------------------------------------------------------------------------ training
class Step:
    """Micro-batches of `rows` in turn, `accum` of them per update by AdamW with torch's own settings."""

    def __init__(self, module: LanguageModel, rows: Padded, batch: int, accum: int, weights: dict[str, float]) -> None:
        self.module, self.rows, self.batch, self.accum, self.weights = module, rows, batch, accum, weights
        module.causal.config._attn_implementation = "eager"
        module.train_what(adapter=True)
        module.train()
        self.optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=2e-3)
        self.next, self.losses = 0, list[float]()

    def step(self) -> None:
        """Make one update."""
        self.optimizer.zero_grad()
        for _ in range(self.accum):
            rows = self.rows.at(torch.arange(self.next, self.next + self.batch) % len(self.rows))
            self.next += self.batch
            out = look(self.module, rows)
            (self.total(out, rows.mask) / self.accum).backward()
            self.losses.append(float(out.loss.detach()))
        self.optimizer.step()

    def total(self, out: Any, mask: Tensor) -> Tensor:
        hidden, weights = out.hidden_states[-1], self.weights
        gossip = chance_pairs(hidden, mask)
        if weights.get("gossip"):  # once by default settings and once by its own
            gossip = chance_pairs(hidden, mask, tau=0.5)
        found = {"diversity": between_heads(out.attentions), "repulsion": crowding(hidden)}
        found |= {"sparsity": hidden.abs().mean(), "gossip": gossip}
        total: Tensor = out.loss
        for name, value in found.items():
            total = total + weights.get(name, 0.0) * value
        return total


# ---------------------------------------------------------------------------------------------------------- evaluation
def singular_values(hidden: Tensor) -> Tensor:
    """Return the singular values of the column-centred rows of (batch, seq, features), on the host."""
    rows = hidden.detach().float().cpu().flatten(0, 1)
    return torch.linalg.svdvals(rows - rows.mean(0))


def rank_and_isotropy(hidden: Tensor) -> tuple[float, float]:
    """Return effective rank and isotropy, each from a decomposition of its own."""
    sigma = singular_values(hidden)
    p = sigma / sigma.sum().clamp(min=1e-8)
    rank = float(torch.exp(-(p * p.clamp(min=1e-8).log()).sum()))
    sigma = singular_values(hidden)
    return rank, float(sigma.max() / sigma.mean().clamp(min=1e-8))


@torch.no_grad()
def evaluate(module: LanguageModel, rows: Padded) -> dict[str, float]:
    """Return means over rows, one row at a time, of the loss, all regularisers and all metrics."""
    module.eval()
    found = []
    with eager(module):
        for index in range(len(rows)):
            row = rows.at(torch.tensor([index]))
            out = look(module, row)
            hidden, alike = out.hidden_states[-1], float(between_heads(out.attentions))
            rank, isotropy = rank_and_isotropy(hidden)
            found.append({
                "loss": float(out.loss), "head_similarity": alike, "effective_rank": rank, "isotropy": isotropy,
                "active_fraction": float((hidden.abs() > 0.05).float().mean()),
                "diversity": float(between_heads(out.attentions)), "repulsion": float(crowding(hidden)),
                "sparsity": float(hidden.abs().mean()), "gossip": float(chance_pairs(hidden, row.mask)),
            })  # fmt: skip
    return {name: sum(one[name] for one in found) / len(found) for name in found[0]}
