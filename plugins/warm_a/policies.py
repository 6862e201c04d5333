"""What a factor A may become at a reset: each a pure function of A as it is and of A as the run began.

A has shape (..., rank, in); every leading index is an adapter of its own. Sources: the per-document adaptation that
warm A comes from, for keeping A at all; the ways of restraining it are ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def norm(now: Tensor, start: Tensor) -> Tensor:
    """Keep the direction of each row and give it the length it had at the start: row·|start row| / |row|.

    Both (..., rank, in), as the result. A row that is zero has no direction and becomes the start's. What A has learned
    is kept as far as it is direction; its growth, which raises the size of every step of B, is not.
    """
    length = now.norm(dim=-1, keepdim=True)
    return torch.where(length > 0, now * (start.norm(dim=-1, keepdim=True) / length), start)


def pull(now: Tensor, start: Tensor, rho: float) -> Tensor:
    """Go back towards the start: start + rho·(now - start); rho 1 keeps A, rho 0 is the start.

    Both (..., rank, in), as the result. Over many resets A forgets what it learned k resets ago by rho^k.
    """
    return start + rho * (now - start)


def orth(now: Tensor, start: Tensor) -> Tensor:
    """Make the rows orthogonal and equally long, spanning what they span: rms(start)·sqrt(in)·(Q·sign(diag R))ᵀ.

    Aᵀ = QR. Both (..., rank, in), as the result, whose rms is the start's. The sign of R's diagonal makes the
    factorisation unique, so that the first row keeps its direction and each next one what is new in it. Rows that are
    dependent span less than rank: the missing directions are then arbitrary, though the same each time. Raises
    `ValueError` for a rank above `in`.
    """
    rank, reads = now.shape[-2:]
    if rank > reads:
        raise ValueError(f"{rank} rows of {reads} numbers cannot be orthogonal; take a rank of at most {reads}")
    q, r = torch.linalg.qr(now.mT)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    length = start.square().mean((-2, -1), keepdim=True).sqrt() * math.sqrt(reads)
    rows: Tensor = (q * sign[..., None, :]).mT
    return length * rows
