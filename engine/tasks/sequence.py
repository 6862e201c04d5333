"""The task `sequence`: guess the next token of synthetic sequences, drawn by a rule as they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ctr.engine.errors import DataError, Problem, SpecError
from ctr.engine.task import Batch, Context, Evaluation, Metric, Needs, Outputs, Phase

from .sequence_config import SequenceConfig, SequenceModelSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator
    from torch.nn import Module, Parameter

    from .sequence_data import Pair, Stream

_RULE = 1  # counts up when `sequence_data` draws other sequences from the same settings


class SequencePrediction:
    """Guess the next token of sequences that follow a rule with noise.

    Sequences are drawn, so there is no training set that could be used up: an epoch is `items_per_epoch` of them, in
    whole micro-batches, or `epoch_batches` micro-batches. Micro-batch n of a phase is the same however long an epoch
    is. The id of a sequence is a number made of its tokens. A batch counts its targets.

    In a model without a causal mask (`model.faithful`) every position but the last can copy its answer from the input,
    for targets are the inputs one place later, plus the offset: there `last_loss` and `last_accuracy` alone say what
    was learned of the rule. With a mask no loss below ln 3 = 1.0986 per token is to be had, for noise has three values.
    """

    Config: ClassVar[type[SequenceConfig]] = SequenceConfig
    Model: ClassVar[Any] = SequenceModelSettings
    metrics: Mapping[str, Metric] = {
        "accuracy": Metric(unit="%", better="higher"),
        "last_accuracy": Metric(unit="%", better="higher"),
        "last_loss": Metric(better="lower"),
    }
    provides: frozenset[str] = frozenset({"hidden", "attention", "branches"})

    def __init__(self, config: SequenceConfig, context: Context) -> None:
        self._data, self._eval_batch, self._context = config.data, config.eval_batch, context
        self._splits: dict[str, Pair] = {}
        self._phase: Phase | None = None

    @staticmethod
    def fingerprints(config: SequenceConfig) -> Mapping[str, str]:
        """Return a hash of the rule and its settings: there are no files."""
        return {"rule": hashlib.sha256(f"{_RULE}:{config.data.model_dump_json()}".encode()).hexdigest()}

    @classmethod
    def splits(cls, config: SequenceConfig) -> set[str]:
        """Name the splits that these settings give beside the training data."""
        return set(config.data.sizes())

    def build(self, model: Any, adapter: Any, generator: Generator) -> Module:
        """Build the model for this vocabulary and length; its weights are drawn from the default generator."""
        if adapter is not None:
            raise _wrong("adapter", "sequence trains whole models and knows no adapter; remove it")
        from .toy_transformer import ToyTransformer

        module = ToyTransformer(model, self._data.vocab, self._data.seq)
        return module.to(self._context.device)

    def share(self, module: Module) -> None:
        """Take the module that another task built, or refuse it where it is no toy transformer of the same tokens."""
        from .toy_transformer import ToyTransformer

        if not isinstance(module, ToyTransformer):
            text = f"{type(module).__name__} was not built for sequences of tokens, so sequence cannot share it"
            raise _wrong("model", f"{text}; give this phase a task of the model's own kind")
        for what, has, own in (("vocab", module.vocab, self._data.vocab), ("seq", module.seq, self._data.seq)):
            if has != own:
                text = f"the model was built for {what} {has}, this task has {own}"
                raise _wrong(f"tasks: data.{what}", f"{text}; tasks that share a model must have the same")

    def groups(self, module: Module) -> Mapping[str, list[Parameter]]:
        """Return the one group `base`: every parameter that is trained."""
        return {"base": [parameter for parameter in module.parameters() if parameter.requires_grad]}

    def begin(self, phase: Phase) -> None:
        from .sequence_data import Consecutive, positional

        self._phase = phase
        kind = Consecutive if self._data.stream == "consecutive" else positional
        self._stream: Stream = kind(self._data, phase.micro_batch, self._context.seed, phase.index)

    def batches(self, epoch: int) -> int:
        assert self._phase is not None, "begin(phase) comes before the first batch"
        return self._phase.epoch_batches or -(-self._data.items_per_epoch // self._phase.micro_batch)

    def batch(self, epoch: int, index: int) -> Batch:
        return self._batch(self._stream(epoch * self.batches(epoch) + index))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the ids of an epoch's sequences, and so what they hold, in the order they are trained."""
        from .sequence_data import names

        first = epoch * self.batches(epoch)
        drawn = [names(*self._stream(first + index)) for index in range(self.batches(epoch))]
        return np.asarray(drawn, np.int64).ravel()

    def forward(self, module: Module, batch: Batch, needs: Needs) -> Outputs:
        """Return loss, logits and what is asked for; see `ToyTransformer.forward` for what the layers' numbers mean.

        `extra["branches"]` is there in models with compartments only.
        """
        from .sequence_scoring import forward

        return forward(module, batch, needs)

    def evaluate(self, module: Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        """Score a split, or the sequences at some positions of it; the module's modes are as before afterwards."""
        from .sequence_data import names
        from .sequence_scoring import score

        inputs, targets = self._split(split)
        if items is not None:
            chosen = np.asarray(items, np.int64)
            inputs, targets = inputs[chosen], targets[chosen]
        device = self._context.device
        losses, correct = score(module, inputs.to(device), targets.to(device), self._eval_batch)
        metrics = {
            "accuracy": 100 * correct.mean(1), "last_accuracy": 100 * correct[:, -1], "last_loss": losses[:, -1].copy()
        }  # fmt: skip
        return Evaluation(
            split, names(inputs, targets), losses.sum(1), np.full(len(losses), float(losses.shape[1])), metrics
        )

    def items(self, split: str) -> Sequence[int]:
        from .sequence_data import names

        return names(*self._split(split))

    def probe(self, size: int) -> Sequence[Batch]:
        """Return the first `size` validation sequences, or all where there are fewer, in batches of `eval_batch`."""
        inputs, targets = self._split("val")
        inputs, targets, step = inputs[:size], targets[:size], self._eval_batch
        starts = range(0, len(inputs), step)
        return [self._batch((inputs[at : at + step], targets[at : at + step])) for at in starts]

    def state(self) -> Mapping[str, Any]:
        """Return nothing: every batch follows from its position."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass

    def _batch(self, pair: Pair) -> Batch:
        from .sequence_data import names

        inputs, targets = pair
        device = self._context.device
        tensors = {"inputs": inputs.to(device), "targets": targets.to(device)}
        return Batch(names(inputs, targets), targets.numel(), tensors)

    def _split(self, split: str) -> Pair:
        from .sequence_data import held_out

        sizes = self._data.sizes()
        if split not in sizes:
            hint = "; set data.calibration_items" if split == "calibration" else ""
            raise DataError(f"the data have no split {split!r}; they have {', '.join(sorted(sizes))}{hint}")
        if split not in self._splits:
            self._splits[split] = held_out(self._data, split)
        return self._splits[split]


def _wrong(path: str, text: str) -> SpecError:
    return SpecError([Problem("spec", 0, 0, path, text)])
