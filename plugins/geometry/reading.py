"""From the outputs of a forward pass to the value of a term: which tensors, which mask, which form of the formula."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from ctr.engine.errors import PluginError

from . import branches, terms

KINDS = {"hidden": "hidden states", "attention": "attention maps"}


def layer_of(outputs: Any, what: str, layer: int, setting: str) -> Tensor:
    """Return one layer's hidden states or attention maps; a layer that is not there is an error naming those there."""
    found: Mapping[int, Tensor] = getattr(outputs, what)
    if layer in found:
        return found[layer]
    asks = f"{setting} asks for {KINDS[what]} of layer {layer}"
    if not found:
        raise PluginError(f"{asks}; this model has no such layer, or its task gives no {KINDS[what]}")
    raise PluginError(f"{asks}; this model gave those of {', '.join(map(str, sorted(found)))}: name one of these")


def branches_of(outputs: Any, setting: str) -> Mapping[str, Tensor]:
    """Return `outputs`, `gates`, … of all branched layers, each (batch, layers, seq, branches, …)."""
    found: Mapping[str, Tensor] | None = outputs.extra.get("branches")
    if not found:
        raise PluginError(f"{setting} needs branches; this model has none: build it with compartments, or turn it off")
    return found


def padding(config: Any, name: str, batch: Any) -> Tensor | None:
    """Return the mask that a term or metric goes by, or None where it takes padding for real, or there is none."""
    excluded = config.mask and (not config.faithful or name == "gossip")
    return batch.tensors.get("mask") if excluded else None


def value_of(name: str, config: Any, outputs: Any, batch: Any, generator: Generator | None) -> Tensor:
    """Return the raw value of the term `name`, 0-d, with a graph."""
    return _VALUES[name](config, outputs, padding(config, name, batch), generator)


def _diversity(config: Any, outputs: Any, mask: Tensor | None, _: Generator | None) -> Tensor:
    layers = config.diversity.layers
    maps = [layer_of(outputs, "attention", layer, "diversity.layers") for layer in layers]
    values = [terms.diversity(one, mask) for one in maps]
    return values[0] if len(values) == 1 else torch.stack(values).mean()


def _repulsion(config: Any, outputs: Any, mask: Tensor | None, generator: Generator | None) -> Tensor:
    hidden = layer_of(outputs, "hidden", config.repulsion.layer, "repulsion.layer")
    return terms.repulsion(hidden, mask, config.repulsion.sample, None if config.faithful else generator)


def _sparsity(config: Any, outputs: Any, mask: Tensor | None, _: Generator | None) -> Tensor:
    return terms.sparsity(layer_of(outputs, "hidden", config.sparsity.layer, "sparsity.layer"), mask)


def _gossip(config: Any, outputs: Any, mask: Tensor | None, generator: Generator | None) -> Tensor:
    own = config.gossip
    hidden = layer_of(outputs, "hidden", own.layer, "gossip.layer")
    form = terms.gossip_of_source if config.faithful else terms.gossip
    return form(hidden, mask, own.tau, own.peers, own.sample, generator)


def _branch_repulsion(_: Any, outputs: Any, mask: Tensor | None, __: Generator | None) -> Tensor:
    return branches.branch_repulsion(branches_of(outputs, "branch_repulsion")["outputs"], over_layers(mask))


def _load_balance(_: Any, outputs: Any, mask: Tensor | None, __: Generator | None) -> Tensor:
    return branches.load_balance(branches_of(outputs, "load_balance")["gates"], over_layers(mask))


def _inhibition(config: Any, outputs: Any, mask: Tensor | None, _: Generator | None) -> Tensor:
    found = branches_of(outputs, "inhibition")
    return branches.inhibition(
        found["outputs"], found["gates"], over_layers(mask), by_coactivity=config.faithful
    )  # fmt: skip


def over_layers(mask: Tensor | None) -> Tensor | None:
    """Return the mask (batch, seq) as it broadcasts to (batch, layers, seq)."""
    return None if mask is None else mask[:, None, :]


_VALUES: Mapping[str, Callable[[Any, Any, Tensor | None, Generator | None], Tensor]] = {
    "diversity": _diversity,
    "repulsion": _repulsion,
    "sparsity": _sparsity,
    "gossip": _gossip,
    "branch_repulsion": _branch_repulsion,
    "load_balance": _load_balance,
    "inhibition": _inhibition,
}
