"""The LoRA bank beside a language model: which modules gain an adapter, and slots as folders that PEFT reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import nn

from ctr.engine.adapter_files import MANIFEST
from ctr.engine.errors import DataError, guess
from ctr.engine.lora_bank import BankAdapter, LoraBank, Site
from ctr.engine.rundir import write_json
from ctr.engine.seeding import mix, stream
from ctr.engine.text import printable

from .language_config import BankSettings
from .language_models import LanguageModel, short_rows
from .lora import base_digest, linear_maps, targets, wrong


def attach(net: Any, tokenizer: Any, settings: BankSettings, seed: int) -> LanguageModel:
    """Put a bank beside a model; each A is drawn from the seed by site and slot, B is zero."""
    names = site_names(net, settings)
    parts = dict(net.named_modules())
    sites = _measured(net, {name: parts[name] for name in names})
    for site in sites:
        if settings.rank > min(site.reads, site.writes):
            text = f"{settings.rank} is larger than a side of {site.name} ({site.writes} x {site.reads})"
            raise wrong("adapter.rank", f"{text}; take at most {min(site.reads, site.writes)}, or other targets")
    bank = LoraBank(parts, sites, settings.slots, settings.rank, settings.alpha, settings.scaling)
    bank.to(next(net.parameters()).device)
    generator = torch.Generator().manual_seed(mix(stream(seed, "adapter")))
    BankAdapter(bank).redraw(generator)
    return LanguageModel(net, tokenizer, bank=bank)


def site_names(net: Any, settings: BankSettings) -> list[str]:
    """Return the names of the modules that gain an adapter; raises `SpecError` naming those there are."""
    asked = settings.targets
    head = _head_name(net) if settings.head else None
    if settings.head and head is None:
        raise wrong("adapter.head", "this model has no output head that could take an adapter; set it to false")
    if isinstance(asked, str):
        found = targets(net, asked)
    else:
        found = list(dict.fromkeys(name for end in asked for name in _ending(net, end)))
    return [*found, *([head] if head is not None and head not in found else [])]


def _ending(net: Any, end: str) -> list[str]:
    known = [name for name, _ in net.named_modules() if name]
    hits = [name for name in known if name == end or name.endswith(f".{end}")]
    if not hits:
        ends = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
        text = f"no module is named {printable(end, 80)}; names end in {', '.join(ends)}"
        raise wrong("adapter.targets", f"{text}.{guess(end, ends)}")
    return hits


def _head_name(net: Any) -> str | None:
    head = net.get_output_embeddings()
    return next((name for name, part in net.named_modules() if part is head), None) if head is not None else None


@torch.no_grad()
def _measured(net: Any, parts: Mapping[str, nn.Module]) -> list[Site]:
    """Return what each module reads and writes, seen in the forward pass of two short rows.

    Of one row alone a table of positions, which all rows share, would look like a map of features.
    """
    seen: dict[str, tuple[int, int]] = {}

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            x = inputs[0] if inputs else named.get("hidden_states")
            y = output[0] if isinstance(output, tuple) and output else output
            if isinstance(x, torch.Tensor) and x.is_floating_point() and isinstance(y, torch.Tensor):
                if x.dim() == y.dim() == 3 and x.shape[:2] == y.shape[:2]:
                    seen[name] = (x.shape[-1], y.shape[-1])

        return hook

    handles = [part.register_forward_hook(look(name), with_kwargs=True) for name, part in parts.items()]
    try:
        net(input_ids=short_rows(net, 2), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    lacking = [name for name in parts if name not in seen]
    if lacking:
        text = f"{lacking[0]} does not map a vector of every token to another, so no adapter fits beside it"
        raise wrong("adapter.targets", f"{text}; name linear maps, or blocks around which there is a side path")
    return [Site(name, *seen[name]) for name in parts]


def export_slot(model: LanguageModel, slot: int, folder: Path) -> None:
    """Write one slot as a folder that `PeftModel.from_pretrained` loads beside the unmodified base.

    Raises `IndexError` where there is no such slot, `DataError` where PEFT cannot hold it: it knows adapters beside
    linear maps alone, so a side path around a whole block has no such folder.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file
    from transformers.pytorch_utils import Conv1D

    bank = model.bank
    if bank is None:
        raise DataError(f"there is no slot {slot} to export: the model has no bank; add adapter: {{kind: bank}}")
    pairs = bank.slot(slot)
    maps = dict(linear_maps(model.causal))
    head = _head_name(model.causal)
    aside = [site.name for site in bank.sites if site.name not in maps and site.name != head]
    if aside:
        raise DataError(
            f"slot {slot} has an adapter around {aside[0]}, which is no linear map: PEFT has no such adapter"
        )
    names = [site.name for site in bank.sites]
    with catch_warnings():
        simplefilter("ignore")
        config = LoraConfig(
            r=bank.rank, lora_alpha=bank.scaling * bank.rank, target_modules=names, bias="none",  # type: ignore[arg-type]
            task_type="CAUSAL_LM", inference_mode=True,
            fan_in_fan_out=all(isinstance(maps.get(name), Conv1D) for name in names),
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        config.save_pretrained(str(folder))
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    write_json(folder / MANIFEST, {"slot": slot, "base": base_digest(model)})
