"""The book of a stream: what each chunk scored, entered once, on the device and in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ctr.engine.errors import VerificationError


class Ledger:
    """One row a chunk: its summed loss in nats, and how often it was entered, which is once."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.nats = torch.full((rows,), float("nan"), dtype=torch.float64, device=device)
        self.entries = torch.zeros(rows, dtype=torch.int32, device=device)

    def book(self, rows: Tensor, nats: Tensor) -> None:
        """Enter sums of loss `(chunks,)` into rows; nothing waits for the device."""
        self.nats.index_copy_(0, rows, nats.detach().double())
        self.entries.index_add_(0, rows, torch.ones_like(rows, dtype=torch.int32))

    def by_document(self, first: NDArray[np.int64], chunks: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the nats of documents whose chunks begin at row `first`; raises where a chunk is not there once."""
        nats, entries = self.nats.cpu().numpy(), self.entries.cpu().numpy()
        found = np.empty(len(first))
        for i, (row, count) in enumerate(zip(first.tolist(), chunks.tolist(), strict=True)):
            seen = entries[row : row + count]
            if (seen != 1).any():
                at = int(np.flatnonzero(seen != 1)[0])
                text = f"chunk {at} of document {i} was scored {int(seen[at])} times; every chunk is scored once"
                raise VerificationError(text)
            found[i] = nats[row : row + count].sum()
        return found

    def state(self) -> Mapping[str, Any]:
        return {"nats": self.nats.cpu().clone(), "entries": self.entries.cpu().clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.nats.copy_(state["nats"])
        self.entries.copy_(state["entries"])
