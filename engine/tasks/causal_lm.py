"""The task `causal_lm`: predict the next token of texts and conversations, with all weights or a LoRA beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ctr.engine.errors import DataError, Problem, SpecError
from ctr.engine.seeding import stream
from ctr.engine.task import Batch, Context, Evaluation, Metric, Needs, Outputs, Phase

from .language_config import AdapterSettings, CausalLmConfig, LanguageModelSettings
from .text_sources import divide, fingerprint, read

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator
    from torch.nn import Module, Parameter

    from ctr.engine.adapters import Adapter as Pairs

    from .language_models import LanguageModel
    from .token_batches import Passes, Tokens


class CausalLm:
    """Predict the next token. The loss is the mean over the trained tokens of the logical batch.

    An item is a row: a text, or a conversation of which the assistant's turns are trained. Outputs hold logits and
    labels at trained places alone, (places, vocab) and `batch.tensors["labels"]`. Hidden state i is what transformers
    counts as i: 0 the embedding, -1 behind the final norm.
    """

    Config: ClassVar[type[CausalLmConfig]] = CausalLmConfig
    Model: ClassVar[Any] = LanguageModelSettings
    Adapter: ClassVar[Any] = AdapterSettings
    metrics: Mapping[str, Metric] = {"accuracy": Metric(unit="%", better="higher")}
    provides: frozenset[str] = frozenset({"hidden", "attention", "reference"})
    costly: Mapping[str, Sequence[str]] = {"train": ["max_length"], "evaluate": ["eval_tokens"]}

    def __init__(self, config: CausalLmConfig, context: Context) -> None:
        self._config, self._context = config, context
        self._source = read(config.data)
        self._splits = divide(self._source, config.data)
        self._tokens: dict[str, Tokens] = {}
        self._ids: dict[str, list[str]] = {}
        self.notes: list[str] = []
        self._module: LanguageModel | None = None
        self._passes: Passes | None = None
        self._phase: Phase | None = None

    @staticmethod
    def fingerprints(config: CausalLmConfig) -> Mapping[str, str]:
        """Return the sha256 of the source's data by its name."""
        return fingerprint(config.data)

    @staticmethod
    def model_fingerprints(model: Any) -> Mapping[str, str]:
        """Return a hash of a pretrained model's weights; empty for one that is built from numbers."""
        from .language_config import TinyModel

        if isinstance(model, TinyModel):
            return {}
        from .language_models import fingerprints

        return fingerprints(model)

    @classmethod
    def splits(cls, config: CausalLmConfig) -> set[str]:
        """Name the splits that these settings give beside the training split."""
        return config.data.splits()

    # ------------------------------------------------------------------------------------------------- the module
    def build(self, model: Any, adapter: Any, generator: Generator) -> Module:
        """Build or load the model; its draws, then the adapter's, come from torch's default generator."""
        from .language_models import assemble

        module = assemble(model, adapter, self._context)
        self.share(module)
        return module

    def share(self, module: Module) -> None:
        """Take the module that the run's first task built, or refuse it by name."""
        from .language_models import LanguageModel

        if not isinstance(module, LanguageModel):
            text = f"{type(module).__name__} is no language model, so causal_lm cannot share it"
            raise SpecError([Problem("spec", 0, 0, "model", f"{text}; give this phase a task of the model's own kind")])
        if module.context is not None and module.context < self._config.max_length:
            text = f"{self._config.max_length} is more than the model's context of {module.context} tokens"
            raise SpecError([Problem("spec", 0, 0, "task.max_length", text)])
        self._module = module
        for split in self._splits:
            self._encode(split)

    def _encode(self, split: str) -> None:
        from .text_rows import encode, notes
        from .token_batches import Tokens

        assert self._module is not None
        rows = [self._source.rows[i] for i in self._splits[split]]
        place = self._source.place
        found = encode(rows, self._module.tokenizer, self._config.max_length, place=place)
        largest, known = max(int(row.max()) for row in found.ids), self._module.vocab
        if largest >= known:
            text = f"{place}: the tokenizer gives token {largest}, which is past the model's vocabulary of {known}"
            raise DataError(f"{text}; model.name must hold the tokenizer that the model was trained with")
        self.notes += notes(split, found, self._config.max_length)
        self._tokens[split] = Tokens(found.ids, found.trained)
        self._ids[split] = [rows[i].id for i in found.kept]

    def adapter(self, module: Module) -> Pairs | None:
        """Return the pairs of factors of the module's adapter."""
        from .language_models import pairs

        return pairs(module)  # type: ignore[arg-type]

    def groups(self, module: Module) -> Mapping[str, list[Parameter]]:
        """Return `base`, all weights, or `lora_a` and `lora_b` where the adapter alone is trained."""
        from .language_models import groups

        return groups(module)

    # -------------------------------------------------------------------------------------------------- the phase
    def begin(self, phase: Phase) -> None:
        from .token_batches import Passes

        module = self._built()
        if module.coarse and not phase.adapts:
            text = "weights in bfloat16 are too coarse to be trained; set model.dtype: float32, or trains: adapter"
            raise SpecError([Problem("spec", 0, 0, "model.dtype", text)])
        if module.bank is not None and phase.adapts:
            text = "a bank adapts to documents that come one after another, as in the task document_stream"
            raise SpecError([Problem("spec", 0, 0, "adapter.kind", f"{text}; use kind: lora here, or trains: all")])
        module.train_what(adapter=phase.adapts)
        module.checkpoint_activations(phase.checkpointing)
        module.compile_decoder(phase.compile)
        module.train()
        if phase != self._phase:
            seed = self._context.seed if phase.seed is None else phase.seed
            self._passes = Passes(
                self._split("train"), self._config.rows, phase.micro_batch, self._config.max_length, seed, phase.index
            )
            self._phase = phase

    def batches(self, epoch: int) -> int:
        return self._started().epoch_batches or self._walk().per_pass

    def batch(self, epoch: int, index: int) -> Batch:
        number, place = divmod(epoch * self.batches(epoch) + index, self._walk().per_pass)
        return self._gather("train", self._walk().at(number, place))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of an epoch in the order they are trained, as indices into the training split."""
        first = epoch * self.batches(epoch)
        places = (divmod(first + index, self._walk().per_pass) for index in range(self.batches(epoch)))
        return np.concatenate([self._walk().at(*place).rows for place in places])

    def forward(self, module: Module, batch: Batch, needs: Needs) -> Outputs:
        """Return loss, logits at trained places, and the hidden states and attention maps that are asked for."""
        from .token_scoring import forward

        return forward(module, batch, needs)  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------------- scoring
    def evaluate(self, module: Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        """Score a split, or the items at some positions of it, in float32; the module's modes are as before."""
        from .token_scoring import score

        tokens = self._split(split)
        chosen = np.arange(len(tokens)) if items is None else np.asarray(items, np.int64)
        groups = self._groups(split, chosen)
        losses, hits = score(module, self._batches(split, groups))  # type: ignore[arg-type]
        back = _places(groups, chosen)
        counts = tokens.counts[chosen].astype(np.float64)
        ids = [self._ids[split][i] for i in chosen]
        return Evaluation(split, ids, losses[back], counts, {"accuracy": 100 * hits[back] / counts})

    def evaluate_parts(
        self, module: Module, split: str, items: Sequence[int], first: int
    ) -> tuple[Evaluation, Evaluation]:
        """Score the first trained tokens of each item, and those after them, which they cannot see.

        An item that is no longer than that has count 0 in the second part.
        """
        from .token_scoring import score_parts

        chosen = np.asarray(items, np.int64)
        groups = self._groups(split, chosen)
        parts = score_parts(module, self._batches(split, groups), first)  # type: ignore[arg-type]
        back, ids = _places(groups, chosen), [self._ids[split][i] for i in chosen]
        before, after = (Evaluation(split, ids, losses[back], counts[back], {}) for losses, counts in parts)
        return before, after

    def batches_of(self, split: str, items: Sequence[int]) -> Iterator[Batch]:
        """Yield the items at some positions of a split, once each, in batches that `forward` takes."""
        return self._batches(split, self._groups(split, np.asarray(items, np.int64)))

    def _groups(self, split: str, chosen: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        from .token_batches import by_budget

        return [chosen[group] for group in by_budget(self._split(split).lengths[chosen], self._config.eval_tokens)]

    def _batches(self, split: str, groups: Sequence[NDArray[np.int64]]) -> Iterator[Batch]:
        from .token_batches import layout

        tokens = self._split(split)
        return (self._gather(split, layout(tokens, rows)) for rows in groups)

    def items(self, split: str) -> Sequence[str]:
        self._split(split)
        return self._ids[split]

    def probe(self, size: int) -> Sequence[Batch]:
        """Return validation rows, at most `size` and `probe_rows`, drawn by the data's split seed, by like length."""
        tokens = self._split("val")
        random = np.random.RandomState(stream(self._config.data.split_seed, "probe") & 0xFFFFFFFF)
        picked = np.sort(random.permutation(len(tokens))[: min(size, self._config.probe_rows)])
        return list(self._batches("val", self._groups("val", picked)))

    def state(self) -> Mapping[str, Any]:
        """Return nothing: every batch follows from its position."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def _gather(self, split: str, at: Any) -> Batch:
        from .token_batches import gather

        pad = self._built().tokenizer.pad_token_id
        return gather(self._tokens[split], at, self._ids[split], pad or 0, self._context.device)

    def _built(self) -> LanguageModel:
        assert self._module is not None, "build or share comes first"
        return self._module

    def _walk(self) -> Passes:
        assert self._passes is not None, "begin(phase) comes before the first batch"
        return self._passes

    def _started(self) -> Phase:
        assert self._phase is not None, "begin(phase) comes before the first batch"
        return self._phase

    def _split(self, name: str) -> Tokens:
        if name not in self._tokens:
            has = ", ".join(sorted(self._tokens))
            hint = f"; set data.{name}_fraction" if name in ("val", "calibration", "test") else ""
            raise DataError(f"the data have no split {name!r}; they have {has}{hint}")
        return self._tokens[name]


def _places(groups: Sequence[NDArray[np.int64]], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each chosen item stands when groups of them are put one behind the other."""
    place = np.concatenate(groups) if groups else chosen
    order = np.argsort(place, kind="stable")
    found: NDArray[np.int64] = order[np.searchsorted(place[order], chosen)]
    return found
