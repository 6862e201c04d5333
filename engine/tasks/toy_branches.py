"""A feed-forward block divided into branches, each token's answer mixed from them by gates.

Source: the public "Surface Tension Transformers" code, `model.py`; there branches are evaluated one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter
from torch.nn.functional import linear, normalize, silu

_EPS = 1e-8


class Branches(Module):
    """K branches `Linear(dim, width) → SiLU → Linear(width, dim)`, evaluated together; width = max(1, 4 dim // K).

    `router` scores branches by a linear layer on the input. `dendritic` scores each by a linear layer on its own
    activity, less `strength` · `inhibition`. All weights are drawn in the order of the branches, as a list of layers
    would be, then stacked: (K, width, dim), (K, width), (K, dim, width), (K, dim).
    """

    def __init__(self, dim: int, count: int, top_k: int, mode: str, strength: float) -> None:
        super().__init__()
        if count < 1 or not 1 <= top_k <= count:
            raise ValueError(f"branches need a count of 1 or more and top_k from 1 to it, not {count} and {top_k}")
        if strength < 0:
            raise ValueError(f"inhibition strength must not be negative, not {strength:g}")
        if mode not in ("router", "dendritic"):
            raise ValueError(f"branches are scored by router or dendritic, not {mode!r}")
        self.top_k, self.strength, width = top_k, strength, max(1, 4 * dim // count)
        self.router = Linear(dim, count) if mode == "router" else None
        ups, spikes, downs = [], [], []
        for _ in range(count):
            ups.append(Linear(dim, width))
            if mode == "dendritic":
                spikes.append(Linear(width, 1))
            downs.append(Linear(width, dim))
        self.up, self.up_bias = _stacked(ups)
        self.down, self.down_bias = _stacked(downs)
        self.spike: Parameter | None = None
        self.spike_bias: Parameter | None = None
        if spikes:
            self.spike, self.spike_bias = _stacked(spikes)

    def forward(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the mixed answer (batch, seq, dim), and what the branches did.

        `outputs` (batch, seq, K, dim); `gates`, `scores` (after inhibition) and `inhibition` (batch, seq, K).
        """
        count = len(self.up)
        active = silu(linear(x, self.up.flatten(0, 1), self.up_bias.flatten())).view(*x.shape[:-1], count, -1)
        rows = active.flatten(0, -3).transpose(0, 1)  # (K, tokens, width): one matrix product a branch, in one call
        answers = torch.baddbmm(self.down_bias[:, None], rows, self.down.mT)
        outputs = answers.transpose(0, 1).reshape(*x.shape[:-1], count, -1)
        scores, inhibition = self._scores(x, active, outputs)
        gates = top_gates(scores, self.top_k)
        mixed = (gates[..., None] * outputs).sum(-2)
        return mixed, {"outputs": outputs, "gates": gates, "scores": scores, "inhibition": inhibition}

    def _scores(self, x: Tensor, active: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        if self.router is not None:
            scores: Tensor = self.router(x)
            return scores, torch.zeros_like(scores)
        assert self.spike is not None and self.spike_bias is not None
        raw = (active * self.spike[:, 0]).sum(-1) + self.spike_bias[:, 0]
        if len(self.up) < 2 or not self.strength:
            return raw, torch.zeros_like(raw)
        alike = likeness(outputs)
        return raw - self.strength * alike, alike


def _stacked(layers: list[Linear]) -> tuple[Parameter, Parameter]:
    with torch.no_grad():
        return (
            Parameter(torch.stack([layer.weight for layer in layers])),
            Parameter(torch.stack([layer.bias for layer in layers])),
        )


def likeness(outputs: Tensor) -> Tensor:
    """Return how much each branch answers as the others do: I_k = sum over j != k of relu(cos(o_k, o_j)) / (K - 1).

    `outputs` (…, K, features), cosines of o / max(|o|, 1e-8); the result (…, K), in [0, 1], with a gradient. Breaks
    with one branch, where there are no others.
    """
    x = normalize(outputs, dim=-1, eps=_EPS)
    count = outputs.shape[-2]
    others = 1 - torch.eye(count, device=x.device, dtype=x.dtype)
    return (torch.relu(x @ x.mT) * others).sum(-1) / (count - 1)


def top_gates(scores: Tensor, top_k: int) -> Tensor:
    """Return gates that sum to 1, (…, K): softmax over the `top_k` highest scores, 0 elsewhere.

    The gradient is that of the softmax over all scores (straight through), so that closed branches can come to be
    opened. With `top_k` = K these are the same.
    """
    soft = scores.softmax(-1)
    if top_k == scores.shape[-1]:
        return soft
    with torch.no_grad():
        top = scores.topk(top_k, dim=-1)
        sparse = torch.zeros_like(soft).scatter(-1, top.indices, top.values.softmax(-1).to(soft.dtype))
    return sparse - soft.detach() + soft
