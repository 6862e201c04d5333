"""The forward pass over one step of a stream: each slot's window, and the loss of its chunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ctr.engine.task import Batch, Needs, Outputs

from .document_plan import Event
from .language_models import LanguageModel, watched


def gather(event: Event, flat: Tensor, starts: Any, rows: Any, ids: Any, slots: int) -> Batch:
    """Return a step's batch, made on the device by arithmetic on indices from tokens that lie there.

    `ids` (present, width) windows padded on the right; `places`, `labels`, `real` (present, chunk): where in the window
    a target's logits stand, the target, and whether there is one; `trains` (present,): who trains on this chunk. Where
    not all slots are present `slots` (present,) names them; where not all train `moves` (slots,) says which do.
    """
    device = flat.device
    sizes, chunks = event.end - event.start, event.end - event.first
    width, most = int(sizes.max()), int(chunks.max())
    begin = starts[event.documents]
    numbers = torch.tensor(
        [
            (begin + event.start).tolist(), sizes.tolist(), (event.first - event.start).tolist(), chunks.tolist(),
            event.trains.tolist(), event.slots.tolist(), (rows[event.documents] + event.chunk).tolist(),
        ]
    ).to(device, non_blocking=True)  # fmt: skip
    source, size, place, chunk, trains, present, row = numbers
    step = torch.arange(width, device=device)
    inside = torch.minimum(step, (size - 1)[:, None])  # padding repeats a token: no real token sees it
    words = flat[source[:, None] + inside].long()
    ahead = torch.arange(most, device=device)
    real = ahead < chunk[:, None]
    places = torch.where(real, place[:, None] + ahead, place[:, None])
    labels = flat[source[:, None] + places + 1].long()
    tensors = {"ids": words, "places": places, "labels": labels, "real": real, "trains": trains, "row": row}
    if len(event.slots) < slots:
        tensors["slots"] = present
    if len(event.slots) < slots or not event.trains.all():  # else the update need not choose, which costs it most
        tensors["moves"] = torch.zeros(slots, dtype=torch.bool, device=device).index_copy_(0, present, trains.bool())
    count = int(chunks[event.trains].sum())
    first = event.slots.tolist() if event.chunk == 0 else ()
    return Batch([ids[i] for i in event.documents], count, tensors, starts=first, group=event.group, alone=True)


def forward(module: LanguageModel, batch: Batch, needs: Needs, adapted: bool = True) -> Outputs:
    """Run a step, with the bank or without it.

    Scores are `losses` (present, chunk) of tokens, and `nats` and `tokens` (present,) of each slot's chunk, whether it
    is trained on or not. The loss has the value of the mean over the tokens trained on, or scored where none is; its
    gradient is that of the sum over documents of the mean over their chunk, so that no document's update depends on
    another's. Asked for `reference`, the same step is run once more without adapters and without a gradient.
    """
    tensors, bank = batch.tensors, module.bank
    if adapted and bank is not None:
        bank.active = tensors.get("moves")
        with bank.speaking(tensors.get("slots")), watched(module, needs) as watch:
            logits, last = _logits(module, tensors)
    else:
        with watched(module, needs) as watch:
            logits, last = _logits(module, tensors)
    losses, counts = _losses(logits, tensors), tensors["real"].sum(1)
    nats = losses.sum(1)
    trains = tensors["trains"] if batch.count else torch.ones_like(tensors["trains"])
    value = loss = _mean(nats, counts, trains)
    if batch.count:
        own = (nats / counts * trains).sum()
        loss = own - own.detach() + value
    extra: dict[str, Any] = {}
    if needs.get("reference"):
        with torch.no_grad():
            plain = _logits(module, tensors)[0]
            alone = _losses(plain, tensors).sum(1)
        extra["reference"] = Outputs(_mean(alone, counts, trains), plain, {"nats": alone, "tokens": counts})
    scores = {"nats": nats.detach(), "tokens": counts, "losses": losses.detach()}
    return Outputs(loss, logits, scores, watch.hidden(last), watch.shown_maps(), extra)


def _losses(logits: Tensor, tensors: Any) -> Tensor:
    """Return the loss of every target `(present, chunk)`, 0 where there is none."""
    losses = cross_entropy(logits.float().flatten(0, 1), tensors["labels"].flatten(), reduction="none")
    found: Tensor = losses.view_as(tensors["real"]) * tensors["real"]
    return found


def _mean(nats: Tensor, counts: Tensor, trains: Tensor) -> Tensor:
    """Return the mean loss over the tokens of the slots that train, without a graph."""
    return ((nats * trains).sum() / (counts * trains).sum()).detach()


def _logits(module: LanguageModel, tensors: Any) -> tuple[Tensor, Tensor]:
    places = tensors["places"][:, :, None]
    if module.plain_head:
        last = module.hidden(tensors["ids"], None)
        picked = last.gather(1, places.expand(-1, -1, last.shape[-1]))
        return module.causal.get_output_embeddings()(picked), last
    out = module.causal(input_ids=tensors["ids"], use_cache=False, output_hidden_states=True)
    return out.logits.gather(1, places.expand(-1, -1, out.logits.shape[-1])), out.hidden_states[-1]
