"""The toy transformer: pre-norm blocks over learned places, small enough to train in seconds on one core.

Weights are created in the source's order with torch's default initialisation, so that one seed gives both the same.
Source: the public "Surface Tension Transformers" code, `model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import GELU, Embedding, LayerNorm, Linear, Module, ModuleList, Parameter, Sequential
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.nn.init import xavier_uniform_, zeros_

from ctr.engine.errors import Problem, SpecError
from ctr.engine.task import Needs

from .sequence_config import ToySettings
from .toy_branches import Branches

Inside = Mapping[str, Tensor]


@dataclass
class Seen:
    """What a forward pass gave: logits (batch, seq, vocab), and what was asked for, by layer."""

    logits: Tensor
    hidden: Mapping[int, Tensor]
    attention: Mapping[int, Tensor]
    branches: Inside | None


class Attention(Module):
    """Multi-head attention; `causal` lets a position see itself and those before it, otherwise it sees all."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.out = Linear(dim, dim)  # drawn before the three projections, as in torch's own module
        self.qkv = Parameter(torch.empty(3 * dim, dim))
        self.qkv_bias = Parameter(torch.zeros(3 * dim))
        xavier_uniform_(self.qkv)
        zeros_(self.out.bias)

    def forward(self, x: Tensor, maps: bool) -> tuple[Tensor, Tensor | None]:
        """Return the answer (batch, seq, dim), and the maps (batch, heads, seq, seq) where they are asked for.

        Maps are computed beside the answer, which comes from the same kernel with or without them.
        """
        parts = linear(x, self.qkv, self.qkv_bias).view(*x.shape[:-1], 3, self.heads, -1)
        queries, keys, values = parts.transpose(-4, -2).unbind(-3)
        mixed = scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        answer: Tensor = self.out(mixed.transpose(-3, -2).flatten(-2))
        return answer, self._maps(queries, keys) if maps else None

    def _maps(self, queries: Tensor, keys: Tensor) -> Tensor:
        scores = queries @ keys.mT * queries.shape[-1] ** -0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        maps: Tensor = scores.softmax(-1)
        return maps


class Block(Module):
    """Attention, then a feed-forward part, each beside the stream that it reads normalised."""

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        dim = settings.dim
        self.before_attention = LayerNorm(dim)
        self.attention = Attention(dim, settings.heads, settings.causal)
        self.before_feed = LayerNorm(dim)
        self.feed: Module
        if settings.compartments:
            self.feed = Branches(
                dim, settings.compartments, settings.top_k, settings.mode, settings.inhibition_strength
            )
        else:
            self.feed = Sequential(Linear(dim, 4 * dim), GELU(), Linear(4 * dim, dim))

    def forward(self, x: Tensor, maps: bool) -> tuple[Tensor, Tensor | None, Inside | None]:
        attended, seen = self.attention(self.before_attention(x), maps)
        x = x + attended
        answer = self.feed(self.before_feed(x))
        answer, inside = answer if isinstance(answer, tuple) else (answer, None)
        return x + answer, seen, inside


class ToyTransformer(Module):
    """Guess the next token at every place of sequences of up to `seq` tokens."""

    def __init__(self, settings: ToySettings, vocab: int, seq: int) -> None:
        super().__init__()
        self.vocab, self.seq = vocab, seq
        self.tokens = Embedding(vocab, settings.dim)
        self.places = Embedding(seq, settings.dim)
        self.blocks = ModuleList(Block(settings) for _ in range(settings.layers))
        self.norm = LayerNorm(settings.dim)
        self.head = Linear(settings.dim, vocab)

    def forward(self, tokens: Tensor, needs: Needs | None = None) -> Seen:
        """Return logits for tokens (batch, seq), and of the insides what `needs` asks for and no more.

        `hidden`: i is the stream after block i, -1 that after the final norm, (batch, seq, dim). `attention`: i is the
        maps of block i, from the end where negative, (batch, heads, seq, seq). `branches`: `outputs`, `gates`,
        `scores`, `inhibition` of all blocks, (batch, layers, seq, K, …); none in a model without compartments.
        """
        wanted = self._wanted(needs or {})
        hidden, attention, insides = dict[int, Tensor](), dict[int, Tensor](), list[Inside]()
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for index, block in enumerate(self.blocks):
            called = wanted["attention"] & {index, index - len(self.blocks)}
            x, maps, inside = block(x, bool(called))
            attention |= dict.fromkeys(called, maps)
            if index in wanted["hidden"]:
                hidden[index] = x
            if wanted["branches"] and inside is not None:
                insides.append(inside)
        x = self.norm(x)
        if -1 in wanted["hidden"]:
            hidden[-1] = x
        return Seen(self.head(x), hidden, attention, _over_layers(insides))

    def _wanted(self, needs: Needs) -> Needs:
        last = len(self.blocks) - 1
        known = {"hidden": {-1, *range(last + 1)}, "attention": set(range(-last - 1, last + 1))}
        for what, there in known.items():
            if unknown := needs.get(what, frozenset()) - there:
                kind = "hidden states" if what == "hidden" else "attention maps"
                text = f"the toy transformer has no {kind} of layer {min(unknown)}"
                text = f"{text}; it has {', '.join(map(str, sorted(there)))}"
                raise SpecError([Problem("spec", 0, 0, "plugins", text)])
        return {what: needs.get(what, frozenset()) for what in ("hidden", "attention", "branches")}


def _over_layers(insides: list[Inside]) -> Inside | None:
    return {name: torch.stack([one[name] for one in insides], dim=1) for name in insides[0]} if insides else None
