"""Drawing synthetic sequences: the rule, and two ways to draw a run's training data by position.

Source of the rule: the public "Surface Tension Transformers" code, `data.py` and `toy_accretion.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from ctr.engine.seeding import torch_generator

from .sequence_config import MARKERS, SequenceData

Pair = tuple[Tensor, Tensor]
Stream = Callable[[int], Pair]

# Knuth's multiplier for 64-bit linear congruences: odd, so that no token is lost when the product wraps around
_MULTIPLIER = 6364136223846793005


def draw(data: SequenceData, items: int, generator: Generator) -> Pair:
    """Return inputs and targets, (items, seq) each, int64 on the host.

        base_t = (start + t (mode + 1) + (t mod 4) (mode + 2) + noise_t) mod C,   t = 0 … seq

    with start from 0 … C-1 and mode from 0 … 3 per sequence, noise from 0, 1, 2 per place, drawn in this order; C is
    the number of content tokens. Inputs are base_0 … base_(seq-1), targets base_1 … base_seq plus the offset, mod C.
    With a marker both are moved up by 3, past the marker tokens, and the marker replaces the first input.

    Noise is drawn anew per place, so a model that sees only what came before cannot get below ln 3 per token.
    """
    content, places = data.content, torch.arange(data.seq + 1)
    start = torch.randint(0, content, (items, 1), generator=generator)
    mode = torch.randint(0, 4, (items, 1), generator=generator)
    noise = torch.randint(0, 3, (items, data.seq + 1), generator=generator)
    base = (start + places * (mode + 1) + places % 4 * (mode + 2) + noise) % content
    inputs, targets = base[:, :-1].contiguous(), (base[:, 1:] + data.offset) % content
    if data.marker is not None:
        inputs, targets = inputs + MARKERS, targets + MARKERS
        inputs[:, 0] = data.marker
    return inputs, targets


def names(inputs: Tensor, targets: Tensor) -> list[int]:
    """Return an id per sequence, a number of 63 bits made of all its tokens: equal ids mean equal sequences."""
    tokens = torch.cat([inputs, targets], dim=1) + 1
    ids: list[int] = ((tokens @ _powers(tokens.shape[1])) & (2**63 - 1)).tolist()
    return ids


@lru_cache(maxsize=64)
def _powers(count: int) -> Tensor:
    """Return the first powers of the multiplier modulo 2^64, as int64 holds them."""
    powers = [pow(_MULTIPLIER, place, 2**64) for place in range(1, count + 1)]
    return torch.tensor([power - 2**64 if power >= 2**63 else power for power in powers])


def positional(data: SequenceData, items: int, seed: int, phase: int) -> Stream:
    """Return the training data of a phase: micro-batch n is drawn from a generator of its own, by (seed, phase, n)."""
    return lambda number: draw(data, items, torch_generator(seed, "data", phase, number))


class Consecutive:
    """The training data of a phase as the source draws them: micro-batch n is the n-th draw from one generator.

    The generator begins at the run's seed, 10000 further on per phase. Whatever is asked for is the same, in any
    order: a number further on is reached by drawing what lies between, one further back by beginning again. So a
    resumed run first draws all that went before.
    """

    def __init__(self, data: SequenceData, items: int, seed: int, phase: int) -> None:
        self._data, self._items, self._seed = data, items, seed + 10000 * phase
        self._generator = Generator()
        self._number, self._last = -1, (torch.empty(0), torch.empty(0))
        self._begin()

    def __call__(self, number: int) -> Pair:
        if number < self._number:
            self._begin()
        while self._number < number:
            self._last = draw(self._data, self._items, self._generator)
            self._number += 1
        return self._last

    def _begin(self) -> None:
        self._number = -1
        self._generator.manual_seed(self._seed)


def held_out(data: SequenceData, split: str) -> Pair:
    """Return a split, by `split_seed` alone; a longer one begins with other sequences, for it is one draw."""
    return draw(data, data.sizes()[split], torch_generator(data.split_seed, f"split:{split}"))
