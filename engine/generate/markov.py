"""Documents whose symbols follow each other by chance, each by a rule of its own within a family of like rules.

log P(next | now) = shared base + sum over m of z_m a_m b_m^T, normalised, with a, b shared and z private: a document
can be learned while it is read, and all are learned in the same few directions. Source: the probe by which adapters
that outlive a document were tried.
"""

from __future__ import annotations

import math
import string

import numpy as np
from numpy.typing import NDArray

from ctr.engine.seeding import mix, stream

SYMBOLS = string.ascii_letters + string.digits + "+/"
DIRECTIONS, BASE_SD, LENGTH_SIGMA = 4, 1.5, 0.6
SHORTEST, LONGEST = 24, 700
_BLOCK = 256  # documents whose rules are in memory at once: 8 MB


def documents(count: int, spread: float, median: int, seed: int, family_seed: int) -> list[str]:
    """Return `count` texts over 64 symbols; `spread` is the standard deviation of z.

    Lengths are log-normal around `median` with sigma 0.6, cut to 24…700. Document i depends on its number, the seeds,
    spread and median alone.
    """
    size = len(SYMBOLS)
    shared = np.random.default_rng(stream(family_seed, "markov.family"))
    base = shared.normal(0.0, BASE_SD, (size, size))
    left, right = shared.normal(size=(2, DIRECTIONS, size))
    key = stream(seed, "markov.document")
    letters = np.array(list(SYMBOLS))
    found: list[str] = []
    for first in range(0, count, _BLOCK):
        streams = [np.random.default_rng(mix(key, i)) for i in range(first, min(first + _BLOCK, count))]
        lengths = np.array([_length(random, median) for random in streams])
        own = np.stack([random.normal(0.0, spread, DIRECTIONS) for random in streams])
        chances = np.stack([random.random(LONGEST) for random in streams])
        rules = np.exp(base + np.einsum("dm,mi,mj->dij", own, left, right))
        rules = np.cumsum(rules, axis=2)
        rules /= rules[:, :, -1:]
        symbols = _walk(rules, chances[:, : lengths.max()])
        found += ["".join(letters[row[:length]]) for row, length in zip(symbols, lengths, strict=True)]
    return found


def _length(random: np.random.Generator, median: int) -> int:
    return int(np.clip(round(median * math.exp(random.normal(0.0, LENGTH_SIGMA))), SHORTEST, LONGEST))


def _walk(rules: NDArray[np.float64], chances: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return symbols (documents, steps); the first is as likely as any other."""
    rows = np.arange(len(rules))
    symbols = np.empty(chances.shape, np.int64)
    symbols[:, 0] = (chances[:, 0] * len(SYMBOLS)).astype(np.int64)
    for step in range(1, chances.shape[1]):
        cumulated = rules[rows, symbols[:, step - 1]]
        symbols[:, step] = np.minimum((cumulated < chances[:, step, None]).sum(1), len(SYMBOLS) - 1)
    return symbols
