"""Losses of tokens: of a batch in training, and of whole splits row by row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from ctr.engine.task import Batch, Needs, Outputs

from .language_models import LanguageModel, watched

# numbers in one block of logits where nothing is kept of them: 128 MiB in float32; on a host what its caches hold
_LOGITS, _LOGITS_OF_HOST, _FEWEST = 2**25, 2**19, 256  # and tokens in a block at least, for the head is read for each


def forward(module: LanguageModel, batch: Batch, needs: Needs) -> Outputs:
    """Run a batch: mean cross-entropy over its trained tokens in float32, logits, and what `needs` asks for."""
    with watched(module, needs) as watch:
        logits, last = _logits(module, batch)
    loss = cross_entropy(logits.float(), batch.tensors["labels"])
    extra = {"reference": _reference(module, batch)} if needs.get("reference") else {}
    return Outputs(loss, logits, hidden=watch.hidden(last), attention=watch.shown_maps(), extra=extra)


def _logits(module: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    return module.logits(batch.tensors["ids"], batch.tensors.get("positions"), batch.tensors["where"])


@torch.no_grad()
def _reference(module: LanguageModel, batch: Batch) -> Outputs:
    """Run a batch without the adapter, and without a gradient; in the mode that the module is in."""
    with module.without_adapter():
        logits, _ = _logits(module, batch)
    return Outputs(cross_entropy(logits.float(), batch.tensors["labels"]), logits)


Sums = tuple[NDArray[np.float64], NDArray[np.float64]]


def score(module: LanguageModel, batches: Iterable[Batch]) -> Sums:
    """Return summed loss and tokens guessed right, row after row, in eval mode without gradients."""
    owner, rows, losses, hits = _scored(module, batches)
    return _summed(owner, rows, losses), _summed(owner, rows, hits)


def score_parts(module: LanguageModel, batches: Iterable[Batch], first: int) -> tuple[Sums, Sums]:
    """Return summed loss and count of the first trained tokens of each row, and of those after them."""
    owner, rows, losses, _ = _scored(module, batches)
    begins = np.flatnonzero(np.diff(owner, prepend=-1))  # the tokens of a row stand together
    place = np.arange(len(owner)) - np.repeat(begins, np.diff(np.append(begins, len(owner))))
    early, ones = place < first, np.ones(len(owner))
    before, after = (
        (_summed(owner[part], rows, losses[part]), _summed(owner[part], rows, ones[part])) for part in (early, ~early)
    )
    return before, after


def _summed(owner: NDArray[np.int64], rows: int, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.bincount(owner, numbers, rows).astype(np.float64)


def _scored(module: LanguageModel, batches: Iterable[Batch]) -> tuple[NDArray[np.int64], int, Any, Any]:
    """Return whose each trained token is, the number of rows, and loss and hit (0 or 1) of each token.

    One transfer a split: per-token numbers wait on the device, and are added up on the host in float64.
    """
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    owners: list[Tensor] = []
    rows = 0
    awake = [part for part in module.modules() if part.training]
    if awake:  # to switch a module that is in eval mode already takes milliseconds
        module.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                loss, hit = _tokens(module, batch)
                losses.append(loss)
                hits.append(hit)
                owners.append(batch.tensors["rows"] + rows)
                rows += len(batch.ids)
    finally:
        for part in awake:
            part.training = True
    if not losses:
        return np.zeros(0, np.int64), 0, np.zeros(0), np.zeros(0)
    owner, loss_of, hit_of = (torch.cat(parts).cpu() for parts in (owners, losses, hits))
    return owner.numpy(), rows, loss_of.double().numpy(), hit_of.double().numpy()


def _tokens(module: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return loss and whether it was guessed right (0 or 1) of each trained token; the head reads them in blocks."""
    ids, positions = batch.tensors["ids"], batch.tensors.get("positions")
    where, labels = batch.tensors["where"], batch.tensors["labels"]
    if not module.plain_head:
        return _of(module.logits(ids, positions, where)[0], labels)
    last = module.hidden(ids, positions).flatten(0, 1)
    head = module.causal.get_output_embeddings()
    on_host, vocab = last.device.type == "cpu", head.weight.shape[0]
    size = max(_FEWEST, _LOGITS_OF_HOST // vocab) if on_host else max(1, _LOGITS // vocab)
    parts = [
        _of(head(last.index_select(0, where[i : i + size])), labels[i : i + size]) for i in range(0, len(where), size)
    ]
    return torch.cat([loss for loss, _ in parts]), torch.cat([hit for _, hit in parts])


def _of(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Score logits (places, vocab), which are overwritten: one search for the largest serves loss and guess."""
    logits = logits.float()
    largest, guess = logits.max(-1, keepdim=True)
    right = logits.gather(1, labels[:, None]) - largest
    return logits.sub_(largest).exp_().sum(-1).log() - right.squeeze(1), (guess.squeeze(1) == labels).float()
