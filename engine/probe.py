"""What a plugin may look at in a moment of rest: other weights on a split, and fixed batches with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .compositions import Composition, StandIn, pulls
from .errors import PluginError
from .task import Batch, Enough, Evaluation, Needs, Outputs, Task

Pulls = dict[str, tuple[Tensor, Tensor]]


@contextmanager
def weights(module: Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Lend the module other weights and buffers; nothing is copied, and all is put back whatever happens."""
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    unknown = sorted(set(state) - set(own))
    if unknown:
        raise PluginError(f"evaluate was given a state with {unknown[0]}, which this model does not have")
    for name, value in state.items():
        if value.shape != own[name].shape:
            text = f"evaluate was given {name} of shape {tuple(value.shape)}; the model has {tuple(own[name].shape)}"
            raise PluginError(text)
    before = {name: own[name].data for name in state}
    try:
        for name, value in state.items():
            own[name].data = value.detach().to(own[name].device, own[name].dtype)
        yield
    finally:
        for name, value in before.items():
            own[name].data = value


@contextmanager
def eval_mode(module: Module) -> Iterator[None]:
    """Put the module in eval mode, and every part back as it was."""
    awake = [part for part in module.modules() if part.training]
    if awake:
        module.eval()
    try:
        yield
    finally:
        for part in awake:
            part.training = True


State = Mapping[str, Tensor] | Composition


class Evaluator:
    """`evaluate(states, split)`: score states on a split, one evaluation each. Test is open at kind `run` alone.

    `by_task` holds the evaluator of every task of the run by its name, this one included.
    """

    def __init__(
        self,
        task: Task,
        module: Module,
        kind: str,
        note: Any,
        stand: StandIn | None = None,
        by_task: Mapping[str, Evaluator] | None = None,
    ) -> None:
        self._task, self._module, self._kind, self._note = task, module, kind, note
        self._stand = stand or StandIn(module, None)
        self.by_task: Mapping[str, Evaluator] = {} if by_task is None else by_task

    def __call__(
        self, states: Sequence[State], split: str = "val", items: Sequence[int] | None = None
    ) -> list[Evaluation]:
        """Score each state: a map of trained tensors and buffers (`{}` is the model as it stands), or a composition.

        Raises `PluginError` for the test split before the run's end, an unknown split, or a state of another shape.
        """
        self._check(split)
        found = []
        for state in states:
            with self._in_place(state):
                found.append(self._task.evaluate(self._module, split, items))
            if split == "test":
                self._note(found[-1])
        return found

    def still(self) -> AbstractContextManager[None]:
        """Keep the module in eval mode, so that it is not switched there and back for each of many states."""
        return eval_mode(self._module)

    def items(self, split: str = "val") -> Sequence[str] | Sequence[int]:
        """Return the ids of a split's items, in the order in which positions count them."""
        self._check(split)
        return self._task.items(split)

    def trunk(
        self, composition: Composition, split: str, items: Sequence[int], below: Any = None, height: int = 1
    ) -> Any:
        """Return what the lowest `height` blocks give under a composition, above which others may begin.

        `below` is such a return of the same items, of less height, under one that agrees in the blocks it covers. None
        where a model's passes cannot begin above a block.
        """
        self._check(split, selects=True)
        grow, batches_of = getattr(self._module, "trunk", None), getattr(self._task, "batches_of", None)
        if grow is None or batches_of is None:
            return None
        with eval_mode(self._module), torch.no_grad(), self._in_place(composition), grow(below, height) as grown:
            for batch in batches_of(split, items) if grown is not None else ():
                with suppress(Enough):
                    self._task.forward(self._module, batch, {})
            return grown

    def above(
        self, composition: Composition, split: str, items: Sequence[int], trunk: Any = None, height: int | None = None
    ) -> tuple[Evaluation, Any]:
        """Score a composition from a trunk on, of the same items under one that agrees in the blocks it covers.

        On the way a trunk of `height` blocks is grown, and given too; None where a model's passes cannot begin above a
        block.
        """
        self._check(split, selects=True)
        grow = getattr(self._module, "trunk", None)
        if grow is None:
            return self([composition], split, items)[0], None
        with self._in_place(composition), grow(trunk, height, through=True) as grown:
            return self._task.evaluate(self._module, split, items), grown

    def parts(
        self, composition: Composition, split: str, items: Sequence[int], first: int
    ) -> tuple[Evaluation, Evaluation]:
        """Score the first `first` units of each item, and what comes after them.

        Raises `PluginError` where the task's items have no parts.
        """
        self._check(split, selects=True)
        parts = getattr(self._task, "evaluate_parts", None)
        if parts is None:
            raise PluginError(f"task {type(self._task).__name__} has no evaluate_parts: its items have no beginning")
        with self._in_place(composition):
            found: tuple[Evaluation, Evaluation] = parts(self._module, split, items, first)
            return found

    def gradient(self, composition: Composition, split: str, items: Sequence[int]) -> tuple[float, Pulls]:
        """Return the mean loss of a composition on items, and its gradient by A and B of every target; eval mode.

        Raises `PluginError` where the task has no `batches_of(split, items)`.
        """
        self._check(split, selects=True)
        batches_of = getattr(self._task, "batches_of", None)
        if batches_of is None:
            raise PluginError(f"task {type(self._task).__name__} has no batches_of, so a split has no gradient there")
        batches = list(batches_of(split, items))
        count, loss, total = sum(batch.count for batch in batches), 0.0, None
        with eval_mode(self._module), torch.enable_grad(), self._stand.lent(composition) as lent:
            for batch in batches:
                part = self._task.forward(self._module, batch, {}).loss * (batch.count / count)
                more = pulls(lent, part)
                loss += float(part.detach())
                total = more if total is None else {n: (total[n][0] + a, total[n][1] + b) for n, (a, b) in more.items()}
        return loss, total or {}

    def _in_place(self, state: State) -> Any:
        return self._stand.lent(state) if isinstance(state, Composition) else weights(self._module, state)

    def _check(self, split: str, selects: bool = False) -> None:
        if split == "test" and selects:
            raise PluginError("what is searched is chosen on val or calibration; test is read through evaluate(states)")
        if split not in ("val", "calibration", "test"):
            raise PluginError(f"evaluate was given split {split!r}; there are val, calibration and test")
        if split == "test" and self._kind != "run":
            raise PluginError(f"the test split is read at kind run, not at {self._kind}; evaluate on val")


class Probe:
    """Fixed batches that depend on the data's own split seed; the same for every arm and seed.

    `by_task` holds the probe of every task of the run by its name, this one included; all look through one module.
    """

    def __init__(self, task: Task, module: Module, size: int = 128, by_task: Mapping[str, Probe] | None = None) -> None:
        self._task, self._module, self._size = task, module, size
        self.by_task: Mapping[str, Probe] = {} if by_task is None else by_task
        self._batches: Sequence[Batch] | None = None

    @property
    def batches(self) -> Sequence[Batch]:
        if self._batches is None:
            self._batches = self._task.probe(self._size)
        return self._batches

    @property
    def params(self) -> dict[str, Parameter]:
        """The trained parameters by name."""
        return {name: p for name, p in self._module.named_parameters() if p.requires_grad}

    def outputs(self, batch: Batch, needs: Needs | None = None) -> Outputs:
        """Run the model in eval mode, differentiably; take gradients with `torch.autograd.grad`."""
        with eval_mode(self._module), torch.enable_grad():
            return self._task.forward(self._module, batch, needs or {})

    def loss(self, batch: Batch) -> Tensor:
        return self.outputs(batch).loss
