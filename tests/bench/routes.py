"""Routes through the adapters of a trained run: a grid and searches, against the straightforward way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import torch

from ctr.engine.compositions import StandIn
from ctr.engine.execute import execute
from ctr.engine.host import discover
from ctr.engine.verify import order_of
from ctr.plugins.routed.finished import FinishedRun, open_run
from ctr.plugins.routed.objective import Objective
from ctr.plugins.routed.route import GroupKind, Route, Term, parse
from ctr.plugins.routed.scoring import Half, Scorer
from ctr.plugins.routed.search import ascend, coordinates, descend, grid
from ctr.plugins.routed.settings import Gradient, RoutedConfig
from ctr.plugins.routed.snapshots import Space

from .bench import Bench
from .clock import Times, block, interleave, quiet, ratio
from .table import Row, Section

SPEC = """\
study: bench
question: What does it cost to try a route?
seeds: [1]
model: {kind: tiny, width: WIDTH, layers: LAYERS, heads: 4, kv_heads: 2, init_seed: 0}
adapter: {kind: lora, rank: 8, alpha: 16, dropout: 0.05}
tasks:
  base: {kind: causal_lm, data: {source: generated, family: conflict2, part: a, entities: ENTITIES}}
  A: {kind: causal_lm, data: {source: generated, family: accretion, part: a, entities: ENTITIES}}
  B: {kind: causal_lm, data: {source: generated, family: accretion, part: b_related, entities: ENTITIES}}
  C: {kind: causal_lm, data: {source: generated, family: accretion, part: c, entities: ENTITIES}}
phases:
  - task: base
    trains: all
    train: {epoch_batches: BASE, micro_batch: 16}
  - {task: A}
  - {task: B, adapter: continued}
  - {task: C, adapter: continued}
train:
  epochs: 1
  epoch_batches: STEPS
  micro_batch: 8
  threads: 1
  optimizer: {kind: adamw, base_lr: 3e-3, weight_decay: 0.01}
arms: {plain: {}}
"""
WEIGHTS: Mapping[str, Sequence[float]] = {"B": [0.8, 0.85, 0.9, 0.95], "C": [0.15, 0.2, 0.25, 0.3, 0.35]}
SCALES = (0.0, 0.25, 0.5, 0.75, 1.0)
FIXED = "A+0.9B+0.25C"
VARIED = ("B", "C")
SPACES: Sequence[Space] = ("factor", "effective")


@dataclass(frozen=True)
class Shape:
    """A model and how long it is trained: updates of the base, and of each of A, B and C."""

    name: str
    layers: int
    width: int
    base: int = 8
    steps: int = 4
    entities: int = 96


FOUR = Shape("4 blocks, 64 wide", 4, 64, base=200, steps=50, entities=256)
OTHERS = (Shape("8 blocks, 64 wide", 8, 64), Shape("4 blocks, 256 wide", 4, 256))


def measure(bench: Bench) -> Section:
    runs = {}
    for shape in (FOUR, *OTHERS):
        bench.tell(f"training A, B and C, {shape.name}")
        runs[shape] = trained(bench.folder("routes"), shape)
    rows = [row for shape, run in runs.items() for row in _grid(bench, shape, run)]
    rows += [row for shape, run in runs.items() for row in _greedy(bench, shape, run)]
    bench.tell("following the gradient")
    rows += _gradient(runs[FOUR])
    rows += _beside(bench, runs[FOUR])
    method = "Qwen2 of the shape said, LoRA of rank 8 on all linear maps, base and phases A, B, C trained here, one "
    method += "thread. A pass is a forward pass over one task's half of the validation rows; begun above lower blocks "
    method += "it counts by the blocks that it runs, and with its gradient as three. The straightforward way writes "
    method += "the factors of each route into the adapter; scores of both ways are held equal to the last bit. CPU "
    method += "time of interleaved blocks, smallest and median of the ratios within a round; of passes, no time."
    return Section("Routes through a run's adapters, and the straightforward way of trying them", method, rows)


def trained(folder: Path, shape: Shape) -> FinishedRun:
    """Train a run in a folder, and open it for its phases' adapters."""
    text = SPEC
    for name, value in vars(shape).items():
        text = text.replace(name.upper(), str(value))
    spec = folder / "spec.yaml"
    spec.write_text(text, encoding="utf-8")
    order = order_of(spec, (), None, folder / "run")
    outcome = execute(order, discover(), threading.Event())
    if outcome.status != "finished":
        raise RuntimeError(f"the bench's own run ended as {outcome.status}: {outcome.error}")
    return open_run(order.folder)


def scorer(run: FinishedRun) -> Scorer:
    """Return what scores routes of a run and knows none yet."""
    trained = {phase.name: phase.task for phase in run.about.spec.phases if phase.name in run.snapshots.phases}
    return Scorer(run.evaluate, run.snapshots, trained)


def objective(run: FinishedRun) -> Objective:
    """Return the frontier score on the half that chooses."""
    one = scorer(run)
    return Objective("frontier", one.matrix("selection"), one.tasks)


# --------------------------------------------------------------------------------------------- the straightforward way
@dataclass
class Written:
    """Scores a route by writing its factors into the adapter, whose ranks must be those of the route's own.

    Nothing is remembered from one route to the next. `passes` are counted as `Scorer` counts them.
    """

    run: FinishedRun
    halves: Mapping[str, Mapping[Half, Sequence[int]]]
    passes: float = 0.0

    @torch.no_grad()
    def write(self, route: Route, space: Space) -> None:
        pairs = self.run.snapshots.compose(route, space).pairs
        for factor in self.run.adapter.factors:
            pair = pairs[factor.name]
            factor.a.copy_(pair.a)
            factor.b.copy_(pair.b)

    def losses(self, route: Route, halves: Sequence[Half]) -> dict[Half, dict[str, float]]:
        self.write(route, "factor")
        found: dict[Half, dict[str, float]] = {}
        for half in halves:
            found[half] = {}
            for task, both in self.halves.items():
                one: Any = self.run.about.tasks[task].evaluate(self.run.model, "val", both[half])
                found[half][task] = float(one.mean())
                self.passes += 1
        return found


@dataclass
class Try:
    """What one way of trying routes came to, so that the other can be held against it."""

    passes: float = 0.0
    chosen: str = ""
    losses: dict[str, Mapping[str, float]] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)


def same(ours: Try, theirs: Try) -> None:
    """Raise `RuntimeError` where two ways differ in a route that both scored, or in the one that they chose."""
    both = ours.losses.keys() & theirs.losses.keys()
    apart = [name for name in ours.losses if name not in both or ours.losses[name] != theirs.losses[name]]
    if apart or not both or ours.report != theirs.report or ours.chosen != theirs.chosen:
        raise RuntimeError(f"the two ways differ in {apart or 'the route they chose'}: {ours.chosen}, {theirs.chosen}")


# ------------------------------------------------------------------------------------------------------------ the grid
def candidates() -> list[Route]:
    return list(grid(Route(tuple(map(Term, "ABC"))), WEIGHTS))


def grid_ours(run: FinishedRun, judge: Objective) -> Try:
    one, found = scorer(run), Try()
    with one.still():
        for route in candidates():
            found.losses[str(route)] = one.losses(route, "factor", "selection")
        best = max(candidates(), key=lambda route: judge.value(found.losses[str(route)]))
        found.report, found.chosen = one.losses(best, "factor", "report"), str(best)
    found.passes = one.passes
    return found


def grid_written(run: FinishedRun, judge: Objective) -> Try:
    one, found, reports = Written(run, scorer(run).halves), Try(), {}
    for route in candidates():
        both = one.losses(route, ("selection", "report"))
        found.losses[str(route)], reports[str(route)] = both["selection"], both["report"]
    found.chosen = max(found.losses, key=lambda name: judge.value(found.losses[name]))
    found.report, found.passes = reports[found.chosen], one.passes
    return found


def _grid(bench: Bench, shape: Shape, run: FinishedRun) -> list[Row]:
    bench.tell(f"a grid, {shape.name}")
    times, ours, theirs = _both(bench, run, grid_ours, grid_written, 4)
    each = {"ours": [t / ours.passes for t in times["ours"]], "theirs": [t / theirs.passes for t in times["theirs"]]}
    text = f"a grid of {len(candidates())} routes"
    return [
        Row(f"{text}, written over ours, {shape.name}", *_over(times, "theirs", "ours"), 2.0, True,
            _seconds(times)),
        Row(f"{text}, passes, {shape.name}", theirs.passes / ours.passes, "×", None, 2.0, True,
            f"{theirs.passes:g} over {ours.passes:g}; n routes on both halves over n on one: 2n/(n+1)"),
        Row(f"{text}, a pass, ours over written, {shape.name}", *_over(each, "ours", "theirs"), 1.0, False,
            f"{1e3 * min(each['ours']):.2f} ms over {1e3 * min(each['theirs']):.2f}"),
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- a search by block
def greedy_ours(run: FinishedRun, judge: Objective) -> Try:
    one, found = scorer(run), Try()

    def score(route: Route) -> float:
        losses = one.losses(route, "factor", "selection")
        found.losses[_name(run, route)] = losses
        return judge.value(losses)

    with one.still():
        ended = descend(
            parse("A+0.9B"), coordinates(run.snapshots.layout, ["C"], "block"), SCALES, score, 1,
            lambda route, height: one.rise(route, "factor", height), one.better,
        )  # fmt: skip
        one.rest()
        found.report = one.losses(ended.route, "factor", "report")
    found.chosen, found.passes = _name(run, ended.route), one.passes
    return found


def greedy_written(run: FinishedRun, judge: Objective) -> Try:
    """Score every scale of every block by whole passes, what is in force once more included."""
    one, found = Written(run, scorer(run).halves), Try()
    best, value = parse("A+0.9B"), float("-inf")
    for at in coordinates(run.snapshots.layout, ["C"], "block"):
        current = best
        for scale in SCALES:
            tried = current.with_weight(at.phase, at.group, scale)
            losses = one.losses(tried, ("selection",))["selection"]
            found.losses[_name(run, tried)] = losses
            if judge.value(losses) > value:
                best, value = tried, judge.value(losses)
    found.chosen, found.report = _name(run, best), one.losses(best, ("report",))["report"]
    found.passes = one.passes
    return found


def _name(run: FinishedRun, route: Route) -> str:
    return str(route.fit(run.snapshots.phases, run.snapshots.layout))


def _greedy(bench: Bench, shape: Shape, run: FinishedRun) -> list[Row]:
    bench.tell(f"a search by block, {shape.name}")
    times, ours, theirs = _both(bench, run, greedy_ours, greedy_written, 4)
    text = f"greedy by block, {len(SCALES)} scales"
    return [
        Row(f"{text}, written over ours, {shape.name}", *_over(times, "theirs", "ours"), 1.8, True,
            _seconds(times)),
        Row(f"{text}, passes, {shape.name}", theirs.passes / ours.passes, "×", None, None, False,
            f"{theirs.passes:g} over {ours.passes:g}"),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the gradient
def searches(run: FinishedRun, by: GroupKind) -> dict[str, Any]:
    """Return what greedy and gradient come to from one start, by name; neither knows what the other scored."""
    common = {"by": by, "vary": list(VARIED), "start": FIXED}
    kinds: Mapping[str, Any] = {"greedy": {"scales": SCALES}, "gradient": {}}
    found = {}
    for kind, more in kinds.items():
        config = RoutedConfig.model_validate({"methods": {kind: {"kind": kind, **common, **more}}, "alone": False})
        found[kind] = run.compared(config).run(kind, config.methods[kind])
    return found


def _gradient(run: FinishedRun) -> list[Row]:
    rows = []
    kinds: Sequence[GroupKind] = ("block", "module")
    for by in kinds:
        with quiet():
            found = searches(run, by)
        start = run.compared(RoutedConfig(alone=False))
        losses = start.scorer.losses(parse(FIXED), "effective", "selection")
        began = f"{start.selection.value(losses):+.4f}"
        text = f"by {by}, {len(coordinates(run.snapshots.layout, VARIED, by))} weights"
        for kind, one in found.items():
            note = f"{one.chosen_by:+.3f} on the half that chooses, {one.objective:+.3f} on the other; "
            rows.append(
                Row(f"{kind} {text}", one.passes, "passes", note=f"{note}{FIXED} has {began}; {one.seconds:.1f} s")
            )
        least = until(run, by, found["greedy"].chosen_by)
        rows.append(Row(f"gradient {text}, until it is as good as greedy", least, "passes"))
    return rows


def until(run: FinishedRun, by: GroupKind, wanted: float) -> float:
    """Return the passes after which the gradient's route first scores what is wanted; infinite where it never does."""
    one, judge, settings = scorer(run), objective(run), Gradient(kind="gradient")
    moves = coordinates(run.snapshots.layout, VARIED, by)
    seen: list[tuple[float, float]] = []

    def pull(route: Route) -> tuple[float, Sequence[float]]:
        value, slopes = one.slopes(route, "effective", judge, moves, by)
        seen.append((one.passes, value))
        return value, slopes

    with quiet():
        ascend(parse(FIXED), moves, pull, settings.steps, settings.rate, settings.least, settings.most)
    return next((passes for passes, value in seen if value >= wanted), float("inf"))


# ----------------------------------------------------------------------------------------------------- composing alone
def _beside(bench: Bench, run: FinishedRun) -> list[Row]:
    bench.tell("composing alone")
    stand, net, routes = StandIn(run.model, run.adapter), peft_of(run), candidates()
    contestants = {
        "peft": block(lambda: [weighted(net, route) for route in routes], len(routes)),
        **{space: block(_lending(stand, run, routes, space), len(routes)) for space in SPACES},
    }
    times = interleave(contestants, bench.rounds(6), warm_up=1)
    note = f"{1e3 * min(times['peft']):.2f} ms a route over "
    return [
        Row(f"PEFT's weighted adapter, made and set, over ours, {space} space", *_over(times, "peft", space),
            note=f"{note}{1e3 * min(times[space]):.2f}; no scoring")
        for space in SPACES
    ]  # fmt: skip


def _lending(stand: StandIn, run: FinishedRun, routes: Sequence[Route], space: Space) -> Callable[[], None]:
    def work() -> None:
        for route in routes:
            with stand.lent(run.snapshots.compose(route, space)):
                pass

    return work


def peft_of(run: FinishedRun) -> Any:
    """Return a model of PEFT's with one adapter a phase, as the phase ended."""
    net: Any = deepcopy(run.model.net)
    with catch_warnings(), torch.no_grad():
        simplefilter("ignore")
        for phase, (_, end) in run.snapshots.ends.items():
            net.add_adapter(phase, net.peft_config["default"])
            for target, (a, b) in run.snapshots.states[end].items():
                layer = net.base_model.model.get_submodule(target)
                layer.lora_A[phase].weight.copy_(a)
                layer.lora_B[phase].weight.copy_(b)
    return net


def weighted(net: Any, route: Route) -> None:
    with catch_warnings():
        simplefilter("ignore")
        weights = [term.weight for term in route.terms]
        net.add_weighted_adapter(list(route.phases), weights, "route", combination_type="linear")
    net.set_adapter("route")
    net.delete_adapter("route")


# -------------------------------------------------------------------------------------------------------------- shared
Way = Callable[[FinishedRun, Objective], Try]


def _both(bench: Bench, run: FinishedRun, ours: Way, theirs: Way, rounds: int) -> tuple[Times, Try, Try]:
    """Return the CPU seconds of both ways, and what they came to, which is the same."""
    judge = objective(run)
    with quiet():
        one, other = ours(run, judge), theirs(run, judge)
    same(one, other)
    contestants = {"ours": block(lambda: ours(run, judge), 1), "theirs": block(lambda: theirs(run, judge), 1)}
    return interleave(contestants, bench.rounds(rounds), warm_up=1), one, other


def _over(times: Times, what: str, over: str) -> tuple[float, str, float]:
    smallest, paired = ratio(times, what, over)
    return smallest, "×", paired


def _seconds(times: Times) -> str:
    return f"{min(times['theirs']):.2f} s over {min(times['ours']):.2f}"
