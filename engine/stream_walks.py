"""Walks through the first groups of a run's stream, each from the same start, with what each chunk scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from .build import build, settle_exactness
from .errors import UsageError
from .host import Registry
from .increments import Increments
from .keeper import Keeper
from .kernel import Kernel
from .position import Position
from .tasks import document_scoring
from .tasks.document_stream import DocumentStream
from .tasks.ledger import Ledger


@dataclass
class Pass:
    """What one walk through the first groups scored: losses of tokens by (document, chunk), and how slots moved."""

    losses: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    normalised: float = 0.0
    width: int = 0
    moved: float = 0.0  # the most that a slot moved after its document was done
    before_first: int = 0  # forward passes before the first score
    cold: bool = True  # every document had an A of its own
    once: bool = True  # and every chunk was entered once

    def apart(self, other: Pass, which: Sequence[tuple[int, int]]) -> float:
        """Return the largest difference of two walks over some chunks, 0 over none."""
        return max((float((self.losses[key] - other.losses[key]).abs().max()) for key in which), default=0.0)


class _Silent:
    """A log that keeps nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Resets:
    """The part of a keeper that resets adapters, and remembers how."""

    def __init__(self) -> None:
        self.increments, self.done = Increments(), []  # type: ignore[var-annotated]

    def reset(self, kernel: Any, kind: str, index: int, answer: Any, slots: Sequence[int]) -> Any:
        done = Keeper.reset(self, kernel, kind, index, answer, slots)  # type: ignore[arg-type]
        if kind == "document":
            self.done.append(done)
        return done

    def flagged(self, *_: Any) -> Exception:
        return UsageError("the stream's loss is not finite with these weights, so nothing can be verified")

    refused = flagged


class Stage:
    """A run built once, whose stream is walked again and again from the same start."""

    def __init__(self, order: Any, registry: Registry, groups: int) -> None:
        run = order.run
        settle_exactness(run.phases[0].train.determinism, order.threads)
        self.built, self.seed = build(run, order.folder, registry, order.sources), run.seed
        self.model: Any = self.built.module
        streams = [plan for plan in self.built.plans if isinstance(plan.task, DocumentStream) and plan.phase.adapts]
        if not streams:
            raise UsageError("no phase of this run streams documents with an adapter; see the task document_stream")
        self.plan = streams[0]
        self.task = cast(Any, self.plan.task)
        self.plan.task.begin(self.plan.phase)
        plan = self.task.plan
        self.groups = min(groups, plan.bounds[1])
        self.steps = int(plan.steps[: self.groups].sum())
        self.tokens = self.task.tokens.clone()
        self._weights = {name: value.clone() for name, value in self.built.module.state_dict().items()}
        self._memory = self.built.host.state()

    def kernel(self, tokens: Tensor | None = None) -> Kernel:
        """Return a kernel that stands before the first step, everything as the run begins with it."""
        built, plan, task = self.built, self.plan, self.task
        built.module.load_state_dict(self._weights)
        built.host.restore(self._memory)
        task.tokens = self.tokens if tokens is None else tokens
        task.ledger = Ledger(task.plan.rows, built.device)
        kernel = Kernel(
            plans=[plan], tasks=built.tasks, module=built.module, host=built.host, log=_Silent(), keeper=_Resets(),
            seed=self.seed, device=built.device, needs=built.needs, adapter=built.adapter,
        )  # fmt: skip
        kernel.position = Position(stage="train", phase=plan.phase.index)
        kernel._boundary("run", plan, -1)
        kernel.open(plan)
        if plan.fresh_adapter:
            kernel._boundary("phase", plan, 0)
        return kernel

    def step(self, kernel: Kernel) -> None:
        """Score the next chunks, and train on them, as the loop of a run does."""
        kernel._update(self.plan, self.steps + 1, 1)

    def walk(self, tokens: Tensor | None = None, frozen_from: int | None = None) -> Pass:
        """Score and train through the groups; from step `frozen_from` on nothing is updated."""
        kernel, found, task = self.kernel(tokens), Pass(), self.task
        with self._recording(found):
            for step in range(self.steps):
                if step == frozen_from:
                    kernel.update = lambda: None
                self._watched_step(kernel, step, found)
        found.cold = all(one is not None and one["a"] == "redraw" for one in kernel.keeper.done)
        entries = task.ledger.entries
        rows = [int(task.plan.row[document]) + chunk for document, chunk in found.losses]
        found.once = bool((entries[rows] == 1).all()) and int(entries.sum()) == len(rows)
        return found

    def _watched_step(self, kernel: Kernel, step: int, found: Pass) -> None:
        event, bank = self.task.plan.event(self.plan.phase.turn, step), self.model.bank
        rests = torch.ones(bank.slots, dtype=torch.bool)
        rests[torch.from_numpy(event.slots[event.trains])] = False
        before = [p.detach().clone() for p in bank.parameters()] if event.chunk and rests.any() else []
        self.step(kernel)
        for old, now in zip(before, bank.parameters(), strict=False):
            found.moved = max(found.moved, float((now.detach() - old)[:, rests.to(old.device)].abs().max()))

    @contextmanager
    def _recording(self, found: Pass) -> Iterator[None]:
        task, forward = self.task, self.task.forward

        def count(*_: Any) -> None:
            found.before_first += not found.losses

        def recorded(module: Any, batch: Any, needs: Any) -> Any:
            outputs = forward(module, batch, needs)
            logits = outputs.logits.detach().float()
            sums = torch.log_softmax(logits, -1).exp().sum(-1)
            found.normalised = max(found.normalised, float((sums - 1).abs().max()))
            found.width = logits.shape[-1]
            rows = batch.tensors["row"].tolist()
            sizes = batch.tensors["real"].sum(1).tolist()
            for row, size, losses in zip(rows, sizes, outputs.scores["losses"].cpu(), strict=True):
                document = int((task.plan.row <= row).nonzero()[0][-1])
                found.losses[document, row - int(task.plan.row[document])] = losses[:size].clone()
            return outputs

        handle = self.model.causal.base_model.register_forward_hook(count)
        task.forward = recorded
        try:
            yield
        finally:
            del task.forward
            handle.remove()

    def longest(self) -> tuple[int, int]:
        """Return the document of most chunks in the first group, and how many it has."""
        plan = self.task.plan
        document = int(plan.groups[0][plan.chunks[plan.groups[0]].argmax()])
        return document, int(plan.chunks[document])

    def early(self, document: int) -> int:
        """Return a chunk early enough that others of the group are still scored after an update on what follows it.

        Were the document changed later, no score would be left on which a bond between documents could show.
        """
        plan = self.task.plan
        own = int(plan.chunks[document])
        mates = [int(plan.chunks[other]) for other in plan.groups[0] if other != document]
        return max(0, min((own - 1) // 2, max(mates, default=own) - 3))

    def changed(self, document: int, chunk: int) -> Tensor:
        """Return the tokens with all of a document's replaced that come after a chunk."""
        start, plan = int(self.task.documents.starts[document]), self.task.plan
        first = start + min((chunk + 1) * plan.chunk, int(plan.targets[document])) + 1
        last = start + int(self.task.documents.lengths[document])
        tokens: Tensor = self.tokens.clone()
        known = torch.unique(tokens)
        tokens[first:last] = known[(torch.searchsorted(known, tokens[first:last]) + 1) % len(known)]
        return tokens

    def first_chunks_differ(self) -> float:
        """Return the most by which first chunks, right after a reset, differ from those of the model without a bank."""
        worst, at = 0.0, 0
        for group in range(self.groups):
            batch = self.task.batch(0, at)
            slots, index = batch.starts, batch.group
            self._reset(index, slots)
            with torch.no_grad():
                with_bank, without = (
                    document_scoring.forward(self.model, batch, {}, on).scores["losses"] for on in (True, False)
                )
            worst = max(worst, float((with_bank - without).abs().max()))
            at += int(self.task.plan.steps[group])
        return worst

    def _reset(self, index: int, slots: Sequence[int], position: Position | None = None) -> None:
        """Reset slots as a run does where no plugin answers."""
        kernel = SimpleNamespace(
            seed=self.seed, device=self.built.device, position=position or Position(), adapter=self.built.adapter,
            active=self.built.adapter, optimizer=object(),
        )  # fmt: skip
        _Resets().reset(kernel, "document", index, None, slots)

    def draws_differ(self) -> float:
        """Return the most by which a slot's cold draw depends on which other slots are drawn with it, or in between."""
        bank = self.model.bank
        slots = range(bank.slots)
        self._reset(5, slots, Position(micro=9))
        whole = [p.detach().clone() for p in bank.lora_A.values()]
        self._reset(6, slots)
        for slot in reversed(slots):
            self._reset(5, [slot], Position(micro=77, step=3))
        return max(float((p.detach() - old).abs().max()) for p, old in zip(bank.lora_A.values(), whole, strict=True))

    def labels_matter(self) -> float:
        """Return the most by which logits move when the targets that the scorer is given are others."""
        batch = self.task.batch(0, 0)
        other = {**batch.tensors, "labels": (batch.tensors["labels"] + 1) % self.model.vocab}
        moved = type(batch)(batch.ids, batch.count, other)
        with torch.no_grad():
            pair = [document_scoring.forward(self.model, one, {}).logits for one in (batch, moved)]
        assert pair[0] is not None and pair[1] is not None
        return float((pair[0] - pair[1]).abs().max())
