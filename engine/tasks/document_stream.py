"""The task `document_stream`: score documents chunk by chunk, adapting to each after every chunk that was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ctr.engine.errors import DataError, Problem, SpecError
from ctr.engine.seeding import stream
from ctr.engine.task import Batch, Context, Evaluation, Metric, Needs, Outputs, Phase

from .document_config import DocumentStreamConfig
from .documents import Documents, encode, fingerprint, load
from .language_config import AdapterSettings, LanguageModelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

    from ctr.engine.adapters import Adapter as Pairs

    from .document_plan import StreamPlan
    from .language_models import LanguageModel
    from .ledger import Ledger
    from .token_batches import Passes, Tokens

LOG2 = float(np.log(2.0))


class DocumentStream:
    """Score every document once, a chunk a step, and let its slot of the LoRA bank take a step on what was scored.

    A phase that trains the adapter streams a part of the queue; one that trains all weights trains on the documents
    scored so far, without the bank. Evaluations of any split are the booked scores, per document, once there are any:
    a document is scored once, and before that the model without adapters tells what there is to gain.
    """

    Config: ClassVar[type[DocumentStreamConfig]] = DocumentStreamConfig
    Model: ClassVar[Any] = LanguageModelSettings
    Adapter: ClassVar[Any] = AdapterSettings
    metrics: Mapping[str, Metric] = {"bits_per_byte": Metric(unit="bit", better="lower")}
    provides: frozenset[str] = frozenset({"hidden", "attention", "reference"})
    costly: Mapping[str, Sequence[str]] = {"train": ["window", "chunk"], "evaluate": ["eval_tokens"]}
    items_are = "documents"
    scored_once = True

    def __init__(self, config: DocumentStreamConfig, context: Context) -> None:
        self._config, self._context = config, context
        self._source = load(config)
        self.notes: list[str] = []
        self._module: LanguageModel | None = None
        self.documents: Documents
        self.plan: StreamPlan
        self.ledger: Ledger
        self.tokens: Tensor
        self._phase: Phase | None = None
        self._passes: Passes | None = None
        self._pieces: Tokens | None = None

    @staticmethod
    def fingerprints(config: DocumentStreamConfig) -> Mapping[str, str]:
        """Return the sha256 of the source's data by its name."""
        return fingerprint(config)

    @staticmethod
    def model_fingerprints(model: Any) -> Mapping[str, str]:
        """Return a hash of a pretrained model's weights; empty for one that is built from numbers."""
        from .causal_lm import CausalLm

        return CausalLm.model_fingerprints(model)

    @classmethod
    def splits(cls, config: DocumentStreamConfig) -> set[str]:
        """Name the splits that these settings give: a stream has one, whatever it is called."""
        return {"val", "test"}

    # ------------------------------------------------------------------------------------------------- the module
    def build(self, model: Any, adapter: Any, generator: Any) -> Module:
        """Build or load the model, and the bank beside it."""
        from .language_models import assemble

        module = assemble(model, adapter, self._context)
        self.share(module)
        return module

    def share(self, module: Module) -> None:
        """Take the module that the run's first task built, or refuse it by name."""
        import torch

        from .document_plan import StreamPlan
        from .language_models import LanguageModel
        from .ledger import Ledger

        if not isinstance(module, LanguageModel):
            text = f"{type(module).__name__} is no language model, so document_stream cannot share it"
            raise _wrong("model", f"{text}; give this phase a task of the model's own kind")
        if module.bank is None:
            raise _wrong("adapter", "a stream adapts a bank of adapters to its documents; add adapter: {kind: bank}")
        config = self._config
        if module.context is not None and module.context < config.window:
            raise _wrong("task.window", f"{config.window} is more than the model's context of {module.context} tokens")
        self._module = module
        self.documents = found = encode(config, self._source, module.tokenizer)
        self.notes += found.notes
        largest, known = int(found.flat.max()), module.vocab
        if largest >= known:
            text = f"the documents hold token {largest}, which is past the model's vocabulary of {known}"
            raise DataError(f"{text}; model.name must be the model that the tokens were made for")
        parts, slots = config.parts, module.bank.slots
        if parts and parts[-1] > len(found.ids):
            raise _wrong("task.parts", f"{parts[-1]} is more than the {len(found.ids)} documents there are")
        self.plan = StreamPlan(found.lengths - 1, config.order, slots, config.chunk, config.window, parts)
        if any(right <= left for left, right in zip(self.plan.bounds, self.plan.bounds[1:], strict=False)):
            text = f"two of {', '.join(map(str, parts))} fall into one group of {slots} documents, or after the last"
            raise _wrong("task.parts", f"{text}; take them further apart, or fewer slots")
        self.ledger = Ledger(self.plan.rows, self._context.device)
        self.tokens = torch.from_numpy(found.flat).to(self._context.device)

    def adapter(self, module: Module) -> Pairs | None:
        """Return the bank as the adapter that is reset at boundaries."""
        from .language_models import pairs

        return pairs(module)  # type: ignore[arg-type]

    def groups(self, module: Module) -> Mapping[str, list[Parameter]]:
        """Return `lora_a` and `lora_b`, or `base` where all weights are trained."""
        from .language_models import groups

        return groups(module)

    def optimizer(
        self, spec: Any, groups: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
    ) -> Optimizer | None:
        """Return the bank's own optimizer, whose slots count their steps apart; None where all weights are trained."""
        from ctr.engine.bank_optimizer import BankOptimizer

        if not self._started().adapts:
            return None
        bank = self._built().bank
        assert bank is not None
        bank.scale_for(spec.kind)
        return BankOptimizer(bank, spec.kind, groups, **settings)

    # -------------------------------------------------------------------------------------------------- the phase
    def begin(self, phase: Phase) -> None:
        module, plan = self._built(), self.plan
        if phase.epochs != 1 or phase.epoch_batches is not None:
            if phase.adapts:
                text = "a stream is read once from end to end; set epochs: 1 and leave epoch_batches out"
                raise _wrong("train.epochs", text)
        if phase.adapts and (phase.checkpointing or phase.compile):
            key = "gradient_checkpointing" if phase.checkpointing else "compile"
            raise _wrong(f"train.{key}", "the bank's adapters are hooks that it would not see; turn it off")
        if phase.adapts and phase.turn >= len(plan.bounds) - 1:
            text = f"phase {phase.name} has no documents left: {len(plan.bounds) - 1} parts are read by as many phases"
            raise _wrong("phases", f"{text} that train the adapter; see task.parts")
        if not phase.adapts and phase.turn == 0:
            text = f"phase {phase.name} trains on scored documents, and none has been scored before it"
            raise _wrong("phases", f"{text}; let a phase with trains: adapter come first, or take the task causal_lm")
        module.train_what(adapter=phase.adapts)
        module.checkpoint_activations(phase.checkpointing)
        module.compile_decoder(phase.compile)
        module.train(not phase.adapts)  # a score is of the model itself, without dropout
        if phase != self._phase and not phase.adapts:
            self._prepare(phase)
        self._phase = phase

    def _prepare(self, phase: Phase) -> None:
        """Lay out what was scored as rows of at most a window, several in a line, apart from each other."""
        from .token_batches import Passes

        rows = self.plan.pieces(self.plan.documents(phase.turn))
        self._pieces = self._tokens([(document, start, start, end) for document, start, end in rows])
        seed = self._context.seed if phase.seed is None else phase.seed
        width = self._config.window + 1
        self._passes = Passes(self._pieces, "pack", phase.micro_batch, width, seed, phase.index)

    def _tokens(self, rows: Sequence[tuple[int, int, int, int]]) -> Tokens:
        """Return rows (document, start, first, end): inputs from start to end, targets from first to end."""
        from .token_batches import Tokens

        found = self.documents
        ids, trained = [], []
        for document, start, first, end in rows:
            base = int(found.starts[document])
            ids.append(found.flat[base + start : base + end + 1])
            flags = np.zeros(end - start + 1, np.bool_)
            flags[first - start + 1 :] = True
            trained.append(flags)
        return Tokens(ids, trained)

    def batches(self, epoch: int) -> int:
        phase = self._started()
        if phase.adapts:
            return self.plan.length(phase.turn)
        assert self._passes is not None
        return phase.epoch_batches or self._passes.per_pass

    def batch(self, epoch: int, index: int) -> Batch:
        from . import document_scoring, token_batches

        phase = self._started()
        if phase.adapts:
            event = self.plan.event(phase.turn, index)
            slots = self.plan.slots
            return document_scoring.gather(
                event, self.tokens, self.documents.starts, self.plan.row, self.documents.ids, slots
            )
        assert self._passes is not None and self._pieces is not None
        at = self._passes.at(*divmod(epoch * self.batches(epoch) + index, self._passes.per_pass))
        names = [str(i) for i in range(len(self._pieces))]
        return token_batches.gather(self._pieces, at, names, self._pad(), self._context.device)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return documents in the order they are read, or pieces of them in the order they are trained."""
        phase, plan = self._started(), self.plan
        if phase.adapts:
            return np.concatenate(plan.groups[plan.bounds[phase.turn] : plan.bounds[phase.turn + 1]])
        assert self._passes is not None
        places = [divmod(epoch * self.batches(epoch) + i, self._passes.per_pass) for i in range(self.batches(epoch))]
        return np.concatenate([self._passes.at(*place).rows for place in places])

    def forward(self, module: Module, batch: Batch, needs: Needs) -> Outputs:
        """Run a batch. The scores of a step of the stream are booked, before any update could use them."""
        from . import document_scoring, token_scoring

        if "places" not in batch.tensors:
            return token_scoring.forward(module, batch, needs)  # type: ignore[arg-type]
        outputs = document_scoring.forward(module, batch, needs)  # type: ignore[arg-type]
        self.ledger.book(batch.tensors["row"], outputs.scores["nats"])
        return outputs

    # ---------------------------------------------------------------------------------------------------- scoring
    def evaluate(self, module: Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        """Return the booked scores of the documents read so far; without any, all as scored without adapters."""
        known = self._read()
        booked = len(known) > 0
        known = known if booked else np.arange(len(self.documents.ids))
        chosen = known if items is None else known[np.asarray(items, np.int64)]
        if booked:
            nats = self.ledger.by_document(self.plan.row[chosen], self.plan.chunks[chosen])
        else:
            nats = self._unadapted(module, chosen)
        counts = self.plan.targets[chosen].astype(np.float64)
        ids = [self.documents.ids[i] for i in chosen]
        counted = self.documents.bytes
        if counted is None:
            return Evaluation(split, ids, nats, counts, {})
        size = counted[chosen].astype(np.float64)
        bits = nats / LOG2 / np.maximum(size, 1)
        return Evaluation(split, ids, nats, counts, {"bits_per_byte": bits}, {"bits_per_byte": size})

    def _read(self) -> NDArray[np.int64]:
        """Return the documents of the parts that are scored to their end, in the order of their source."""
        seen = self.ledger.entries.cpu().numpy() > 0
        whole = np.array([seen[row : row + n].all() for row, n in zip(self.plan.row, self.plan.chunks, strict=True)])
        parts = 0
        while parts < len(self.plan.bounds) - 1 and whole[self.plan.documents(parts + 1)].all():
            parts += 1
        return np.sort(self.plan.documents(parts))

    def _unadapted(self, module: Module, documents: NDArray[np.int64]) -> NDArray[np.float64]:
        from .token_batches import by_budget, gather, layout
        from .token_scoring import score

        rows = [(int(d), *row) for d in documents.tolist() for row in self.plan.unadapted(d)]
        tokens = self._tokens(rows)
        groups = by_budget(tokens.lengths, self._config.eval_tokens)
        names = [str(i) for i in range(len(tokens))]
        device = self._context.device
        batches = (gather(tokens, layout(tokens, group), names, self._pad(), device) for group in groups)
        losses, _ = score(module, batches)  # type: ignore[arg-type]
        order = np.concatenate(groups)
        place = {int(d): i for i, d in enumerate(documents.tolist())}
        owner = np.array([place[row[0]] for row in rows])[order]
        return np.bincount(owner, losses, len(documents)).astype(np.float64)

    def items(self, split: str) -> Sequence[str]:
        return list(self.documents.ids)

    def probe(self, size: int) -> Sequence[Batch]:
        """Return beginnings of documents, drawn from the source's own order; the bank is silent on them."""
        from .token_batches import by_budget, gather, layout

        count = len(self.documents.ids)
        random = np.random.RandomState(stream(0, "probe") & 0xFFFFFFFF)
        picked = np.sort(random.permutation(count)[: min(size, self._config.probe_rows)])
        most = self._config.window
        tokens = self._tokens([(d, 0, 0, min(most, int(self.plan.targets[d]))) for d in picked.tolist()])
        names = [self.documents.ids[d] for d in picked]
        groups = by_budget(tokens.lengths, self._config.eval_tokens)
        return [gather(tokens, layout(tokens, group), names, self._pad(), self._context.device) for group in groups]

    def state(self) -> Mapping[str, Any]:
        """Return the ledger, all that a stream remembers."""
        return self.ledger.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned; what an earlier phase's cache holds of a stream is nothing."""
        if state:
            self.ledger.restore(state)

    def _pad(self) -> int:
        return self._built().tokenizer.pad_token_id or 0

    def _built(self) -> LanguageModel:
        assert self._module is not None, "build or share comes first"
        return self._module

    def _started(self) -> Phase:
        assert self._phase is not None, "begin(phase) comes before the first batch"
        return self._phase


def _wrong(path: str, text: str) -> SpecError:
    return SpecError([Problem("spec", 0, 0, path, text)])
