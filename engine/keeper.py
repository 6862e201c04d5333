"""What a run keeps: checkpoints when due, snapshots by name, and the answers to requests from outside.

The kernel calls `rest` between two updates; checkpoints, requests and signals are looked at there and nowhere else.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import resume, scores
from .checkpoint import CheckpointStore, load_tensors, save_tensors
from .compositions import StandIn
from .diagnose import culprit
from .errors import GuardError, Interrupted, PluginError
from .hooks import Reset
from .increments import Increments
from .merging import complete, sharing
from .probe import Evaluator, Probe, weights
from .rundir import Heartbeat, RunDir, make_folder, pending, write_json
from .seeding import mix, stream
from .storage import staged_folder
from .text import slug_problem

RESERVED = ("selected", "last")


class Keeper:
    """Checkpoints, snapshots and requests of one run."""

    def __init__(
        self,
        run: RunDir,
        store: CheckpointStore,
        heartbeat: Heartbeat,
        *,
        checkpoint: Any,
        select: Any,
        updates: int,
        stop: threading.Event,
        after_update: Callable[[int], None] | None = None,
        look_every: float = 0.2,
    ) -> None:
        self._run, self._store, self.heartbeat, self._stop = run, store, heartbeat, stop
        self._every, self._select, self._updates = checkpoint, select, updates
        self._after_update = after_update
        self._look_every, self._looked = look_every, -math.inf
        self.best: float | None = None
        self.reuse: Any = None  # the cache of phases, where it is used
        self._chosen: float | None = None  # the best of the phase that just ended
        self._probes: dict[str, Probe] = {}
        self._stand: StandIn | None = None
        self.increments = Increments()
        self.merged: set[str] = set()  # frozen weights that an adapter was folded into, by name
        self._halt = False  # asked to stop this run alone; the event stops all runs of a study
        self._next_time = self._in_minutes()
        self._beat = (time.monotonic(), 0)
        self._val: dict[str, float] | None = None

    def _in_minutes(self) -> float:
        minutes = self._every.every_minutes
        return time.monotonic() + minutes * 60 if minutes else float("inf")

    # ------------------------------------------------------------------------------------------- between updates
    def due(self, step: int) -> bool:
        """Say, cheaply, whether the kernel should come to rest after this update."""
        if self._after_update is not None:
            self._after_update(step)
        every = self._every.every_steps
        return bool(self._log.due() or self._stop.is_set() or (every and step % every == 0) or self._late())

    def _late(self) -> bool:
        return self._next_time < float("inf") and time.monotonic() >= self._next_time

    def attach(self, log: Any) -> None:
        self._log = log

    def drop_old_requests(self, step: int) -> None:
        """Drop what was asked of an earlier process: an old `stop` ends no resumed run."""
        for request in pending(self._run.path):
            text = f"request {request.what} of {request.who} came before this start and was dropped"
            self._log.event("warning", step, owner="engine", text=text)

    def rest(self, kernel: Any, moment: str) -> None:
        """Flush, read the guard, report, obey, checkpoint if due; raises `GuardError` or `Interrupted`."""
        flagged = kernel.log.flush()
        if flagged is not None:
            raise self._late_guard(kernel, flagged)
        kernel.recent.clear()
        due, asked = self._due(kernel, moment), None
        if moment != "step" or time.monotonic() - self._looked >= self._look_every:
            self._looked = (
                time.monotonic()
            )  # a fast run flushes a hundred times a second; a folder is not listed so often
            self._report(kernel, moment)
            asked = self._requests(kernel)
        if due or asked:
            path, record = self.commit(kernel, asked or moment)
            if moment == "phase" and self.reuse is not None:
                self.reuse.publish(kernel, path, record, self._chosen)
        if self._stop.is_set() or self._halt:
            if not (due or asked):
                self.commit(kernel, "stop")
            raise Interrupted(f"stopped between two updates; checkpoint committed at step {kernel.position.step}")

    def _due(self, kernel: Any, moment: str) -> bool:
        at, every = kernel.position, self._every
        if moment == "step":
            return bool((every.every_steps and at.step % every.every_steps == 0) or self._late())
        if moment == "epoch":
            return bool(every.every_epochs and at.epoch % every.every_epochs == 0)
        return moment == "phase"

    def commit(self, kernel: Any, reason: str) -> tuple[Path, Mapping[str, Any]]:
        """Write a checkpoint and return its folder and record; series are on disk first, their lengths part of it."""
        kernel.log.flush(sync=True)
        kernel.log.event("checkpoint", kernel.position.step, reason=reason)
        kernel.log.events.sync()
        tree = resume.capture(kernel, self)
        path = self._store.save(kernel.position.step, tree.tensors, tree.record)
        self._next_time = self._in_minutes()
        self.heartbeat.update(checkpoint=path.name)
        return path, tree.record

    def idle(self, kernel: Any, doing: str) -> None:
        """Wait a moment for another run, and obey meanwhile; raises `Interrupted`."""
        self.heartbeat.update(doing=doing)
        self._requests(kernel)
        if self._halt or self._stop.wait(0.2):
            raise Interrupted(f"stopped while {doing}; this run had trained nothing yet")

    def _requests(self, kernel: Any) -> str | None:
        commit = None
        for request in pending(self._run.path):
            kernel.log.event("control", kernel.position.step, request=request.what, who=request.who)
            if request.what == "checkpoint":
                commit = "request"
            elif request.what == "stop":
                self._halt = True
            elif request.what == "pause":
                self._wait(kernel)
        return commit

    def _wait(self, kernel: Any) -> None:
        self.heartbeat.change("paused")
        while not (self._stop.is_set() or self._halt):
            for request in pending(self._run.path):
                kernel.log.event("control", kernel.position.step, request=request.what, who=request.who)
                if request.what == "stop":
                    self._halt = True
                elif request.what == "checkpoint":
                    self.commit(kernel, "request")
                elif request.what == "resume":
                    self.heartbeat.change("live")
                    return
            self._stop.wait(0.2)

    def _report(self, kernel: Any, moment: str) -> None:
        at, (then, before) = kernel.position, self._beat
        now = time.monotonic()
        plan = kernel.plans[min(at.phase, len(kernel.plans) - 1)]
        if at.step > before and now - then > 0.2:
            speed = (at.step - before) / (now - then)
            left = max(self._updates - at.step, 0)
            self._beat = (now, at.step)
            self.heartbeat.update(steps_per_second=speed, eta_seconds=left / speed)
        done = plan.train.epochs if at.stage == "run" else at.epoch
        total = at.step if at.stage == "run" else max(self._updates, at.step)
        doing = {"evaluate": "evaluating", "run": "closing"}.get(at.stage, "training")
        val = kernel.evaluations.get("val")
        if val is not None and moment != "step":
            self._val = {name: val.mean(name) for name in ("loss", *val.metrics)}
        self.heartbeat.update(
            doing=doing, phase=plan.phase.name, phase_index=plan.phase.index, epoch=done, epochs=plan.train.epochs,
            batch=at.micro, step=at.step, total=total, val=self._val, **kernel.log.last,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------- the guard
    def flagged(self, kernel: Any, plan: Any, micros: Any, first: int, rates: Any) -> GuardError:
        """Name the culprit of the step that was just flagged, and note the batch's items; nothing has moved."""
        text, ids = culprit(kernel, plan, micros, first, rates)
        return self._stopped(kernel, plan, first, text, ids, _shown(rates))

    def refused(self, kernel: Any, plan: Any, micros: Any, first: int, error: GuardError) -> GuardError:
        """Say where a rate was refused that is no number on the host, and note the batch's items."""
        ids = [item for batch in micros for item in batch.ids]
        return self._stopped(kernel, plan, first, str(error), ids, None)

    def _stopped(self, kernel: Any, plan: Any, first: int, text: str, ids: Any, rates: Any) -> GuardError:
        step = kernel.position.step
        kernel.log.flush(flagged=step)
        self._restore_buffers(kernel)
        where = {"phase": plan.phase.name, "epoch": kernel.position.epoch, "micro": first, "step": step}
        folder = self._run.folder("nan")
        make_folder(folder)
        note = folder / f"{step}.json"
        write_json(note, {**where, "culprit": text, "items": list(ids), "rates": rates})
        message = f"step {step} (phase {plan.phase.name}, epoch {where['epoch']}): not finite: {text}"
        return GuardError(
            f"{message}; nothing was updated; the batch's items are in nan/{note.name}", culprit=text, step=step
        )

    def _late_guard(self, kernel: Any, step: int) -> GuardError:
        """Find the flagged step's batch again, on a device whose flag is read at the flush only."""
        at = kernel.position
        plan = kernel.plans[at.phase]
        first, many, rates = kernel.recent[step]
        micros = [plan.task.batch(at.epoch, first + i) for i in range(many)]
        at.step = step
        return self.flagged(kernel, plan, micros, first, rates)

    def _restore_buffers(self, kernel: Any) -> None:
        loaded = self._store.newest()
        if loaded is not None:
            buffers = dict(kernel.module.named_buffers())
            for name, value in resume.module_tensors(loaded.tensors).items():
                if name in buffers:
                    buffers[name].copy_(value)

    # ------------------------------------------------------------------------------------------- moments of rest
    def instruments(self, kernel: Any, plan: Any, kind: str) -> tuple[Evaluator, Probe]:
        """Return what `on_epoch_end` may look through."""
        for name, task in kernel.tasks.items() if not self._probes else ():
            self._probes[name] = Probe(task, kernel.module, by_task=self._probes)
        here = next(name for name, task in kernel.tasks.items() if task is plan.task)
        step = kernel.position.step

        def note(evaluation: Any) -> None:
            self._evaluated(kernel, "test", "given", evaluation, by="plugin", step=step)

        if self._stand is None:
            self._stand = StandIn(kernel.module, kernel.adapter)
        evaluators: dict[str, Evaluator] = {}
        for name, task in kernel.tasks.items():
            evaluators[name] = Evaluator(task, kernel.module, kind, note, self._stand, evaluators)
        return evaluators[here], self._probes[here]

    @contextmanager
    def untouched(self, kernel: Any) -> Iterator[None]:
        """Keep gradients, buffers and modes as they were, whatever a hook does with the model."""
        parameters = [(p, p.grad, p.requires_grad) for p in kernel.module.parameters()]
        buffers = [(buffer, buffer.clone()) for buffer in kernel.module.buffers()]
        modes = [(part, part.training) for part in kernel.module.modules()]
        enabled = torch.is_grad_enabled()
        for p, _, _ in parameters:
            p.grad = None
        try:
            yield
        finally:
            torch.set_grad_enabled(enabled)
            for p, grad, trained in parameters:
                p.requires_grad_(trained)
                p.grad = grad
            for buffer, value in buffers:
                buffer.copy_(value)
            for part, training in modes:
                part.training = training

    def reset(self, kernel: Any, kind: str, index: int, answer: Any, slots: Sequence[int]) -> Any:
        """Reset the adapter as its owner says, or as the boundary's kind does when nobody answers."""
        adapter = kernel.active
        if adapter is None:
            if answer is not None:
                text = f"plugin {answer[0]} answered adapter_reset at boundary {kind}, but no adapter is trained there"
                raise PluginError(text, plugin=answer[0], hook="adapter_reset", step=kernel.position.step)
            return None
        if answer is None and (kind not in ("phase", "document")):
            return None  # at `run` the adapter is as its initialisation drew it: zero, redrawn, without moments
        owner, reset = answer or ("engine", Reset())
        if reset.merge:
            self._before_merge(kernel, kind, adapter)
        at = kernel.position
        # a document's draw depends on its group alone, not on how long those before it were
        where = (index,) if kind == "document" else (at.phase, at.epoch, at.micro)
        key = mix(stream(kernel.seed, f"adapter.{kind}" if kind == "document" else "adapter"), *where)
        generator = torch.Generator(device=kernel.device).manual_seed(key)
        done = adapter.reset(reset, generator, kernel.optimizer, slots)
        return {"owner": owner, "index": index, **done}

    def _before_merge(self, kernel: Any, kind: str, adapter: Any) -> None:
        """Let checkpoints and snapshots hold what is about to move, and the selected one what it was trained beside."""
        bases = sharing(kernel.module, [factor.base for factor in adapter.factors])
        if self.best is not None and not bases <= self.merged:
            complete(self._run.folder("snapshots") / "selected", kernel.module, bases)
        self.increments.merged(kind)
        kernel.snapshots.clear()  # they stood beside another base
        self.merged |= bases
        kernel.moved |= bases

    def save(self, kernel: Any, kind: str, plan: Any, saves: Mapping[str, str]) -> None:
        """Write the snapshots that plugins ask for, and keep `selected` by the study's own metric."""
        for slug, owner in saves.items():
            problem = slug_problem(slug) or ("is written by ctr itself" if slug in RESERVED else None)
            if problem:
                raise PluginError(
                    f"plugin {owner} saves a snapshot whose name {problem}", plugin=owner, hook="on_epoch_end"
                )
            self._snapshot(kernel, slug, owner)
        if kind == "phase":
            self._chosen = self.best
            self._keep_adapter(kernel)
            self.increments.end_phase(kernel, plan.phase.name)
            self.best = None if kernel.position.phase + 1 < len(kernel.plans) else self.best
        elif kind == "epoch":
            split, _, name = self._select.on.partition(".")
            evaluation = kernel.evaluations.get(split) or plan.task.evaluate(kernel.module, split)
            value = evaluation.mean(name) * (1 if self._select.better == "higher" else -1)
            if math.isnan(value):
                text = f"{self._select.on} is not a number after epoch {kernel.position.epoch}; it selects nothing"
                about = {"phase": plan.phase.name, "selects": self._select.on}
                kernel.log.event("warning", kernel.position.step, owner="engine", text=text, **about)
            if self.best is None or value > self.best or (math.isnan(self.best) and not math.isnan(value)):
                self.best = value
                self._snapshot(kernel, "selected", "engine")

    def _keep_adapter(self, kernel: Any) -> None:
        """Write the adapter as it stands at the end of a phase, in a folder that others can load."""
        if kernel.active is None or kernel.active.save is None:
            return
        phase = kernel.plans[kernel.position.phase].phase.name
        folder = self._run.folder("adapters") / phase
        with staged_folder(folder) as stage:
            about = {"phase": phase, "run": self._run.path.name, "step": kernel.position.step}
            kernel.active.save(stage, about | ({"merged": True} if self.merged else {}))

    def _snapshot(self, kernel: Any, slug: str, owner: str) -> str:
        digest = save_tensors(self._run.folder("snapshots") / slug, resume.trained(kernel.module, self.merged))
        kernel.log.event("snapshot", kernel.position.step, slug=slug, by=owner, path=f"snapshots/{slug}", digest=digest)
        return digest

    def finish(self, kernel: Any) -> None:
        """Read the test split once: on the selected weights, then on the last."""
        task = kernel.plans[-1].task
        self.heartbeat.update(doing="testing")
        self._snapshot(kernel, "last", "engine")
        selected = load_tensors(self._run.folder("snapshots") / "selected")
        for label, state in (("selected", selected), ("last", {})):
            with weights(kernel.module, state):
                for split in ("val", "test"):
                    found = task.evaluate(kernel.module, split)
                    self._evaluated(kernel, split, label, found)
                    what = getattr(task, "items_are", None)
                    if what is not None and (label, split) == ("selected", "test"):
                        scores.keep(self._run.path, label, what, found)

    def _evaluated(
        self, kernel: Any, split: str, label: str, evaluation: Any, by: str = "engine", step: int | None = None
    ) -> None:
        at = kernel.position.step if step is None else step
        kernel.log.event("evaluation", at, split=split, weights=label, values=evaluation.summary(), by=by)

    def matrix(self, kernel: Any) -> None:
        write_json(self._run.path / "matrix.json", kernel.matrix.document())


def _shown(rates: Any) -> dict[str, Any]:
    def number(value: Any) -> Any:
        return float(value) if isinstance(value, Tensor | int | float) else {k: float(v) for k, v in value.items()}

    advice = {name: {"scale": number(a.scale), "ceiling": number(a.ceiling), "why": a.why} for name, a in rates.advice}
    return {"lr": {group: float(rate) for group, rate in rates.lr.items()}, "advice": advice}
