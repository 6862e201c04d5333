"""Terms on attention maps and hidden states. All are dimensionless, 0-d, at least float32, on the input's device.

`mask` is bool, (batch, seq), true for real tokens; what it leaves out changes neither value nor gradient, NaN included.
None takes every position for real. Source of all four: the public "Surface Tension Transformers" code, `losses.py`.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .rows import checked, full, masked_mean, pick, unit, zero

_EPS_MAPS, _EPS_GOSSIP = 1e-12, 1e-8


def diversity(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """Measure how alike the heads of a layer attend; lower is more diverse.

        mean over samples and ordered head pairs h != h' of cos(a_h, a_h')
            = mean over samples of (|sum_h â_h|² - sum_h |â_h|²) / (H (H - 1))

    `attention` is (batch, heads, seq, seq), one layer, after the softmax; a_h is head h's map as one vector of seq²
    numbers, â = a / max(|a|, 1e-12). The second form costs heads · seq² and builds no heads x heads matrix. 0 with one
    head. A sample without a real token is left out. In [0, 1] for maps that are not negative.

    Breaks where maps share entries by force: under a causal mask the first query sees one key in every head, which
    puts a floor of about 1/seq under the value, and the value cannot be compared between lengths.
    """
    if attention.ndim != 4:
        text = f"diversity needs attention maps of shape (batch, heads, seq, seq), not {tuple(attention.shape)}"
        raise ValueError(text)
    heads = attention.shape[1]
    if mask is not None and mask.shape != (attention.shape[0], attention.shape[-1]):
        text = f"diversity was given a mask of shape {tuple(mask.shape)} for maps of {tuple(attention.shape)}"
        raise ValueError(f"{text}; it must be (batch, seq)")
    if heads < 2:
        return zero(attention)
    if mask is not None:
        keep = mask[:, None, :, None] & mask[:, None, None, :]
        attention = torch.where(keep, attention, 0)
    maps = unit(attention.flatten(2), _EPS_MAPS)
    pairs = maps.sum(1).square().sum(-1) - maps.square().sum((1, 2))
    return masked_mean(pairs / (heads * (heads - 1)), None if mask is None else mask.any(1))


def repulsion(
    hidden: Tensor, mask: Tensor | None = None, sample: int = 128, generator: Generator | None = None
) -> Tensor:
    """Measure how closely token vectors crowd on the sphere; lower is more spread out.

        mean over i != j of exp(-|x̂_i - x̂_j|²),   x̂ = x / max(|x|, 1e-12)

    For rows that are not zero this is mean exp(2 cos - 2), in [e⁻⁴, 1]. `hidden` is (batch, seq, features); the pairs
    are those of at most `sample` real tokens of the whole batch, drawn by `generator`, or the first ones without it.
    0 with fewer than two rows.

    Breaks where the direction of a vector carries little: in models with one huge shared component all cosines are
    near 1, and the term works on that component first.
    """
    checked("repulsion", hidden, mask)
    rows, real = pick(hidden, mask, sample, generator)
    if len(rows) < 2:
        return zero(hidden)
    x = unit(rows, _EPS_MAPS)
    squares = x.square().sum(-1)
    closeness = torch.exp(2 * (x @ x.T) - squares[:, None] - squares)
    pairs = torch.ones_like(closeness) if real is None else (real[:, None] & real).to(closeness.dtype)
    pairs = pairs.fill_diagonal_(0)
    return (closeness * pairs).sum() / pairs.sum().clamp(min=1)


def sparsity(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Measure the size of activations: mean over real tokens and features of |h|, in the units of h.

    `hidden` is (batch, seq, features). 0 without a real token.

    Breaks behind a norm layer: a hidden state whose length is fixed can only shift its weight between features.
    """
    checked("sparsity", hidden, mask)
    return masked_mean(full(hidden).abs(), None if mask is None else mask[:, :, None])


def gossip(
    hidden: Tensor,
    mask: Tensor | None = None,
    tau: float = 0.85,
    peers: int = 8,
    sample: int = 256,
    generator: Generator | None = None,
) -> Tensor:
    """Penalise tokens that are too close to tokens met by chance; lower is more spread out.

        mean over i and its `peers` draws j of relu(x̂_i · x̂_j - tau)²,   x̂ = x / max(|x|, 1e-8)

    `hidden` is (batch, seq, features). Anchors i are at most `sample` real tokens of the whole batch, drawn without
    replacement; peers j are drawn with replacement, uniformly over the other anchors, so that the expectation over
    draws is the mean over all ordered pairs. Gradient flows through both. 0 with fewer than two rows.

    Breaks where no pair is closer than `tau`: then value and gradient are exactly 0 and the weight means nothing.
    """
    checked("gossip", hidden, mask)
    size = min(sample, hidden.shape[0] * hidden.shape[1])
    if size < 2 or peers < 1:
        return zero(hidden)
    draws = torch.rand(size, peers, generator=generator, device=hidden.device)  # first: see `pick` on padding
    rows, real = pick(hidden, mask, sample, generator)
    count = torch.full((), size, device=rows.device) if real is None else real.sum()
    further = torch.minimum((draws * (count - 1)).long(), count - 2) + 1  # the product may round up to count - 1
    met = (torch.arange(size, device=rows.device)[:, None] + further) % count.clamp(min=1)
    x = unit(rows, _EPS_GOSSIP)
    others = x.index_select(0, met.flatten()).view(size, peers, -1)  # fewer products than all pairs, there and back
    excess = torch.relu((others * x[:, None]).sum(-1) - tau).square()
    if real is None:
        return excess.mean()
    return torch.where(real[:, None] & (count > 1), excess, 0).sum() / (count * peers).clamp(min=1)


def gossip_of_source(
    hidden: Tensor,
    mask: Tensor | None = None,
    tau: float = 0.85,
    peers: int = 8,
    sample: int = 256,
    generator: Generator | None = None,
) -> Tensor:
    """Return `gossip` with the source's own draws: the same numbers from a generator in the same state.

    Rows with mask != 0; `randperm(rows)[:sample]` where there are more than `sample`, else none drawn;
    `randint(0, n, (n, peers))`, and whoever drew itself takes the next row, (i + 1) mod n, which is therefore met
    twice as often as others. Counting the real rows waits for the device. Without a generator the global one is used.
    """
    checked("gossip", hidden, mask)
    rows = hidden.flatten(0, 1)
    if mask is not None:
        rows = rows[mask.reshape(-1).bool()]
    if len(rows) > sample:
        rows = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:sample]]
    size = len(rows)
    if size < 2 or peers < 1:
        return zero(hidden)
    met = torch.randint(0, size, (size, peers), generator=generator, device=rows.device)
    here = torch.arange(size, device=rows.device)[:, None]
    met = torch.where(met == here, (here + 1) % size, met)
    x = unit(rows, _EPS_GOSSIP)
    return torch.relu((x @ x.T).gather(1, met) - tau).square().mean()
