"""Ordinary LoRA through PEFT: where it goes, the pairs of factors it consists of, and folders that PEFT reads."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Generator, Tensor, nn

from ctr.engine.adapter_files import MANIFEST, TENSORS, read_adapter
from ctr.engine.adapters import Adapter, Factor
from ctr.engine.errors import DataError, Problem, SpecError, guess
from ctr.engine.storage import read_bytes, write_json
from ctr.engine.text import printable

from .language_config import LoraSettings
from .language_models import LanguageModel


def linear_maps(net: Any) -> dict[str, nn.Module]:
    """Return every linear map of a transformers model by name, its output head apart."""
    from transformers.pytorch_utils import Conv1D

    head = net.get_output_embeddings()
    return {
        name: part for name, part in net.named_modules() if isinstance(part, nn.Linear | Conv1D) and part is not head
    }


def targets(net: Any, asked: str | Sequence[str]) -> list[str]:
    """Return the names of the linear maps that get an adapter; raises `SpecError` naming those there are.

    `attention` takes those inside a module whose name speaks of attention, `all_linear` all of them; a text takes
    every map whose name ends in it, whole parts between dots compared.
    """
    maps = linear_maps(net)
    if isinstance(asked, str):
        inside = [name for name in maps if any("attn" in part or "attention" in part for part in name.split("."))]
        found = inside if asked == "attention" and inside else list(maps)
        if not found:
            raise wrong("adapter.targets", "this model has no linear map that could take an adapter")
        return found
    chosen: dict[str, None] = {}
    for end in asked:
        hits = [name for name in maps if name == end or name.endswith(f".{end}")]
        if not hits:
            ends = sorted({name.rpartition(".")[2] for name in maps})
            text = f"no linear map is named {printable(end, 80)}; names end in {', '.join(ends)}"
            raise wrong("adapter.targets", f"{text}.{guess(end, ends)}")
        chosen.update(dict.fromkeys(hits))
    return list(chosen)


def attach(net: Any, tokenizer: Any, settings: LoraSettings) -> LanguageModel:
    """Put an adapter beside a model; A is drawn from torch's default generator, B is zero."""
    from peft import LoraConfig, get_peft_model

    names = targets(net, settings.targets)
    maps = linear_maps(net)
    small = [name for name in names if settings.rank > min(_shape(maps[name]))]
    if small:
        rows, columns = _shape(maps[small[0]])
        text = f"{settings.rank} is larger than a side of {small[0]} ({rows} x {columns})"
        raise wrong("adapter.rank", f"{text}; take at most {min(rows, columns)}, or other targets")
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides by it; a fraction is as good
        lora_dropout=settings.dropout,
        target_modules=names,
        use_rslora=settings.scaling == "rank_stabilised",
        fan_in_fan_out=all(isinstance(maps[name], Conv1D) for name in names),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with catch_warnings():
        simplefilter("ignore")  # PEFT's advice on tied weights and transposed maps, which are both cared for here
        peft = get_peft_model(net, config)
    model = LanguageModel(net, tokenizer, peft)
    if settings.load is not None:
        _load(model, Path(settings.load).expanduser(), settings)
    return model


def _shape(part: Any) -> tuple[int, int]:
    rows, columns = part.weight.shape
    return int(rows), int(columns)


def adapter_of(model: LanguageModel) -> Adapter:
    """Return the adapter's pairs of factors; each base weight is seen as (out, in), however it is stored."""
    from peft.tuners.lora import LoraLayer

    factors = []
    for name, layer in model.net.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            weight: Any = layer.get_base_layer().weight
            base = weight.T if getattr(layer, "fan_in_fan_out", False) else weight
            a: Any = layer.lora_A["default"].weight
            b: Any = layer.lora_B["default"].weight
            factors.append(Factor(name, a, b, float(layer.scaling["default"]), base))
    return Adapter(factors, draw, lambda folder, about: save(model, folder, about))


def draw(a: Tensor, generator: Generator) -> Tensor:
    """Draw an A as PEFT does: uniform within ±1/sqrt(in)."""
    bound = 1 / math.sqrt(a.shape[1])
    return torch.empty(a.shape, device=generator.device).uniform_(-bound, bound, generator=generator)


# ------------------------------------------------------------------------------------------------------- folders
def save(model: LanguageModel, folder: Path, about: dict[str, Any]) -> None:
    """Write a folder that `PeftModel.from_pretrained` loads beside the unmodified base, and what it belongs to."""
    with catch_warnings():
        simplefilter("ignore")
        model.net.save_pretrained(folder, save_embedding_layers=False)
    card = folder / "README.md"  # PEFT's empty form, which tells nobody anything
    card.unlink(missing_ok=True)
    digest = hashlib.sha256(read_bytes(folder / TENSORS, 1 << 40)).hexdigest()
    write_json(folder / MANIFEST, {**about, "base": base_digest(model), "sha256": digest})


def base_digest(model: LanguageModel) -> str:
    """Return the sha256 over the base's weights, by name, shape and bytes."""
    digest = hashlib.sha256()
    for name, p in model.base_parameters():
        plain = name.replace("net.base_model.model.", "net.").replace(".base_layer.", ".")
        digest.update(f"{plain}:{p.dtype}:{tuple(p.shape)}".encode())
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy().data if p.numel() else b"")
    return digest.hexdigest()


def _load(model: LanguageModel, folder: Path, settings: LoraSettings) -> None:
    try:
        saved = read_adapter(folder)
    except DataError as error:
        raise DataError(f"adapter.load: {error}") from error
    if saved.base is not None and saved.base != base_digest(model):
        text = f"adapter.load: {folder} was trained beside another base (sha256 {saved.base[:12]}…)"
        raise DataError(f"{text} than this model ({base_digest(model)[:12]}…); load the model it belongs to")
    own = {f.name: f for f in adapter_of(model).factors}
    for name, factor in own.items():
        pair = saved.delta.get(name)
        for side in "ab":
            given, mine = getattr(pair, side, None), getattr(factor, side)
            if given is None or given.shape != mine.shape:
                shape = "nothing" if given is None else f"{tuple(given.shape)}"
                text = (
                    f"adapter.load: {folder} has {shape} for factor {side.upper()} of {name}, not {tuple(mine.shape)}"
                )
                raise DataError(f"{text}; adapter.rank ({settings.rank}) and targets must be those it was saved with")
    if len(saved.delta) != len(own):
        raise DataError(f"adapter.load: {folder} has factors for targets that this run has not; set adapter.targets")
    for name, factor in own.items():  # of another scaling, factors would speak louder or softer than where they learned
        pair = saved.delta[name]
        if not math.isclose(pair.scaling, factor.scaling, rel_tol=1e-6):
            text = f"adapter.load: {folder} was saved with a scaling of {pair.scaling:g} at {name}"
            raise DataError(f"{text}, and this run's is {factor.scaling:g}; set adapter.alpha and scaling as they were")
    with torch.no_grad():
        for name, factor in own.items():
            factor.a.copy_(saved.delta[name].a)
            factor.b.copy_(saved.delta[name].b)


def wrong(path: str, text: str) -> SpecError:
    return SpecError([Problem("spec", 0, 0, path, text)])
