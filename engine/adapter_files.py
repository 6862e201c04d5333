"""Folders of LoRA adapters in PEFT's form, read as effective deltas; `adapter_writing` writes them.

A folder holds `adapter_config.json`, `adapter_model.safetensors` and, if ctr wrote it, `ctr.json`: what it came from,
the sha256 of the base that it stood beside (`base`) and that of its own tensors (`sha256`).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .deltas import Delta, Pair
from .errors import DataError
from .storage import read_bytes, read_json
from .text import printable

MANIFEST = "ctr.json"
CONFIG = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
PLACE = "base_model.model."  # what PEFT puts before a target's name
_MOST = 1 << 40
_EMBEDS = ".lora_embedding_"
_FACTOR = re.compile(re.escape(PLACE) + r"(?P<name>.+)\.lora_(?P<side>[AB])\.weight\Z")
# beginnings of an adapter, by PEFT's names, that take something out of the base's weights; eva and mica do not
_OF_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_WITHOUT = {  # what makes an adapter more, or other, than pairs of factors beside an untouched base
    "use_dora": "gives the base's rows other norms",
    "kasa_config": "cut the base's smallest singular values off",
    "lora_bias": "adds what is in neither factor",
    "modules_to_save": "replaced parts of the base",
    "trainable_token_indices": "trained rows of the embedding too",
    "layer_replication": "gave the base other layers",
    "target_parameters": "adapts parameters that are no linear map's weight",
    "alora_invocation_tokens": "adapts some tokens and not others",
    "arrow_config": "weighs experts by the input",
    "use_qalora": "pools what A reads",
    "use_bdlora": "holds blocks of factors, not whole ones",
    "monteclora_config": "draws its factors at random",
}


@dataclass(frozen=True)
class SavedAdapter:
    """What a folder of an adapter holds. `transposed`: its base stores weights as (in, out), as GPT-2 does.

    `base` is the sha256 of the base's weights where the folder says it, `digest` that of the tensors' file; `note` is
    the whole of `ctr.json`.
    """

    folder: Path
    delta: Delta
    digest: str
    base: str | None
    transposed: bool
    note: Mapping[str, Any]


def read_adapter(folder: Path) -> SavedAdapter:
    """Read a plain LoRA adapter that PEFT or ctr saved: its effective delta, and what it says of its base.

    Ranks and alphas may differ by target, as PEFT's patterns say. Raises `DataError` naming folder, reason and way out
    for a variant that is more than scaling·B·A beside an untouched base, and for a file that is missing, damaged, not
    finite, or other than its config or its manifest says.
    """
    if not (folder / CONFIG).is_file():
        raise DataError(f"{printable(folder)} holds no {CONFIG}; give the folder of a saved adapter")
    found = read_json(folder / CONFIG)
    if not isinstance(found, dict):
        raise DataError(f"{printable(folder / CONFIG)}: is no JSON object, so it describes no adapter")
    check_kind(folder, found)
    note = _note(folder)
    data = _bytes(folder)
    digest = hashlib.sha256(data).hexdigest()
    if note.get("sha256") not in (None, digest):
        text = f"{printable(folder / TENSORS)}: does not match the sha256 that {MANIFEST} has of it"
        raise DataError(f"{text}; it was damaged or replaced since it was saved, so restore it or train it again")
    factors = _factors(folder, data)
    delta = {name: _pair(folder, found, name, sides) for name, sides in factors.items()}
    base = note.get("base")
    base = base if isinstance(base, str) else None
    return SavedAdapter(folder, delta, digest, base, bool(found.get("fan_in_fan_out")), note)


def _note(folder: Path) -> dict[str, Any]:
    found = read_json(folder / MANIFEST)
    if found is not None and not isinstance(found, dict):
        raise DataError(f"{printable(folder / MANIFEST)}: is no JSON object; remove it to go without what it says")
    return found or {}


def check_kind(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse an adapter that is more than pairs of factors beside an untouched base: B = 0 would not give that back."""
    init, bias, kind = about.get("init_lora_weights"), about.get("bias", "none"), about.get("peft_type", "LORA")
    if kind != "LORA":
        text = f"{printable(folder)} is no LoRA adapter but one of peft_type {printable(kind, 40)}"
        raise DataError(f"{text}, whose change is no scaling·B·A; train one of type LORA")
    taken = isinstance(init, str) and init.lower().startswith(_OF_THE_BASE)
    kept = "train it anew, or convert it by PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
    reasons = [
        (taken, f"init_lora_weights {printable(init, 40)} took its factors out of the base's weights", kept),
        (bias != "none", f"bias {printable(bias, 40)} trained biases too", "train it with bias: none"),
        *((about.get(key), f"{key} {reason}", "train it without") for key, reason in _WITHOUT.items()),
    ]
    for wrong, reason, way_out in reasons:
        if wrong:
            text = f"{printable(folder)} is no plain LoRA: {reason}, so zeroing B would not restore the base"
            raise DataError(f"{text}; {way_out}")


def _bytes(folder: Path) -> bytes:
    try:
        return read_bytes(folder / TENSORS, _MOST)
    except OSError as error:
        hint = ""
        if (folder / "adapter_model.bin").exists():
            hint = "; adapter_model.bin is a pickle, which could run code: save it by safe_serialization=True"
        text = f"{printable(folder / TENSORS)} cannot be read: {error.strerror or error}"
        raise DataError(text + hint) from error


def _factors(folder: Path, data: bytes) -> dict[str, dict[str, Tensor]]:
    """Return factors A and B by target, checked to be matrices of finite numbers."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        text = f"{printable(folder / TENSORS)} cannot be read: {printable(error, 200)}"
        raise DataError(f"{text}; it is cut short, or no safetensors file") from error
    found: dict[str, dict[str, Tensor]] = {}
    for key in sorted(tensors, key=lambda key: (_EMBEDS not in key, key)):  # the plainest reason first
        tensor = tensors[key]
        match = _FACTOR.match(key)
        if match is None or tensor.ndim != 2 or not tensor.is_floating_point():
            what = "an adapter beside an embedding" if _EMBEDS in key else "no factor of a linear map"
            text = f"{printable(folder)} is no plain LoRA: {printable(key, 200)} {tuple(tensor.shape)} is {what}"
            raise DataError(f"{text}; save it with save_embedding_layers=False, or train it on linear maps alone")
        if not torch.isfinite(tensor).all():
            text = f"{printable(folder / TENSORS)}: factor {match['side']} of {match['name']} holds a number that is"
            raise DataError(f"{text} not finite; the training it comes from went wrong, so take an earlier adapter")
        found.setdefault(match["name"], {})[match["side"]] = tensor
    if not found:
        raise DataError(f"{printable(folder / TENSORS)}: holds no factor, so it is no adapter")
    return found


def _pair(folder: Path, about: Mapping[str, Any], name: str, sides: Mapping[str, Tensor]) -> Pair:
    if len(sides) < 2:
        raise DataError(f"{printable(folder)} has one of the factors A and B of {printable(name, 200)} alone")
    a, b = (_wide(sides[side]) for side in "AB")
    rank, alpha = (
        _setting(folder, about, name, *keys) for keys in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern"))
    )
    if rank < 1 or (a.shape[0], b.shape[1]) != (rank, rank):
        text = f"{printable(folder)}: {CONFIG} says rank {rank:g} at {printable(name, 200)}"
        raise DataError(
            f"{text}, and A is {tuple(a.shape)}, B {tuple(b.shape)}; (rank, in) and (out, rank) go together"
        )
    return Pair(a, b, alpha / math.sqrt(rank) if about.get("use_rslora") else alpha / rank)


def _wide(factor: Tensor) -> Tensor:
    return factor.to(torch.promote_types(torch.float32, factor.dtype))


def _setting(folder: Path, about: Mapping[str, Any], name: str, key: str, pattern: str) -> float:
    """Return a target's rank or alpha: of the first pattern that matches the end of its name, as PEFT looks it up."""
    patterns = about.get(pattern) or {}
    try:
        hits = (value for regex, value in patterns.items() if re.match(rf"(.*\.)?({regex})$", name))
        found: Any = next(hits, about.get(key))
        value = math.nan if isinstance(found, bool) else float(found)
    except (AttributeError, TypeError, ValueError, re.error) as error:
        text = f"{printable(folder)}/{CONFIG} does not describe a LoRA adapter"
        raise DataError(f"{text}: r and lora_alpha must be numbers, their patterns map a regex to one") from error
    if not math.isfinite(value):
        raise DataError(f"{printable(folder)}/{CONFIG}: {key} of {printable(name, 200)} is no finite number")
    return value


def check_same_base(adapters: Mapping[str, SavedAdapter]) -> None:
    """Raise `DataError` where two adapters, by the names they go by, cannot be added: other bases, or other shapes.

    Of a folder that does not say what its base was, shapes alone can be compared.
    """
    known = [(name, saved.base) for name, saved in adapters.items() if saved.base is not None]
    for name, base in known[1:]:
        first, wanted = known[0]
        if base != wanted:
            text = f"{name} and {first} were trained beside different bases (sha256 {base[:12]}… and {wanted[:12]}…)"
            raise DataError(f"{text}; changes of one base alone can be added")
    shapes: dict[str, tuple[str, tuple[int, int]]] = {}
    for name, saved in adapters.items():
        for target, pair in saved.delta.items():
            first, shape = shapes.setdefault(target, (name, pair.shape))
            if shape != pair.shape:
                text = f"{name} changes {printable(target, 200)} as {pair.shape}, and {first} as {shape}"
                raise DataError(f"{text}; they belong to different bases")
