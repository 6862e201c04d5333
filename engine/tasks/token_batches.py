"""Rows of tokens as micro-batches: which rows go together in a pass, and the tensors they become.

Everything is decided on the host from lengths alone; what crosses to the device is what the forward pass reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ctr.engine.seeding import mix, stream
from ctr.engine.task import Batch

Index = NDArray[np.int64]
WINDOW = 32  # micro-batches whose rows are sorted by length together: little padding, and still much of a shuffle


class Tokens:
    """Rows of tokens of one split, end to end: `flat` ids, and which of them are predicted."""

    def __init__(self, ids: Sequence[NDArray[np.int32]], trained: Sequence[NDArray[np.bool_]]) -> None:
        self.lengths = np.array([len(row) for row in ids], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64)
        self.flat = np.concatenate(ids).astype(np.int64) if len(ids) else np.zeros(0, np.int64)
        flags = np.concatenate(trained) if len(trained) else np.zeros(0, bool)
        flags[self.starts] = False  # nothing comes before the first token of a row, so nothing predicts it
        self.trained = flags
        self.counts = np.add.reduceat(flags, self.starts).astype(np.int64) if len(ids) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Layout:
    """Where rows lie in a micro-batch: row `rows[i]` begins at column `columns[i]` of line `lines[i]`."""

    rows: Index
    lines: Index
    columns: Index
    width: int

    @property
    def height(self) -> int:
        return int(self.lines[-1]) + 1


def layout(tokens: Tokens, rows: Index, width: int | None = None) -> Layout:
    """Lay one row a line, as wide as the longest, or `width`."""
    zeros = np.zeros(len(rows), np.int64)
    return Layout(rows, np.arange(len(rows)), zeros, width or int(tokens.lengths[rows].max()))


def gather(tokens: Tokens, at: Layout, ids: Sequence[str], pad: int, device: torch.device) -> Batch:
    """Return a micro-batch: `ids` and `mask` (lines, width), flat places `where` whose logits predict `labels`.

    Packed lines also carry `positions`, which begin anew with each row. `rows` (places) says whose token each is, as
    an index into the batch's own ids.
    """
    lengths, starts = tokens.lengths[at.rows], tokens.starts[at.rows]
    total = int(lengths.sum())
    owner = np.repeat(np.arange(len(at.rows)), lengths)
    inside = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    source = starts[owner] + inside
    target = (at.lines * at.width + at.columns)[owner] + inside
    cells = at.height * at.width
    words = np.full(cells, pad, np.int64)
    words[target] = tokens.flat[source]
    mask = np.zeros(cells, bool)
    mask[target] = True
    kept = tokens.trained[source]
    where = target[kept] - 1
    parts = [words, where, words[where + 1], owner[kept]]
    packed = len(at.rows) > at.height
    if packed:
        positions = np.zeros(cells, np.int64)
        positions[target] = inside
        gaps = ~mask
        positions[gaps] = np.arange(cells)[gaps] % at.width
        parts.append(positions)
    shape = (at.height, at.width)
    moved = torch.from_numpy(np.concatenate(parts)).to(device, non_blocking=True)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    pieces = [moved[stop - len(part) : stop] for part, stop in zip(parts, ends, strict=True)]
    tensors = {
        "ids": pieces[0].view(shape),
        "mask": torch.from_numpy(mask.reshape(shape)).to(device, non_blocking=True),
        "where": pieces[1],
        "labels": pieces[2],
        "rows": pieces[3],
    }
    if packed:
        tensors["positions"] = pieces[4].view(shape)
    return Batch([ids[row] for row in at.rows], int(kept.sum()), tensors)


def packed(lengths: Index, order: Index, width: int) -> list[Index]:
    """Put rows into lines of `width` tokens: each into the first of the sixteen newest lines that has room."""
    lines: list[list[int]] = []
    room: list[int] = []
    for row in order.tolist():
        size = int(lengths[row])
        first = max(0, len(lines) - 16)
        line = next((i for i in range(first, len(lines)) if room[i] >= size), None)
        if line is None:
            lines.append([row])
            room.append(width - size)
        else:
            lines[line].append(row)
            room[line] -= size
    return [np.array(line, np.int64) for line in lines]


class Passes:
    """Micro-batches of pass after pass over the rows of a phase; any of them can be asked for at any time."""

    def __init__(
        self,
        tokens: Tokens,
        kind: Literal["bucket", "pack", "pad"],
        micro_batch: int,
        width: int,
        seed: int,
        phase: int,
    ) -> None:
        self._tokens, self._kind, self._micro, self._width = tokens, kind, micro_batch, width
        self._seed, self._phase = seed, phase
        # rows are packed once a phase, so that every pass has equally many lines; a pass shuffles the lines
        self._lines = packed(tokens.lengths, self._shuffled(len(tokens), 0, "pack"), width) if kind == "pack" else []
        self.per_pass = -(-(len(self._lines) if kind == "pack" else len(tokens)) // micro_batch)
        self._now: tuple[int, list[Layout]] = (-1, [])

    def _shuffled(self, items: int, number: int, name: str = "data") -> Index:
        generator = torch.Generator().manual_seed(mix(stream(self._seed, name), self._phase, number))
        order: Index = torch.randperm(items, generator=generator).numpy()
        return order

    def at(self, number: int, index: int) -> Layout:
        """Return the layout of micro-batch `index` of a pass."""
        if self._now[0] != number:
            self._now = (number, self._turn(number))
        return self._now[1][index]

    def rows(self, number: int) -> list[Index]:
        """Return the rows of each micro-batch of a pass, in order."""
        return [self.at(number, index).rows for index in range(self.per_pass)]

    def _turn(self, number: int) -> list[Layout]:
        if self._kind == "pack":
            lines = [self._lines[i] for i in self._shuffled(len(self._lines), number)]
            return [self._of_lines(lines[i : i + self._micro]) for i in range(0, len(lines), self._micro)]
        order = self._shuffled(len(self._tokens), number)
        if self._kind == "pad":
            groups = [order[i : i + self._micro] for i in range(0, len(order), self._micro)]
            return [layout(self._tokens, rows, self._width) for rows in groups]
        groups = bucketed(self._tokens.lengths, order, self._micro)
        return [layout(self._tokens, groups[i]) for i in self._shuffled(len(groups), number, "buckets")]

    def _of_lines(self, lines: list[Index]) -> Layout:
        rows = np.concatenate(lines)
        numbers = np.repeat(np.arange(len(lines)), [len(line) for line in lines])
        sizes = [self._tokens.lengths[line] for line in lines]
        columns = np.concatenate([np.cumsum(size) - size for size in sizes])
        width = int(max(size.sum() for size in sizes))
        return Layout(rows, numbers, columns, width)


def bucketed(lengths: Index, order: Index, micro_batch: int) -> list[Index]:
    """Cut an order into micro-batches of rows of like length: stretches of 32 micro-batches are sorted by length."""
    groups = []
    for start in range(0, len(order), WINDOW * micro_batch):
        stretch = order[start : start + WINDOW * micro_batch]
        stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
        groups += [stretch[i : i + micro_batch] for i in range(0, len(stretch), micro_batch)]
    return groups


def by_budget(lengths: Index, budget: int) -> list[Index]:
    """Cut rows, longest first, into groups whose padded rows hold at most `budget` tokens, or one row."""
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        size = max(1, budget // max(int(lengths[order[start]]), 1))
        groups.append(order[start : start + size])
        start += size
    return groups
