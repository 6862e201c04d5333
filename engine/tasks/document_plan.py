"""Which document is in which slot when, and what each step scores: arithmetic on lengths alone, known before the first.

A document of L tokens has L - 1 targets. The queue is cut into groups of as many documents as there are slots; those
of a group advance together, a chunk a step. Chunk k of a document with P targets covers targets k·c up to
min((k+1)·c, P), predicted from at most the last `window` tokens before each chunk's end. The last chunk of a document
is scored and never trained on. Source: the per-document adaptation that warm A comes from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Event:
    """One step of a group: the slots present, their documents, and what each scores. All arrays `(present,)`.

    Inputs `start` to `end` of a document predict; targets from `first` to `end` are scored; `trains` where a chunk of
    the document follows.
    """

    group: int
    chunk: int
    slots: Index
    documents: Index
    start: Index
    first: Index
    end: Index
    trains: NDArray[np.bool_]


def queue(lengths: Index, order: str) -> Index:
    """Return documents in the order they are read; of equal length, in the order given."""
    if order == "given":
        return np.arange(len(lengths))
    return np.argsort(-lengths if order == "longest_first" else lengths, kind="stable").astype(np.int64)


class StreamPlan:
    """All steps of a stream. `targets` are the targets of each document, one or more; `parts` as in the settings."""

    def __init__(
        self, targets: Index, order: str, slots: int, chunk: int, window: int, parts: Sequence[int] = ()
    ) -> None:
        self.targets, self.slots, self.chunk, self.window = targets, slots, chunk, window
        self.queue = queue(targets, order)
        self.groups = [self.queue[i : i + slots] for i in range(0, len(self.queue), slots)]
        self.chunks = -(-targets // chunk)
        self.steps = np.array([self.chunks[group].max() for group in self.groups], np.int64)
        self.row = np.concatenate([[0], np.cumsum(self.chunks)])[:-1]
        """Row of the ledger in which a document's first chunk stands."""
        ends = [min(-(-part // slots), len(self.groups)) for part in parts]
        self.bounds = [0, *ends, len(self.groups)]
        """Groups before each part, and all of them."""
        self._starts = np.concatenate([[0], np.cumsum(self.steps)])

    @property
    def rows(self) -> int:
        """How many chunks all documents have."""
        return int(self.chunks.sum())

    def length(self, part: int) -> int:
        """Return how many steps a part has."""
        return int(self._starts[self.bounds[part + 1]] - self._starts[self.bounds[part]])

    def documents(self, parts: int) -> Index:
        """Return the documents of the first `parts` parts, in the order they are read."""
        return self.queue[: self.bounds[parts] * self.slots]

    def event(self, part: int, index: int) -> Event:
        """Return step `index` of a part."""
        at = int(self._starts[self.bounds[part]]) + index
        number = int(np.searchsorted(self._starts, at, side="right")) - 1
        chunk = at - int(self._starts[number])
        group = self.groups[number]
        slots = np.flatnonzero(self.chunks[group] > chunk)
        documents = group[slots]
        first = np.full(len(slots), chunk * self.chunk, np.int64)
        end = np.minimum(first + self.chunk, self.targets[documents])
        start = np.maximum(end - self.window, 0)
        return Event(number, chunk, slots, documents, start, first, end, self.chunks[documents] > chunk + 1)

    def unadapted(self, document: int) -> list[tuple[int, int, int]]:
        """Return rows (start, first, end) that score a document without adapters through the very same windows.

        All chunks within the first window are one row; each later one needs a row of its own.
        """
        count = int(self.targets[document])
        whole = count if count <= self.window else self.window // self.chunk * self.chunk
        rows = [(0, 0, whole)]
        for first in range(whole, count, self.chunk):
            end = min(first + self.chunk, count)
            rows.append((end - self.window, first, end))
        return rows

    def pieces(self, documents: Index) -> list[tuple[int, int, int]]:
        """Return rows (document, start, end) of at most `window` inputs that cover documents once, for training."""
        found = []
        for document in documents.tolist():
            count = int(self.targets[document])
            found += [(document, i, min(i + self.window, count)) for i in range(0, count, self.window)]
        return found
