"""What is measured on the probe at rest: metrics of its token vectors, and whose pull on the weights is how strong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from . import metrics, terms
from .gradients import Grads, added, cosine, gradient, norm, shares
from .reading import branches_of, layer_of, over_layers, padding
from .rows import checked


class Metering:
    """Gathers the probe's batches, then gives the metrics of all of them together."""

    def __init__(self, config: Any) -> None:
        self._config, self._asked = config, config.metrics
        self._rows: dict[int, list[Tensor]] = {layer: [] for layer in self._asked.hidden}
        self._heads: list[tuple[Tensor, int]] = []
        self._branches: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def see(self, outputs: Any, batch: Any) -> None:
        """Keep what the metrics need of one batch: its real token vectors, its heads' similarity, its branches."""
        mask = padding(self._config, "metrics", batch)
        for layer, rows in self._rows.items():
            hidden = layer_of(outputs, "hidden", layer, "metrics.hidden").detach()
            checked("metrics.hidden", hidden, mask)
            rows.append(hidden.flatten(0, 1) if mask is None else hidden[mask])
        if layers := self._asked.attention:
            maps = [layer_of(outputs, "attention", layer, "metrics.attention") for layer in layers]
            similar = torch.stack([terms.diversity(one, mask) for one in maps]).mean()
            self._heads.append((similar, len(maps[0]) if mask is None else int(mask.any(1).sum())))
        if self._asked.branches:
            found = branches_of(outputs, "metrics.branches")
            keep = over_layers(mask)
            gates = found["gates"]
            where = torch.ones_like(gates[..., 0], dtype=torch.bool) if keep is None else keep.expand(gates.shape[:-1])
            parts = {name: found[name] for name in ("gates", "scores", "inhibition") if name in found}
            self._branches.append({name: part.detach()[where] for name, part in parts.items()})

    def numbers(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each metric with its name; the first layer of `metrics.hidden` bears the plain one."""
        for layer, rows in self._rows.items():
            suffix = "" if layer == self._asked.hidden[0] else f".layer{layer}"
            together = torch.cat(rows)
            sigma = metrics.spectrum(together)
            yield f"effective_rank{suffix}", metrics.effective_rank(sigma)
            yield f"isotropy{suffix}", metrics.isotropy(sigma)
            yield f"active_fraction{suffix}", metrics.active_fraction(together, self._asked.threshold)
        if self._heads:
            counted = sum(count for _, count in self._heads)
            yield (
                "head_similarity",
                torch.stack([value * count for value, count in self._heads]).sum() / max(counted, 1),
            )
        if self._branches:
            joined = {name: torch.cat([one[name] for one in self._branches]) for name in self._branches[0]}
            found = metrics.branch_metrics(joined["gates"], joined.get("scores"), joined.get("inhibition"))
            yield from ((f"branch_{name}", value) for name, value in found.items())


def task_gradient(probe: Any) -> Grads:
    """Return the gradient of a task's loss, a mean over its probe: eval mode, no terms, nothing in `.grad`."""
    parameters = list(probe.params.values())
    items = sum(batch.count for batch in probe.batches)
    total: Grads = [None] * len(parameters)
    for batch in probe.batches:
        if batch.count:
            total = added(total, gradient(probe.loss(batch), parameters), batch.count / items)
    return total


def task_cosines(probes: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield the cosine of each two tasks' gradients as `gradient_cosine.<one>.<other>`; none where one is zero.

    Costs one backward pass over the probe for each task, and holds as many gradients at once.
    """
    pulls = {name: task_gradient(probe) for name, probe in probes.items()}
    for one, other in combinations(pulls, 2):
        found = cosine(pulls[one], pulls[other])
        if found is not None:
            yield f"gradient_cosine.{one}.{other}", found


class Pulling:
    """Adds up gradients over the probe's batches, of the task loss and of each term with its weight."""

    def __init__(self, parameters: Sequence[Tensor], weights: Mapping[str, float], items: int) -> None:
        self._parameters, self._weights, self._items = parameters, weights, items
        nothing: Grads = [None] * len(parameters)
        self._pulls: dict[str, Grads] = dict.fromkeys(("task", *weights), nothing)

    def see(self, loss: Tensor, values: Mapping[str, Tensor], items: int) -> None:
        """Add one batch of so many items, each part by its share of all items, as in training."""
        share = items / self._items
        for name, value in {"task": loss, **values}.items():
            weight = self._weights.get(name, 1.0)
            self._pulls[name] = added(self._pulls[name], gradient(value, self._parameters), share * weight)

    def without(self) -> list[str]:
        """Name the terms on which no trained parameter has any bearing."""
        return [name for name, pull in self._pulls.items() if name != "task" and norm(pull) is None]

    def numbers(self) -> Iterator[tuple[str, Tensor]]:
        nothing = torch.zeros((), device=self._parameters[0].device)
        norms = {name: norm(pull) for name, pull in self._pulls.items()}
        found = shares({name: nothing if value is None else value for name, value in norms.items()})
        return ((f"share.{name}", value) for name, value in found.items())
