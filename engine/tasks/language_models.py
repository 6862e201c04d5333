"""Causal language models: built from numbers, or loaded from the hub or a folder; one module for all tasks of a run."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from ctr.engine.adapters import Adapter
from ctr.engine.errors import DataError, Problem, SpecError
from ctr.engine.lora_bank import BankAdapter, LoraBank
from ctr.engine.seeding import mix, stream
from ctr.engine.task import Context
from ctr.engine.text import printable

from .attention_maps import collecting, register
from .language_config import PretrainedModel, TinyModel
from .trunks import Trunk, can_begin_above, on

OFFLINE = "set HF_HUB_OFFLINE=1 and give a local folder as model.name, or take model: {kind: tiny}"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WEIGHTS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


class LanguageModel(Module):
    """A causal language model with its tokenizer, and the adapter beside it if there is one.

    Rows are padded on the right. Under a causal mask a real token sees none of the padding, so no padding mask is given
    and the fastest attention runs. Hidden state 0 is the embedding, i the output of block i, and the last one, also
    called -1, is behind the final norm, as transformers counts them.
    """

    def __init__(self, net: Any, tokenizer: Any, peft: Any = None, bank: LoraBank | None = None) -> None:
        super().__init__()
        self.net = net if peft is None else peft
        self.bank = bank  # silent until it is told to speak
        self.tokenizer = tokenizer
        self.has_adapter = self._speaks = peft is not None
        self.checkpointing = False
        self.decoder: Any = None  # the compiled forward pass, where that is asked for
        self.plain_head = self._head_is_plain()
        self._blocks: list[Module] | None = None
        self._above: bool | None = None  # whether passes may begin above lower blocks, once that was tried
        self.coarse = any(p.dtype != torch.float32 for p in self.parameters())

    @property
    def causal(self) -> Any:
        """The transformers model itself, with or without adapters inside."""
        return self.net.base_model.model if self.has_adapter else self.net

    @property
    def context(self) -> int | None:
        """The longest row in tokens, where the model has one."""
        found = getattr(self.causal.config, "max_position_embeddings", None)
        return found if isinstance(found, int) else None

    @property
    def vocab(self) -> int:
        """How many tokens the embedding knows."""
        return int(self.causal.get_input_embeddings().weight.shape[0])

    def blocks(self) -> list[Module]:
        """Return the blocks in order: the longest list of modules inside."""
        if self._blocks is None:  # looked for once: to walk through all modules takes milliseconds
            lists = [list(part) for part in self.causal.base_model.modules() if isinstance(part, nn.ModuleList)]
            self._blocks = max(lists, key=len, default=[])
        return self._blocks

    def base_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter that is no factor of an adapter, by name."""
        return [(name, p) for name, p in self.named_parameters() if ".lora_" not in name]

    def train_what(self, adapter: bool) -> None:
        """Train the adapter alone, or all weights while the adapter stands aside."""
        if self.has_adapter:
            layers = self.net.base_model
            layers.enable_adapter_layers() if adapter else layers.disable_adapter_layers()
            self._speaks = adapter
        for name, p in self.named_parameters():
            p.requires_grad_((".lora_" in name) == adapter)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Let the base speak alone in the forward passes within; a bank is silent unless it is told to speak."""
        layers = self.net.base_model if self._speaks else None
        if layers is not None:
            layers.disable_adapter_layers()
        try:
            yield
        finally:
            if layers is not None:
                layers.enable_adapter_layers()

    def checkpoint_activations(self, on: bool) -> None:
        """Recompute activations of blocks in the backward pass, or stop doing so."""
        if on == self.checkpointing:
            return
        net = self.causal
        if on and not net.supports_gradient_checkpointing:
            text = f"{type(net).__name__} cannot recompute its activations; turn it off"
            raise _wrong("train.gradient_checkpointing", text)
        word = "enable" if on else "disable"
        # transformers renames these two, and warns of the older name
        switch = getattr(net, f"activation_checkpointing_{word}", None) or getattr(
            net, f"gradient_checkpointing_{word}"
        )
        switch({"use_reentrant": False}) if on else switch()
        net.disable_input_require_grads()  # the reentrant form alone needs it; a frozen base would be walked to its end
        self.checkpointing = on

    def compile_decoder(self, on: bool) -> None:
        """Compile the forward pass up to the last hidden states, or stop doing so.

        The function is compiled, not the module: a compiled module would appear as a second copy of all weights.
        """
        self.decoder = torch.compile(self.causal.base_model.forward, dynamic=True) if on else None

    @contextmanager
    def trunk(self, trunk: Trunk | None, height: int | None, through: bool = False) -> Iterator[Trunk | None]:
        """Begin the passes within above a trunk, or grow one, or both; neither, and None, where this model cannot.

        Passes that grow one end there, unless they go `through`.
        """
        if self._above is None:
            self._above = self.eval_mode(lambda: can_begin_above(self, short_rows(self.causal, 1)))
        if not self._above:
            yield None
            return
        decoder, self.decoder = self.decoder, None  # what is compiled sees neither
        try:
            with on(self.blocks(), trunk, height, through) as grown:
                yield grown
        finally:
            self.decoder = decoder

    def eval_mode(self, look: Any) -> Any:
        """Return what a function finds in eval mode; every part's mode is then as before."""
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        try:
            return look()
        finally:
            for part, training in modes:
                part.training = training

    def hidden(self, ids: Tensor, positions: Tensor | None) -> Tensor:
        """Return the last hidden states (batch, seq, features) of rows of token ids (batch, seq)."""
        run = self.causal.base_model if self.decoder is None else self.decoder
        more = {} if positions is None else {"position_ids": positions}
        found: Tensor = run(input_ids=ids, use_cache=False, **more).last_hidden_state
        return found

    def logits(self, ids: Tensor, positions: Tensor | None, where: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (places, vocab) at flat positions `where` of (batch, seq), and the last hidden states.

        The head reads these places alone, where this model's logits are its head's output; else it reads all.
        """
        if self.plain_head:
            last = self.hidden(ids, positions)
            return self.causal.get_output_embeddings()(last.flatten(0, 1).index_select(0, where)), last
        more = {} if positions is None else {"position_ids": positions}
        out = self.causal(input_ids=ids, use_cache=False, output_hidden_states=True, **more)
        return out.logits.flatten(0, 1).index_select(0, where), out.hidden_states[-1]

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Say whether the logits are the head's output on the last hidden states, found out on one short row."""
        head, ids = self.causal.get_output_embeddings(), short_rows(self.causal, 1)

        def look() -> bool:
            whole = self.causal(input_ids=ids, use_cache=False).logits
            return head is not None and torch.equal(head(self.hidden(ids, None)), whole)

        try:
            return bool(self.eval_mode(look))
        except (RuntimeError, TypeError, AttributeError, ValueError):
            return False


def short_rows(net: Any, rows: int) -> Tensor:
    """Return rows of four token ids, or as many as a model's context holds, by which its modules are tried out."""
    config = net.config.get_text_config()
    length = min(4, getattr(config, "max_position_embeddings", None) or 4)
    ids = torch.arange(rows * length, device=next(net.parameters()).device) % int(config.vocab_size)
    return ids.view(rows, length)


@contextmanager
def watched(module: LanguageModel, needs: Mapping[str, frozenset[int]]) -> Iterator[Watch]:
    """Collect the hidden states and attention maps that are asked for, of the forward passes within."""
    blocks = module.blocks()
    watch = Watch(len(blocks), needs)
    with ExitStack() as stack:
        if watch.maps:
            if module.checkpointing:
                text = "attention maps cannot be had while activations are recomputed"
                raise _wrong("train.gradient_checkpointing", f"{text}; turn it off, or the term that needs them")
            watch.attention = stack.enter_context(collecting(frozenset(watch.maps.values())))
        for index in watch.outputs:
            if index == 0:
                handle = blocks[0].register_forward_pre_hook(watch.keep_input, with_kwargs=True)
            else:
                handle = blocks[index - 1].register_forward_hook(watch.keep_output(index))
            stack.callback(handle.remove)
        if (watch.outputs or watch.maps) and module.decoder is not None:  # what is compiled sees no hook, no collector
            stack.callback(setattr, module, "decoder", module.decoder)
            module.decoder = None
        yield watch


class Watch:
    """What a forward pass shows: layers as they were asked for, negative ones counted from the end."""

    def __init__(self, blocks: int, needs: Mapping[str, frozenset[int]]) -> None:
        self.blocks = blocks
        self.asked = {layer: self._at(layer, blocks + 1, "hidden state") for layer in needs.get("hidden", ())}
        self.maps = {layer: self._at(layer, blocks, "attention map") for layer in needs.get("attention", ())}
        self.outputs = sorted({index for index in self.asked.values() if index < blocks})
        self.kept: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}

    @staticmethod
    def _at(layer: int, count: int, what: str) -> int:
        if not -count <= layer < count:
            raise _wrong("plugins", f"this model has no {what} {layer}; it has {-count} to {count - 1}")
        return layer % count

    def keep_input(self, _: Any, inputs: Any, named: Any) -> None:
        self.kept[0] = inputs[0] if inputs else named["hidden_states"]

    def keep_output(self, index: int) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            self.kept[index] = output if isinstance(output, Tensor) else output[0]

        return keep

    def hidden(self, last: Tensor) -> dict[int, Tensor]:
        """Return the hidden states under the names they were asked for by."""
        return {layer: last if index == self.blocks else self.kept[index] for layer, index in self.asked.items()}

    def shown_maps(self) -> dict[int, Tensor]:
        """Return the attention maps under the names they were asked for by."""
        lacking = sorted(set(self.maps.values()) - set(self.attention))
        if lacking:
            text = f"this model's attention layer {lacking[0]} does not go through transformers' attention interface"
            raise _wrong("plugins", f"{text}, so its map cannot be had; turn off what needs attention maps")
        return {layer: self.attention[index] for layer, index in self.maps.items()}


# ------------------------------------------------------------------------------------------------------- building
def build(settings: TinyModel | PretrainedModel, device: torch.device) -> tuple[Any, Any]:
    """Return a transformers model and its tokenizer; a tiny one draws from torch's default generator."""
    return _tiny(settings, device) if isinstance(settings, TinyModel) else _pretrained(settings)


def assemble(settings: Any, adapter: Any, context: Context) -> LanguageModel:
    """Return a model on its device with the adapter of these settings beside it, if there are any.

    The adapter draws from a stream of its own, whatever the base's weights came from.
    """
    from . import bank, lora

    net, tokenizer = build(settings, context.device)
    torch.default_generator.manual_seed(mix(stream(context.seed, "adapter")))
    if adapter is None:
        model = LanguageModel(net, tokenizer)
    elif adapter.kind == "bank":
        model = bank.attach(net, tokenizer, adapter, context.seed)
    else:
        model = lora.attach(net, tokenizer, adapter)
    return model.to(context.device)


def groups(model: Module) -> dict[str, list[nn.Parameter]]:
    """Return what is trained by name: `base`, all weights, or `lora_a` and `lora_b`."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = {
        "base": [p for name, p in named if ".lora_" not in name],
        "lora_a": [p for name, p in named if ".lora_A." in name],
        "lora_b": [p for name, p in named if ".lora_B." in name],
    }
    return {name: parameters for name, parameters in found.items() if parameters}


def pairs(model: LanguageModel) -> Adapter | None:
    """Return the adapter of a model as pairs of factors, None where it has none."""
    if model.bank is not None:
        return BankAdapter(model.bank)
    from .lora import adapter_of

    return adapter_of(model) if model.has_adapter else None


def _tiny(settings: TinyModel, device: torch.device) -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    from .byte_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer()
    common: dict[str, Any] = {
        "vocab_size": settings.vocab or len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": False,
        "tie_word_embeddings": True,
    }
    if settings.family == "gpt2":
        dropout = settings.dropout
        config: Any = GPT2Config(
            n_embd=settings.width, n_layer=settings.layers, n_head=settings.heads, n_inner=settings.mlp,
            n_positions=settings.context, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **common,
        )  # fmt: skip
    else:
        config = Qwen2Config(
            hidden_size=settings.width, num_hidden_layers=settings.layers, num_attention_heads=settings.heads,
            num_key_value_heads=settings.kv_heads or settings.heads,
            intermediate_size=settings.mlp or round(2.75 * settings.width),
            max_position_embeddings=settings.context, attention_dropout=settings.dropout, **common,
        )  # fmt: skip
    config._attn_implementation = register()
    if settings.init_seed is not None:
        torch.default_generator.manual_seed(mix(stream(settings.init_seed, "init")))
    with _quiet():
        net: Any = GPT2LMHeadModel(config) if settings.family == "gpt2" else Qwen2ForCausalLM(config)
    return net, tokenizer


def _pretrained(settings: PretrainedModel) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = locate(settings)
    dtype = torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
    try:
        with _quiet():
            # never code from a hub, never a pickle; the config that is loaded is this model's own copy
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=register(), local_files_only=True, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts raise
        text = f"{settings.name} is no causal language model that can be loaded: {printable(error, 300)}"
        hint = "it must hold config.json, the tokenizer's files and weights as .safetensors"
        raise _wrong("model.name", f"{text}; {hint}") from error
    net, found = loaded
    drawn = sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]]))
    if drawn:  # transformers would go on with random numbers there
        text = f"{settings.name} holds no weights for {printable(drawn[0], 100)}"
        more = f" and {len(drawn) - 1} more" if len(drawn) > 1 else ""
        raise _wrong("model.name", f"{text}{more}; give a folder that was saved whole")
    return net, tokenizer


def locate(settings: PretrainedModel) -> Path:
    """Return the folder of a pretrained model: a local one, or the hub's copy, fetched once."""
    local = Path(settings.name).expanduser()
    looks_local = settings.name.startswith((".", "/", "~")) or local.exists()
    if looks_local:
        if not (local / "config.json").is_file():
            what = "has no config.json, so it is no model" if local.is_dir() else "is no folder"
            raise _wrong("model.name", f"{settings.name} {what}; give the folder that holds config.json")
        return local
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    def fetch(offline: bool) -> Path:
        return Path(
            snapshot_download(
                settings.name, revision=settings.revision, allow_patterns=list(_WEIGHTS), local_files_only=offline
            )
        )

    try:
        return fetch(offline=True)  # a copy that is there already is taken without asking the hub
    except HFValidationError as error:
        raise _wrong("model.name", f"{settings.name!r} is neither a folder nor a name on the hub") from error
    except OSError:
        pass  # it is not there yet, which the hub's own error says too
    try:
        return fetch(offline=False)
    except Exception as error:
        text = f"{settings.name} is not here and could not be fetched from the hub: {printable(error, 200)}"
        raise DataError(f"{text}; check the name and the network; to work offline {OFFLINE}") from error


def fingerprints(settings: TinyModel | PretrainedModel) -> Mapping[str, str]:
    """Return a hash of what decides a pretrained model's weights: the hub's commit, or the files themselves."""
    if isinstance(settings, TinyModel):
        return {}
    folder = locate(settings)
    if folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name):  # the hub's own layout, never rewritten
        return {"model": f"{settings.name}@{folder.name}"}
    digest = hashlib.sha256()
    kinds = tuple(pattern.removeprefix("*") for pattern in _WEIGHTS)  # all that is loaded, chat templates included
    for path in sorted(p for p in folder.rglob("*") if p.name.endswith(kinds) and p.is_file()):
        with path.open("rb") as file:
            name = path.relative_to(folder).as_posix()
            digest.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return {"model": digest.hexdigest()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and advice away from a terminal that shows ctr's own."""
    from transformers.utils import logging as told

    bars: Any = told
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()


def _wrong(path: str, text: str) -> SpecError:
    return SpecError([Problem("spec", 0, 0, path, text)])
