"""A language task of 22 rows: a small causal transformer on ragged rows, which shows its insides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ctr.engine.task import Batch, Evaluation, Outputs

from .tiny import LowRank, Tiny

WORDS, SEQ, WIDTH, HEADS, BRANCHES = 11, 6, 8, 2, 3


class Block(torch.nn.Module):
    """Causal attention with its maps, then a feed-forward part of three gated branches."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(WIDTH, 3 * WIDTH)
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.router = torch.nn.Linear(WIDTH, BRANCHES)
        self.branches = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(BRANCHES))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        parts = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        maps = (parts[0] @ parts[1].mT / 2).masked_fill(~seen, -1e9).softmax(-1)
        x = x + self.dropout(self.out((maps @ parts[2]).transpose(1, 2).flatten(2)))
        scores = self.router(x)
        gates = scores.softmax(-1)
        answers = torch.stack([branch(x).tanh() for branch in self.branches], dim=-2)
        inside = {"outputs": answers, "gates": gates, "scores": scores}
        return x + self.dropout((gates[..., None] * answers).sum(-2)), maps, inside


class Reader(torch.nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(WORDS, WIDTH)
        self.places = torch.nn.Embedding(SEQ, WIDTH)
        self.blocks = torch.nn.ModuleList(Block(dropout) for _ in range(2))
        self.head: torch.nn.Module = torch.nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor], list[Any]]:
        x = self.words(words) + self.places.weight[: words.shape[1]]
        seen = torch.ones(words.shape[1], words.shape[1], dtype=torch.bool).tril() & mask[:, None, None, :]
        hidden, maps, insides = [x], [], []
        for block in self.blocks:
            x, one, inside = block(x, seen)
            hidden.append(x)
            maps.append(one)
            insides.append(inside)
        return self.head(x), hidden, maps, insides


class TinyText(Tiny):
    """Guess the next of eleven words; rows of 2 to 6, padded at the end.

    Hands out what is asked for by layer; with `open_house` everything, asked or not.
    """

    provides = frozenset({"hidden", "attention", "branches"})

    def __init__(self, seed: int = 0, dropout: float = 0.2, open_house: bool = False, lora: bool = False) -> None:
        super().__init__(seed, dropout=dropout, lora=lora)
        self.open_house = open_house
        self.asked: list[dict[str, set[int]]] = []
        draw = torch.Generator().manual_seed(9)
        lengths = torch.randint(2, SEQ + 1, (len(self.x),), generator=draw)
        self.mask = torch.arange(SEQ) < lengths[:, None]
        start = torch.randint(0, WORDS, (len(self.x), 1), generator=draw)
        self.words = torch.where(self.mask, (start + 2 * torch.arange(SEQ)) % WORDS, 0)

    def build(self) -> torch.nn.Module:
        torch.manual_seed(self.seed)
        reader = Reader(self.dropout)
        if self.lora:
            reader.head = LowRank(WIDTH, WORDS)
        return reader

    def pair(self, module: Any) -> Any:
        return module.head

    def rows(self, ids: Any) -> Batch:
        index = torch.as_tensor(np.asarray(ids, np.int64))
        mask = self.mask[index]
        count = int(mask[:, 1:].sum())
        return Batch(index.tolist(), count, {"words": self.words[index], "mask": mask})

    def batch(self, epoch: int, index: int) -> Batch:
        return self.rows(self.order(epoch)[index * self.micro : (index + 1) * self.micro])

    def forward(self, module: torch.nn.Module, batch: Batch, needs: Any) -> Outputs:
        self.asked.append({what: set(layers) for what, layers in needs.items()})
        logits, hidden, maps, insides = module(batch.tensors["words"], batch.tensors["mask"])
        loss = self._losses(logits, batch)[batch.tensors["mask"][:, 1:]].mean()
        wanted = {"hidden": range(-3, 3), "attention": range(-2, 2), "branches": {-1}} if self.open_house else needs
        extra = {}
        if "branches" in wanted:
            extra["branches"] = {name: torch.stack([one[name] for one in insides], dim=1) for name in insides[0]}
        shown = [
            {n: layers[n] for n in wanted.get(what, ()) if -len(layers) <= n < len(layers)}
            for what, layers in (("hidden", hidden), ("attention", maps))
        ]
        return Outputs(loss, logits, hidden=shown[0], attention=shown[1], extra=extra)

    def _losses(self, logits: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(logits[:, :-1].transpose(1, 2), batch.tensors["words"][:, 1:], reduction="none")

    def evaluate(self, module: torch.nn.Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        training = module.training
        module.eval()
        batch = self.rows(range(len(self.x)))
        with torch.no_grad():
            logits = module(batch.tensors["words"], batch.tensors["mask"])[0]
            kept = self.mask[:, 1:]
            losses = (self._losses(logits, batch) * kept).sum(1).double().numpy()
        module.train(training)
        return Evaluation(split, list(range(len(losses))), losses, kept.sum(1).double().numpy(), {})

    def probe(self, size: int) -> Sequence[Batch]:
        return [self.rows([0, 1, 2, 3, 4]), self.rows([5, 6])]
