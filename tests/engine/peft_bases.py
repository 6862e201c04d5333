"""Tiny transformers models, adapters that PEFT makes beside them, and what an adapter changes of their weights."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctr.engine.deltas import Delta

FAMILIES = ("qwen2", "gpt2")


@functools.cache
def _built(family: str, width: int = 8) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    common: dict[str, Any] = {"vocab_size": 24, "bos_token_id": 0, "eos_token_id": 0, "use_cache": False}
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=width, n_layer=2, n_head=2, n_positions=16, **common)).eval()
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen2ForCausalLM(
        Qwen2Config(intermediate_size=3 * width // 2, max_position_embeddings=16, **sizes, **common)
    ).eval()


def base(family: str, width: int = 8) -> Any:
    """Return a tiny model of a family; always the same weights."""
    return copy.deepcopy(_built(family, width))


def maps(net: Any) -> dict[str, Any]:
    """Return the linear maps inside the blocks by name."""
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, Conv1D)
    return {name: part for name, part in net.named_modules() if isinstance(part, kinds) and "head" not in name}


def shapes(family: str) -> dict[str, tuple[int, int]]:
    """Return (out, in) of each linear map."""
    out_first = family != "gpt2"
    return {
        name: tuple(part.weight.shape if out_first else part.weight.T.shape)
        for name, part in maps(_built(family)).items()
    }


def trained(family: str, seed: int, width: int = 8, **settings: Any) -> Any:
    """Return a PEFT model whose factors are random, as if it had been trained."""
    from peft import LoraConfig, get_peft_model

    chosen = {"r": 4, "lora_alpha": 8, "target_modules": list(maps(_built(family))), **settings}
    net = get_peft_model(
        base(family, width), LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2", **chosen)
    )
    fill(net, seed)
    return net


def fill(net: Any, seed: int, adapter: str = "default") -> None:
    """Draw the factors of an adapter anew."""
    draw = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        if ".lora_" in name and f".{adapter}." in name:
            p.data.copy_(torch.randn(p.shape, generator=draw) / 2)


def change(net: Any, adapter: str = "default") -> dict[str, Tensor]:
    """Return by target what PEFT says an adapter adds to the weight, (out, in) in float64."""
    from peft.tuners.lora import LoraLayer

    found: dict[str, Tensor] = {}
    for name, layer in net.base_model.model.named_modules():
        if isinstance(layer, LoraLayer) and adapter in layer.lora_A:
            weight: Tensor = layer.get_delta_weight(adapter).detach().double()  # type: ignore[operator]
            found[name] = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
    return found


def merged(family: str, folder: Path) -> dict[str, Tensor]:
    """Return every weight of the base after PEFT has loaded a folder beside it and merged it."""
    from peft import PeftModel

    net = PeftModel.from_pretrained(base(family), str(folder)).merge_and_unload()
    return dict(net.state_dict())


def summed(family: str, delta: Delta) -> dict[str, Tensor]:
    """Return every weight of the base, with a delta added in float64."""
    found = dict(_built(family).state_dict())
    for name, pair in delta.items():
        change = pair.dense().T if family == "gpt2" else pair.dense()
        found[f"{name}.weight"] = (found[f"{name}.weight"].double() + change).float()
    return found
