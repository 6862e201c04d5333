"""What a task is: the data, the model, the forward pass and the evaluation behind one interface.

Tasks are found by the entry point group `ctr.tasks`. The module that holds a task's class loads no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from .text import printable, slug_problem

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import BaseModel
    from torch import Generator, Tensor, device
    from torch.nn import Module, Parameter

Needs = Mapping[str, frozenset[int]]
Split = Literal["val", "calibration", "test"]


@dataclass(frozen=True)
class Metric:
    """How a number is to be read: its unit, and which direction is better."""

    unit: str = ""
    better: Literal["higher", "lower"] = "higher"


@dataclass(slots=True)
class Batch:
    """One micro-batch: `ids` and `count` on the host, tensors on the device.

    `count` is what the loss is a mean over (images, trained tokens); 0 means scored but not trained.
    """

    ids: Sequence[str] | Sequence[int]
    count: int
    tensors: Mapping[str, Tensor]
    starts: Sequence[int] = ()  # slots in which a document begins with this micro-batch
    group: int = 0  # number of the set of documents it belongs to
    alone: bool = False  # an update of its own, whatever the accumulation: what follows must be scored after it


@dataclass(slots=True)
class Outputs:
    """What a forward pass gave: `loss` (0-d, mean over the items), `scores` per item, and what `needs` asked for."""

    loss: Tensor
    logits: Tensor | None = None
    scores: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """What a model scored on a split, item by item, in float64 on the host.

    `loss_sum[i]` is the loss of item i summed over its `count[i]` units; `metrics[name][i]` is one number per item, or
    one per `per[name][i]` units where `per` names it: then items weigh by their units.
    """

    split: str
    ids: Sequence[str] | Sequence[int]
    loss_sum: NDArray[np.float64]
    count: NDArray[np.float64]
    metrics: Mapping[str, NDArray[np.float64]]
    per: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def mean(self, name: str = "loss") -> float:
        """Return the mean of a metric over items, or over units where it is a ratio, as the loss is."""
        sums, units = self._ratio(name)
        return float(sums.mean()) if units is None else float(sums.sum() / units.sum())

    def _ratio(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        if name == "loss":
            return self.loss_sum, self.count
        units = self.per.get(name)
        return (self.metrics[name], None) if units is None else (self.metrics[name] * units, units)

    def se(self, name: str = "loss") -> float:
        """Return the standard error of `mean(name)`: per-item sd / sqrt(items); infinite with one item.

        Of a ratio of sums, as the loss is, items are the residuals sum - mean * units, scaled by the mean of units.
        """
        n = len(self.count)
        if n < 2:
            return float("inf")
        rows, units = self._ratio(name)
        if units is not None:
            rows = (rows - self.mean(name) * units) / units.mean()
        return float(rows.std(ddof=1) / np.sqrt(n))

    def summary(self) -> dict[str, Any]:
        """Return means, standard errors and the number of items, as the event log holds them."""
        names = ["loss", *sorted(self.metrics)]
        means = {name: self.mean(name) for name in names}
        return {**means, "items": len(self.count), "se": {name: self.se(name) for name in names}}


@dataclass(frozen=True)
class Context:
    """What a task is given beside its own settings. `folder` is where derived rows may be written."""

    seed: int
    device: device
    folder: Path


@dataclass(frozen=True)
class Phase:
    """A stretch of a run on one task; an epoch is a full pass, or `epoch_batches` micro-batches.

    `seed` is what its data order is drawn from where that is not the run's. `adapts`: the adapter alone is trained;
    otherwise all weights are, and an adapter stands aside. `turn` counts the phases before it that train the adapter on
    the same task.
    """

    name: str
    index: int
    epochs: int
    micro_batch: int
    epoch_batches: int | None = None
    seed: int | None = None
    adapts: bool = False
    checkpointing: bool = False
    compile: bool = False
    bf16: bool = False
    turn: int = 0


class Enough(Exception):
    """Raised within a forward pass whose rest nobody asks for."""


class Task(Protocol):
    """A source of batches and the model they train. `Config` are its settings, `Model` the models it can build.

    A class may have a classmethod `splits(config) -> set[str]` that names the splits to evaluate on; then a study that
    selects on another one is refused before anything is trained. A class whose models take an adapter has the settings
    `Adapter` and a method `adapter(module) -> Adapter | None`. A class whose models come from files has a static method
    `model_fingerprints(model) -> Mapping[str, str]`. What a task left out of its data it says in a list `notes`. Which
    settings of its own cost memory it may name in `costly`, for `train` and `evaluate`. A method
    `optimizer(spec, groups, settings) -> Optimizer | None` may make the optimizer of a phase. A task whose items are
    worth comparing one by one names them in `items_are`, such as "documents"; then their scores are kept. One whose
    items are scored once, while it trains, says `scored_once = True`, and has no column in the evaluation matrix. A
    method `batches_of(split, items)` yields the items at these positions as `evaluate` would score them, in batches
    that `forward` takes; searches take gradients of a split by it. A method `evaluate_parts(module, split, items,
    first)` scores the beginning of each item apart from the rest.
    """

    Config: ClassVar[type[BaseModel]]
    Model: ClassVar[Any]
    metrics: Mapping[str, Metric]
    provides: frozenset[str]

    def __init__(self, config: Any, context: Context) -> None: ...

    @staticmethod
    def fingerprints(config: Any) -> Mapping[str, str]:
        """Return a hash per data source without loading torch; raises `DataError` where data are missing."""

    def build(self, model: Any, adapter: Any, generator: Generator) -> Module:
        """Build the module once a run; a later task shares it or refuses it by name."""

    def share(self, module: Module) -> None:
        """Take the module that the run's first task built, or refuse it by name."""

    def groups(self, module: Module) -> Mapping[str, list[Parameter]]:
        """Name the parameter groups, trained parameters only."""

    def begin(self, phase: Phase) -> None:
        """Make the data of a phase ready."""

    def batches(self, epoch: int) -> int:
        """Return the number of micro-batches of an epoch."""

    def batch(self, epoch: int, index: int) -> Batch:
        """Return one micro-batch; pure in (seed, phase, epoch, index)."""

    def forward(self, module: Module, batch: Batch, needs: Needs) -> Outputs:
        """Run the module on a batch."""

    def evaluate(self, module: Module, split: str, items: Sequence[int] | None = None) -> Evaluation:
        """Score a split, or some items of it, in eval mode without gradients."""

    def items(self, split: str) -> Sequence[str] | Sequence[int]:
        """Return the ids of a split's items, in order; what `evaluation_items` hashes."""

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Return the item indices of an epoch in the order they are trained; what `data_order` hashes."""

    def probe(self, size: int) -> Sequence[Batch]:
        """Return fixed batches that depend on the data's own split seed only."""

    def state(self) -> Mapping[str, Any]:
        """Return what the task must remember across a kill."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""


def task_problem(task: Any) -> str | None:
    """Say why a class cannot be a task; None when it can."""
    if not inspect.isclass(task):
        return f"the entry point must name a class, not {printable(task, 80)}"
    methods = [name for name, value in vars(Task).items() if not name.startswith("_") and _is_method(value)]
    lacking = [name for name in methods if not callable(getattr(task, name, None))]
    if lacking:
        return f"task class {task.__name__} has no {', '.join(lacking)}"
    if not hasattr(getattr(task, "Config", None), "model_validate"):
        return "a task needs a nested pydantic class Config"
    return metrics_problem(getattr(task, "metrics", None), f"task class {task.__name__}: ")


def metrics_problem(metrics: Any, who: str = "") -> str | None:
    """Say why something cannot be the metrics that a task or a plugin declares; None when it can."""
    if not isinstance(metrics, Mapping) or not all(isinstance(metric, Metric) for metric in metrics.values()):
        return f"{who}metrics must be a mapping of names to Metric"
    wrong = (f"{who}metric {printable(name, 80)}: its name {why}" for name in metrics if (why := slug_problem(name)))
    return next(wrong, None)


def _is_method(value: Any) -> bool:
    return inspect.isroutine(value) or isinstance(value, staticmethod | classmethod)
