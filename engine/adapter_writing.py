"""Effective deltas written as folders of LoRA adapters, so that PEFT reads back exactly the change that they are."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .adapter_files import CONFIG, MANIFEST, PLACE, TENSORS
from .deltas import Delta, Pair
from .errors import DataError, UsageError
from .storage import staged_folder, write_json, write_new
from .text import printable


def write_adapter(
    folder: Path,
    delta: Delta,
    note: Mapping[str, Any],
    *,
    transposed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write a delta to a folder that must not exist, as an adapter for `PeftModel.from_pretrained`; return its sha256.

    Factors and scalings are kept as they are, but that a negative scaling's sign goes into B. Targets are named so that
    none is taken for another. `note` becomes `ctr.json`, with the sha256; `transposed` as in `SavedAdapter`. Raises
    `UsageError` for a folder that exists, `DataError` for a delta without a target or with a number that is not finite
    in `dtype`, `StorageError` where the disk refuses; then nothing is left.
    """
    if folder.exists():
        raise UsageError(f"{printable(folder)}: exists; give a folder that does not")
    with staged_folder(folder) as stage:
        digest = fill_adapter(stage, delta, note, transposed=transposed, dtype=dtype)
    return digest


def fill_adapter(
    folder: Path, delta: Delta, note: Mapping[str, Any], *, transposed: bool, dtype: torch.dtype = torch.float32
) -> str:
    """Write the three files of an adapter into an empty folder, as `write_adapter` does; raises `OSError` too."""
    from safetensors.torch import save

    pairs = {name: _upright(pair) for name, pair in sorted(delta.items()) if pair.rank}
    if not pairs:
        raise DataError("the delta changes no target, so there is no adapter to write")
    tensors = {}
    for name, pair in pairs.items():
        for side, factor in (("A", pair.a), ("B", pair.b)):
            tensors[f"{PLACE}{name}.lora_{side}.weight"] = kept = factor.detach().to("cpu", dtype, copy=True)
            if not (torch.isfinite(kept).all() and math.isfinite(pair.scaling)):
                raise DataError(f"factor {side} of {printable(name, 200)} holds a number that is not finite as {dtype}")
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    digest = hashlib.sha256(data).hexdigest()
    write_new(folder / TENSORS, data)
    write_json(folder / CONFIG, _config(pairs, transposed))
    write_json(folder / MANIFEST, {**note, "sha256": digest})
    return digest


def _upright(pair: Pair) -> Pair:
    if pair.scaling > 0:
        return pair
    return Pair(pair.a, -pair.b, -pair.scaling) if pair.scaling < 0 else Pair(pair.a, 0 * pair.b, 1.0)


def _config(pairs: Mapping[str, Pair], transposed: bool) -> dict[str, Any]:
    """Return an adapter's config; what most targets share stands at the top, what others have in patterns.

    PEFT looks for a pattern at the end of a module's name, and for a listed target too: `^` in a pattern, and one regex
    for all targets, which it matches with whole names, keep `q_proj` apart from `layers.0.q_proj`.
    """
    ranks = {name: pair.rank for name, pair in pairs.items()}
    alphas = {name: _alpha(pair) for name, pair in pairs.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        "target_modules": "|".join(re.escape(name) for name in pairs),
        "fan_in_fan_out": transposed,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
    }


def _alpha(pair: Pair) -> float | int:
    alpha = pair.scaling * pair.rank
    return int(alpha) if alpha.is_integer() else alpha
