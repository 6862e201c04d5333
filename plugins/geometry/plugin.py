"""Geometry at its moments: terms on every forward pass, metrics and gradient shares on the probe at rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from ctr.engine.hooks import LossTerm, hookimpl
from ctr.engine.seeding import mix, stream
from ctr.engine.task import Metric

from .schedules import factor
from .settings import Diversity, Gossip, Metrics, Repulsion, Settings, Sparsity, Term

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ctr.engine.events import Epoch, Forward
    from ctr.engine.task import Batch, Outputs

    from .measuring import Pulling

TERMS = ("diversity", "repulsion", "sparsity", "gossip", "branch_repulsion", "load_balance", "inhibition")
DRAWS = frozenset({"repulsion", "gossip"})
BRANCHED = frozenset({"branch_repulsion", "load_balance", "inhibition"})
ALL = frozenset({-1})


class Geometry:
    """Adds terms on hidden states, attention maps and branches, and measures their geometry."""

    trial: ClassVar[Mapping[str, Any]] = {
        "task": "language",
        "inert": {},
        "active": {
            "gossip": {"weight": 2.0, "tau": 0.1, "sample": 7},
            "repulsion": {"weight": 0.5, "sample": 8, "schedule": {"kind": "warmup", "warmup": 3}},
            "diversity": {"weight": 0.3},
            "sparsity": {"weight": 0.1},
            "branch_repulsion": {"weight": 0.2},
            "inhibition": {"weight": 0.2},
            "load_balance": {"weight": 5.0, "schedule": {"kind": "cosine", "per": "step", "until": 11}},
        },
    }

    metrics: ClassVar[Mapping[str, Metric]] = {
        "effective_rank": Metric(better="higher"),
        "isotropy": Metric(better="lower"),
        "active_fraction": Metric(better="lower"),
        "head_similarity": Metric(better="lower"),
        "branch_entropy": Metric(better="higher"),
        "branch_score_entropy": Metric(better="higher"),
        "branch_usage_min": Metric(better="higher"),
        "branch_usage_max": Metric(better="lower"),
        "branch_usage_std": Metric(better="lower"),
    }

    class Config(Settings, frozen=True):
        """Settings, one part a term. With every weight at 0 it only measures."""

        faithful: bool = Field(False, description="the source's padding, sampling and divisors, for comparing with it")
        mask: bool = Field(True, description="leave padding out of terms and metrics")
        diversity: Diversity = Field(Diversity(), description="heads shall attend to different things")
        repulsion: Repulsion = Field(Repulsion(), description="token vectors shall spread over the sphere")
        sparsity: Sparsity = Field(Sparsity(), description="activations shall be small")
        gossip: Gossip = Field(Gossip(), description="tokens that meet by chance shall not be too close")
        branch_repulsion: Term = Field(Term(), description="branches shall answer differently")
        load_balance: Term = Field(Term(), description="branches shall be used equally")
        inhibition: Term = Field(Term(), description="branches that are open together shall not answer alike")
        metrics: Metrics = Field(Metrics(), description="what is measured on the probe")

        @model_validator(mode="after")
        def _one_padding(self) -> Geometry.Config:
            if self.faithful and not self.mask:
                text = "faithful keeps padding out of gossip and nothing else, so mask: false contradicts it"
                raise ValueError(f"{text}; remove mask, or set faithful: false")
            return self

    @staticmethod
    def needs(config: Config) -> dict[str, frozenset[int]]:
        """Say what the terms with weight look at, by layer; branches come as one tensor, whatever their layer."""
        return _union(_seen_by(name, getattr(config, name)) for name in _weighted(config))

    def __init__(self, config: Config, generator: Generator) -> None:
        self.config = config
        self._terms: dict[str, Term] = {name: getattr(config, name) for name in _weighted(config)}
        self._generator = generator
        self._own: dict[str, Generator] = {}
        self._ended: dict[str, int] = {}  # the step at which the weight of a term fell to 0

    @hookimpl
    def extra_loss(self, forward: Forward) -> list[LossTerm]:
        if not self._terms:
            return []
        with _full_precision(forward.outputs.loss.device.type):
            return list(self._answers(forward))

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> None:
        if self.config.metrics.gradient_cosines and epoch.kind in ("start", "phase"):
            self._compare_tasks(epoch)
        if epoch.kind not in ("start", "epoch"):
            return
        parts = [_seen_by_metrics(self.config.metrics)]
        if self._terms and self.config.metrics.shares:
            parts.append(self.needs(self.config))
        if wanted := _union(parts):
            self._measure(epoch, wanted)

    def state(self) -> dict[str, Any]:
        return {"ended": dict(self._ended)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._ended = {name: int(step) for name, step in state["ended"].items()}

    def _answers(self, forward: Forward) -> Iterator[LossTerm]:
        """Answer what has weight; a term whose weight fell to 0 says so in one step, and is then no longer computed."""
        for name, term in self._terms.items():
            weight = _weight(term, forward.epoch, forward.step)
            if weight:
                self._ended.pop(name, None)
                yield LossTerm(name, self._value(name, forward.outputs, forward.batch), weight)
            elif self._ended.setdefault(name, forward.step) == forward.step:
                yield LossTerm(name, self._value(name, forward.outputs, forward.batch).detach(), 0.0)

    def _value(self, name: str, outputs: Outputs, batch: Batch, part: int = 0) -> Tensor:
        from .reading import value_of

        return value_of(name, self.config, outputs, batch, self._drawing(name, part) if name in DRAWS else None)

    def _drawing(self, name: str, part: int) -> Generator:
        """Return the term's own generator, seeded by where the plugin's stands, so that terms never share a draw."""
        from torch import Generator

        if name not in self._own:
            self._own[name] = Generator(self._generator.device)
        return self._own[name].manual_seed(mix(self._generator.initial_seed(), stream(0, f"term:{name}"), part))

    def _compare_tasks(self, epoch: Epoch) -> None:
        from .measuring import task_cosines

        if len(epoch.probe.by_task) < 2 and epoch.kind == "start":
            epoch.log.mark("no-gradient-cosines", "metrics.gradient_cosines needs two tasks or more; this run has one")
        for name, value in task_cosines(epoch.probe.by_task):
            epoch.log.number(name, value)

    def _measure(self, epoch: Epoch, wanted: Mapping[str, frozenset[int]]) -> None:
        from .measuring import Metering, Pulling

        probe = epoch.probe
        metering = Metering(self.config)
        weights = {name: _weight(term, epoch.epoch, max(epoch.step - 1, 0)) for name, term in self._terms.items()}
        items = sum(batch.count for batch in probe.batches)
        sharing = bool(weights) and self.config.metrics.shares and items > 0
        pulling = Pulling(list(probe.params.values()), weights, items) if sharing else None
        for index, batch in enumerate(probe.batches):
            outputs = probe.outputs(batch, wanted)
            metering.see(outputs, batch)
            if pulling and batch.count:
                values = {name: self._value(name, outputs, batch, index) for name in weights}
                pulling.see(outputs.loss, values, batch.count)
        for name, value in metering.numbers():
            epoch.log.number(name, value)
        if pulling:
            _tell(epoch, pulling)


def _tell(epoch: Epoch, pulling: Pulling) -> None:
    for name, value in pulling.numbers():
        epoch.log.number(name, value)
    if epoch.kind == "start":
        for name in pulling.without():
            epoch.log.mark("no-gradient", f"{name}: no trained parameter has any bearing on it; choose a later layer")


def _weighted(config: Geometry.Config) -> list[str]:
    return [name for name in TERMS if getattr(config, name).weight > 0]


def _weight(term: Term, epoch: int, step: int) -> float:
    plan = term.schedule
    at = epoch if plan.per == "epoch" else step
    return term.weight * factor(plan.kind, at, plan.warmup, plan.until, plan.floor)


def _seen_by(name: str, term: Any) -> dict[str, frozenset[int]]:
    if name in BRANCHED:
        return {"branches": ALL}
    return {"attention": frozenset(term.layers)} if name == "diversity" else {"hidden": frozenset({term.layer})}


def _seen_by_metrics(metrics: Metrics) -> dict[str, frozenset[int]]:
    seen = {"hidden": frozenset(metrics.hidden), "attention": frozenset(metrics.attention)}
    return {what: layers for what, layers in seen.items() if layers} | ({"branches": ALL} if metrics.branches else {})


def _union(parts: Iterable[Mapping[str, frozenset[int]]]) -> dict[str, frozenset[int]]:
    found: dict[str, frozenset[int]] = {}
    for part in parts:
        for what, layers in part.items():
            found[what] = found.get(what, frozenset()) | layers
    return found


def _full_precision(device: str) -> AbstractContextManager[Any]:
    """Leave autocast, if it is on: a Gram matrix in bfloat16 tells cosines apart in steps of 0.004."""
    import torch

    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
