"""What a plugin may look at in a moment of rest: other weights on a split, and fixed batches with gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from .errors import PluginError
from .task import Batch, Evaluation, Needs, Outputs, Task


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
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


class Evaluator:
    """`evaluate(states, split)`: score states on a split, one evaluation each. Test is open at kind `run` alone."""

    def __init__(self, task: Task, module: Module, kind: str, note: Any) -> None:
        self._task, self._module, self._kind, self._note = task, module, kind, note

    def __call__(
        self, states: Sequence[Mapping[str, Tensor]], split: str = "val", items: Sequence[int] | None = None
    ) -> list[Evaluation]:
        """Score each state, a map of trained tensors and buffers (`{}` is the model as it stands).

        Raises `PluginError` for the test split before the run's end, an unknown split, or a state of another shape.
        """
        if split not in ("val", "calibration", "test"):
            raise PluginError(f"evaluate was given split {split!r}; there are val, calibration and test")
        if split == "test" and self._kind != "run":
            raise PluginError(f"the test split is read at kind run, not at {self._kind}; evaluate on val")
        found = []
        for state in states:
            with weights(self._module, state):
                found.append(self._task.evaluate(self._module, split, items))
            if split == "test":
                self._note(found[-1])
        return found


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
