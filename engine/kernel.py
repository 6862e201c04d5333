"""The loop: phases, epochs, batches, and the four moments at which plugins speak.

The kernel knows no plugin, no file and no format. What it needs of the world it is given: a log, a keeper (checkpoints,
snapshots, requests), an adapter, and one plan for each phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .combine import Rates, resolve_epoch, resolve_lr, resolve_reset, resolve_terms, same
from .errors import GuardError
from .events import Boundary, Epoch, Forward, Step
from .hooks import Silence
from .optim import bare_step, direction
from .position import Position
from .seeding import mix, stream
from .task import Batch, Evaluation, Needs, Phase, Task

KINDS = ("start", "epoch", "phase", "run")


@dataclass
class Plan:
    """One phase made ready: its task, its settings, and how its optimizer and base rates come about."""

    phase: Phase
    task: Task
    train: Any
    fresh_adapter: bool
    open: Callable[[Any], tuple[Any, Any]]  # optimizer of the phase before, or None -> optimizer, base rates
    silent: bool = False


@dataclass
class Kernel:
    """One run. `position` and the fields under "memory" are all that a checkpoint needs beside weights and moments."""

    plans: Sequence[Plan]
    tasks: Mapping[str, Task]
    module: torch.nn.Module
    host: Any
    log: Any
    keeper: Any
    seed: int
    device: torch.device
    needs: Needs = field(default_factory=dict)
    adapter: Any = None
    # memory
    position: Position = field(default_factory=Position)
    asked_accum: int | None = None
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    remembered: dict[str, Tensor] = field(default_factory=dict)
    snapshots: dict[str, dict[str, dict[str, Tensor]]] = field(default_factory=dict)  # of the adapter, by phase
    moved: set[str] = field(default_factory=set)  # what any phase so far has trained, by name
    matrix: Any = None
    optimizer: Any = field(default=None, init=False)
    rates: Any = field(default=None, init=False)
    used: Rates | None = field(default=None, init=False)  # of the step before, as the optimizer holds them

    def __post_init__(self) -> None:
        self.flag, self._one = torch.zeros((), device=self.device), torch.ones((), device=self.device)
        self.hooks: Any = Silence if self.plans[0].silent else self.host
        kind, index = self.device.type, self.device.index or 0
        self._generator = torch.cuda.default_generators[index] if kind == "cuda" else torch.default_generator
        self._read_flag, self.active = kind == "cpu", self.adapter
        self.recent: dict[int, tuple[int, int, Any]] = {}  # steps whose flag has not been read yet

    def run(self) -> None:
        """Train from `position` to the end."""
        at = self.position
        if at.stage == "start":
            self._start()
        while at.phase < len(self.plans) and at.stage != "run":
            self._run_phase(self.plans[at.phase])
        if at.stage == "run":
            self.keeper.finish(self)
            self.hooks = self.host
            self._ask("run", self.plans[-1], None)
            at.stage = "done"

    def open(self, plan: Plan) -> None:
        """Make a phase's data, optimizer and base rates ready; also on the way back into an interrupted phase."""
        plan.task.begin(plan.phase)
        self.optimizer, self.rates = plan.open(self.optimizer)
        self.used, self.update = None, bare_step(self.optimizer)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.clip = getattr(self.optimizer, "clip", None) or partial(clip_grad_norm_, self.parameters, foreach=True)
        self.moved |= {name for name, p in self.module.named_parameters() if p.requires_grad}
        self.hooks = Silence if plan.silent else self.host
        self.active = self.adapter if plan.phase.adapts else None
        self.cast = torch.autocast(self.device.type, torch.bfloat16) if plan.phase.bf16 else nullcontext()
        self._key = stream(self.seed if plan.phase.seed is None else plan.phase.seed, "forward")
        if not self._read_flag:
            self.optimizer.found_inf, self.optimizer.grad_scale = self.flag, None

    def _start(self) -> None:
        self._boundary("run", self.plans[0], -1)
        self.evaluations = {"val": self.plans[0].task.evaluate(self.module, "val")}
        self._matrix_row("start", self.plans[0])
        self._ask("start", None, None)
        self.position.stage = "phase"

    def _run_phase(self, plan: Plan) -> None:
        at = self.position
        if self.optimizer is None or at.stage == "phase":
            self.open(plan)
        if at.stage == "phase":
            if plan.fresh_adapter:
                self._boundary("phase", plan, at.epoch)
            self.remembered = self.active.snapshot() if self.active else {}
            if at.phase and not plan.silent and all(before.silent for before in self.plans[: at.phase]):
                self.evaluations = {"val": plan.task.evaluate(self.module, "val")}
                self._ask("start", None, None)
            at.stage = "train"
        while at.epoch < plan.train.epochs:
            if at.stage == "train":
                self._train_epoch(plan)
                at.stage = "evaluate"
                self.keeper.rest(self, "evaluate")
            self._end_epoch(plan)
        self._end_phase(plan)

    def _end_epoch(self, plan: Plan) -> None:
        at = self.position
        self.evaluations = {"val": plan.task.evaluate(self.module, "val")}
        stop = self._ask("epoch", plan, self.log.sums())["stop"]
        self.log.begin_epoch()
        at.stage, at.epoch, at.micro = "train", plan.train.epochs if stop else at.epoch + 1, 0
        self.keeper.rest(self, "epoch")

    def _end_phase(self, plan: Plan) -> None:
        at = self.position
        if self.active:
            self.snapshots[plan.phase.name] = {"start": self.remembered, "end": self.active.snapshot()}
        self._matrix_row(plan.phase.name, plan)
        self._ask("phase", plan, None)
        self.asked_accum = None
        at.phase, at.epoch, at.micro = at.phase + 1, 0, 0
        at.stage = "phase" if at.phase < len(self.plans) else "run"
        self.keeper.rest(self, "phase")

    def _train_epoch(self, plan: Plan) -> None:
        at = self.position
        batches = plan.task.batches(at.epoch)
        if at.micro == 0 and at.epoch > 0 and "epoch" in plan.train.reset_at:
            self._boundary("epoch", plan, at.epoch)
        every = {mark.steps for mark in plan.train.reset_at if mark != "epoch"}
        accum = self.asked_accum or plan.train.grad_accum
        while at.micro < batches:
            if at.step > at.bounded and any(at.step % n == 0 for n in every):
                at.bounded = at.step
                self._boundary("steps", plan, at.epoch)
            self._update(plan, batches, accum)
            if self.keeper.due(at.step):
                self.keeper.rest(self, "step")

    def _update(self, plan: Plan, batches: int, accum: int) -> None:
        at, hooks, optimizer = self.position, self.hooks, self.optimizer
        first = at.micro
        micros = [plan.task.batch(at.epoch, first)]
        while len(micros) < accum and first + len(micros) < batches:
            batch = plan.task.batch(at.epoch, first + len(micros))
            if batch.starts or micros[0].alone:  # a batch never crosses a boundary
                break
            micros.append(batch)
        count = sum(batch.count for batch in micros)
        if micros[0].starts:
            self._boundary("document", plan, at.epoch, micros[0].starts, micros[0].group)
        # ---------------------------------------------------------------------------------- forward, backward
        for p in self.parameters:
            p.grad = None
        totals = [self.backward(plan, batch, first + i, count) for i, batch in enumerate(micros)]
        at.micro = first + len(micros)
        if not count:  # scored, not trained: no update, no step
            return
        # ---------------------------------------------------------------------------------- clip, rate, guard
        grads, norm = [p.grad for p in self.parameters if p.grad is not None], None
        if plan.train.clip_norm is not None:
            norm = self.clip(max_norm=plan.train.clip_norm)
            totals.append(norm)  # finite gradients whose norm overflows would be clipped to zero in silence
        base = self.rates.at(at.epoch, first)
        advice: Any = ()
        if hooks.schedule_lr is not None:
            done = at.epoch + first / batches
            advice = hooks.schedule_lr(step=self.moment(Step, plan, done, base, *self._asides(grads, norm)))
        used = self.used
        try:
            rates = used if used is not None and same(used, base, advice) else resolve_lr(base, advice)
        except GuardError as error:
            raise self.keeper.refused(self, plan, micros, first, error) from error
        if advice and rates is not used:
            totals += [rate.float().sqrt() for rate in rates.lr.values() if isinstance(rate, Tensor)]  # NaN if negative
        torch._amp_foreach_non_finite_check_and_unscale_([*grads, *totals], self.flag, self._one)
        if self._read_flag and self.flag.item():
            raise self.keeper.flagged(self, plan, micros, first, rates)
        if not self._read_flag:
            self.recent[at.step] = (first, len(micros), rates)
        # ---------------------------------------------------------------------------------- update
        if rates is not used:
            self.used = rates
            for group in optimizer.param_groups:
                group["lr"] = rates.lr[group["name"]]
        self.update()
        self.log.step(at.step, at.phase, at.epoch, first, batches, rates, norm)
        at.step += 1

    def backward(self, plan: Plan, batch: Batch, index: int, count: int) -> Tensor:
        """Run one micro-batch and add its gradient, weighted by its share of the batch's `count` items."""
        at = self.position
        self.reseed(at.phase, at.epoch, index)
        if not batch.count:
            with torch.no_grad(), self.cast:
                loss = plan.task.forward(self.module, batch, self.needs).loss
            self.log.micro(loss, None, 0)
            return loss
        with self.cast:
            outputs = plan.task.forward(self.module, batch, {} if plan.silent else self.needs)
            loss = total = outputs.loss
            if self.hooks.extra_loss is not None:
                terms = self.hooks.extra_loss(forward=self.moment(Forward, plan, outputs, batch))
                total = resolve_terms(loss, terms)
                self.log.terms(at.step, terms, batch.count / count)
        share = batch.count / count
        whole = total if share == 1 else total * share
        torch.autograd.backward(whole, self._one if whole.dtype == torch.float32 else None)
        seen = total.detach()
        self.log.micro(*((seen, None) if total is loss else (loss.detach(), seen)), batch.count)
        return seen

    def reseed(self, phase: int, epoch: int, micro: int) -> None:
        """Seed the device's default generator and each plugin's own by position, so that no state need be saved."""
        self._generator.manual_seed(mix(self._key, phase, epoch, micro))
        if self.hooks.plugins:
            self.hooks.reseed(phase, epoch, micro)

    def moment(self, kind: Any, plan: Plan | None, *more: Any) -> Any:
        """Make the event of a moment: where the run stands, then what the moment itself holds."""
        at = self.position
        return kind(plan.phase.name if plan else None, at.phase, at.epoch, at.step, self.log, *more)

    def _asides(self, grads: list[Tensor], norm: Tensor | None) -> tuple[Callable[[], Any], Callable[[], Any], Any]:
        """Return what a step offers to whoever asks: the norm before clipping, the direction, the adapter."""
        norm_of = lambda: torch.nn.utils.get_total_norm(grads) if norm is None else norm  # noqa: E731
        return norm_of, partial(direction, self.optimizer), self.active

    def _boundary(self, kind: str, plan: Plan, epoch: int, slots: Sequence[int] = (), group: int = 0) -> None:
        at, answer = self.position, None
        index = {"phase": at.phase, "document": group}.get(kind, max(epoch, 0))
        if self.hooks.adapter_reset is not None:
            self.hooks.reseed(at.phase, max(epoch, 0), at.micro, 1)
            event = self.moment(Boundary, plan, kind, index, slots, self.active)
            answer = resolve_reset(self.hooks.adapter_reset(boundary=event))
        done = self.keeper.reset(self, kind, index, answer, slots)
        self.log.event(
            "boundary", at.step, kind=kind, phase=plan.phase.name, phase_index=at.phase, epoch=epoch, reset=done
        )

    def _ask(self, kind: str, plan: Plan | None, train: Any) -> dict[str, Any]:
        at = self.position
        shown = plan or self.plans[at.phase]
        spec_accum = shown.train.grad_accum
        now = self.asked_accum or spec_accum
        self.log.evaluations(at.step, self.evaluations if kind in ("start", "epoch") else {})
        answers: Any = ()
        if self.hooks.on_epoch_end is not None:
            self.hooks.reseed(at.phase, at.epoch, KINDS.index(kind), 2)
            evaluate, probe = self.keeper.instruments(self, shown, kind)
            base = self.log.mean_base_lr() if kind == "epoch" else None
            event = self.moment(
                Epoch, plan, kind, shown.train.epochs, train, self.evaluations, base, now, spec_accum,
                self.snapshots, self.matrix, evaluate, probe, self.active,
            )  # fmt: skip
            with self.keeper.untouched(self):
                answers = self.hooks.on_epoch_end(epoch=event)
        advice = resolve_epoch(answers)
        if kind in ("start", "epoch"):
            self.asked_accum = advice["grad_accum"]
        advice["why"] = {name: answer.why for name, answer in answers if answer.why}
        advice["stop"] = advice["stop"] if kind == "epoch" else []
        self.log.epoch(self, kind, plan, train, now, advice)
        self.keeper.save(self, kind, plan, advice["save"])
        return advice

    def _matrix_row(self, label: str, plan: Plan) -> None:
        if self.matrix is not None:
            here = self.evaluations.get("val")
            for name in self.matrix.tasks:
                task = self.tasks[name]
                known = here if task is plan.task and here is not None else task.evaluate(self.module, "val")
                self.matrix.put(label, name, known.mean("loss"))
            self.keeper.matrix(self)
