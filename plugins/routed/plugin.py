"""Routed composition at its one moment: after the last phase, without training anything again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ctr.engine.errors import PluginError
from ctr.engine.hooks import hookimpl
from ctr.engine.task import Metric

from .settings import RoutedConfig

if TYPE_CHECKING:
    from torch import Generator

    from ctr.engine.events import Epoch

    from .methods import Result


class Routed:
    """Composes the adapters of a run's phases by routes, chooses some, and tells what they do to every task."""

    Config = RoutedConfig
    closing = True
    metrics: Mapping[str, Metric] = {
        "gain": Metric(better="higher"),
        "objective": Metric(better="higher"),
        "kept": Metric(better="higher"),
        "oracle_gap": Metric(better="lower"),
        "accuracy": Metric(better="higher"),
    }

    @staticmethod
    def misfit(config: RoutedConfig, run: Any, adapter: Any) -> str | None:
        """Say why these settings cannot act in a run; None when they can."""
        from .methods import misfits
        from .objective import place, weights
        from .route import Layout

        if not config.methods:
            return None
        if adapter is None or not adapter.one:
            return "composes the adapters of phases, and this run has no adapter: {kind: lora} that phases could train"
        phases = [phase for phase in run.phases if phase.trains == "adapter"]
        if len(phases) < 2:
            return f"composes the adapters of several phases, and {len(phases)} of this run's trains one"
        after = run.phases[[phase.name for phase in run.phases].index(phases[0].name) :]
        if full := [phase.name for phase in after if phase.trains != "adapter"]:
            return f"phase {full[0]} trains all weights after {phases[0].name} adapted to them; put it before"
        if after[-1].plugins == "none" and all(phase.plugins == "none" for phase in run.phases):
            return "no phase of this run asks plugins"
        trained = {phase.name: phase.task for phase in phases}
        tasks = list(reversed(dict.fromkeys(reversed(trained.values()))))
        if len(tasks) < 2:
            return f"holds what tasks gain and lose against each other, and all phases here train {tasks[0]}"
        try:
            if weights(config.objective, tasks) is None:
                place(config.objective, tasks, phases[-1].name)
        except ValueError as error:
            return str(error)
        if config.split != "val" and (lacking := _without(config.split, run, tasks)):
            return f"split: task {lacking} has no {config.split}; set data.{config.split}_fraction there, or split: val"
        chained = all(phase.adapter == "continued" for phase in phases[1:])
        return misfits(config, list(trained), Layout.of(factor.name for factor in adapter.factors), chained)

    def __init__(self, config: RoutedConfig, generator: Generator | None) -> None:
        self.config = config

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> None:
        if not self.config.methods:
            return
        from .methods import Comparison, record
        from .scoring import Scorer
        from .snapshots import Snapshots

        matrix = epoch.matrix
        if matrix is None or len(epoch.snapshots) < 2:
            held = ", ".join(epoch.snapshots) or "none"
            text = "an adapter was folded into the base on the way, so what earlier phases trained stands alone no more"
            raise PluginError(f"{text}; phases whose adapters are left: {held}")
        trained = {phase: matrix.trained(phase) or "" for phase in epoch.snapshots}
        scorer = Scorer(
            epoch.evaluate.by_task, Snapshots.of(epoch.snapshots, epoch.factors), trained, self.config.split
        )
        compared = Comparison(self.config, scorer)
        results = [compared.sequential(), *(compared.run(name, one) for name, one in self.config.methods.items())]
        rows = {label: dict(row) for label, row in compared.report.matrix.rows.items()}
        counts = {task: {half: len(items) for half, items in both.items()} for task, both in scorer.halves.items()}
        epoch.log.record(
            "routes",
            tasks=scorer.tasks,
            phases=list(trained),
            objective=self.config.objective,
            split=self.config.split,
            items=counts,
            rows=rows,
            alone=compared.alone() if self.config.alone else {},
        )
        for result in results:
            epoch.log.record("route", **record(result, scorer.snapshots.layout))
        self._numbers(epoch, results)

    def _numbers(self, epoch: Epoch, results: list[Result]) -> None:
        """Log what criteria and contrasts may name: `gain.<method>.<task>`, `objective.<method>`, `kept.<method>`."""
        known = (result.objective for result in results if result.objective == result.objective)
        best = max(known, default=float("nan"))
        for result in results[1:]:
            for task, gain in result.gains.items():
                epoch.log(f"gain.{result.method}.{task}", gain)
            if result.kind == "contextual":
                epoch.log(f"oracle_gap.{result.method}", result.more["oracle_gap"])
                for task, share in result.more["accuracy"].items():
                    epoch.log(f"accuracy.{result.method}.{task}", share)
                continue
            epoch.log(f"objective.{result.method}", result.objective)
            epoch.log(f"oracle_gap.{result.method}", best - result.objective)
            if result.kept is not None:
                epoch.log(f"kept.{result.method}", result.kept)


def _without(split: str, run: Any, tasks: Iterable[str]) -> str | None:
    """Name a task whose settings give it no such split."""
    from ctr.engine.host import discover

    for name in tasks:
        entry = run.tasks[name]
        splits = getattr(discover().tasks.get(entry.kind), "splits", None)
        if splits is not None and split not in splits(entry.config):
            return name
    return None
