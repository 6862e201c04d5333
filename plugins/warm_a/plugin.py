"""Warm A at its moments: it answers at boundaries, raises the rate again after them, and tells how A has moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ctr.engine.errors import PluginError
from ctr.engine.hooks import LossTerm, LrAdvice, Reset, hookimpl

from .guard import State, advance, gain
from .settings import WarmAConfig

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ctr.engine.events import Boundary, Epoch, Forward, Step
    from ctr.engine.task import Outputs

RESET_ANYWAY = ("document", "phase")  # boundaries at which the engine resets where nobody answers
CLEARED = {"clear": frozenset({"a", "b"}), "keep": frozenset[str](), "clear_b": frozenset({"b"})}


class WarmA:
    """Resets an adapter by a policy for A, one for B and one for the moments, at boundaries of its choice."""

    Config = WarmAConfig
    trial: ClassVar[Mapping[str, Any]] = {
        "task": "documents",
        "reset_at": ("epoch",),
        "inert": {"a": "redraw"},  # what the engine does where nobody answers
        "active": {
            "a": "pull", "rho": 0.5, "b": "scale", "gamma": 0.5, "at": ["document", "epoch"], "rewarm_steps": 4,
        },
    }  # fmt: skip

    @staticmethod
    def needs(config: WarmAConfig) -> dict[str, frozenset[int]]:
        """Say that the guard looks at the same batch without the adapter."""
        return {"reference": frozenset({-1})} if config.guard.groups else {}

    @staticmethod
    def misfit(config: WarmAConfig, run: Any, adapter: Any) -> str | None:
        """Say why these settings cannot act in a run; None when they can."""
        if adapter is None:
            text = "resets an adapter, and this run has none"
            return f"{text}; add one, such as adapter: {{kind: lora}}, or leave the plugin out"
        asked = [phase for phase in run.phases if phase.trains == "adapter" and phase.plugins != "none"]
        if not asked:
            return "no phase of this run both trains the adapter and asks plugins, so there is nothing to reset"
        if config.merge and not adapter.one:
            text = "merge: the adapters of a bank belong to different documents, and the base is one for all"
            return f"{text}; remove merge"
        listed = {"epoch" if mark == "epoch" else "steps" for phase in asked for mark in phase.train.reset_at}
        for kind, mark in (("epoch", "epoch"), ("steps", "{steps: 100}")):
            if kind in config.at and kind not in listed:
                text = f"at names {kind}, a boundary that no phase which trains the adapter lists"
                return f"{text}; add it, such as train.reset_at: [{mark}], or remove it from at"
        return None

    def __init__(self, config: WarmAConfig, generator: Generator | None) -> None:
        self.config = config
        b = {"zero": 0.0, "keep": 1.0, "scale": config.gamma or 0.0}[config.b]
        self._warm, self._cold = (Reset(a, b, CLEARED[config.moments], config.merge) for a in (_rule(config), "redraw"))
        self._full = LrAdvice(why="full")
        self._phase: tuple[int, bool] = (-1, False)  # the phase last seen in a step, and whether it trains the adapter
        self.since = 0  # steps of the adapter since the last reset, whoever made it
        self.told = 0  # how many of them had been made when last told of
        self.ramp: int | None = None  # steps since a reset of ours that cleared moments, while the rate is below full
        self.warm = 0  # resets at which a trained A was left warm
        self.answered = False
        self.slots: list[int] = []  # that the last reset concerned; none: all
        self.before: dict[str, Tensor] = {}  # A as the last reset left it, of the slots that are looked at
        self.gained: float | Tensor = 0.0  # nats, since the last reset
        self.tokens: int | Tensor = 0
        self.guard = State()

    @hookimpl
    def extra_loss(self, forward: Forward) -> list[LossTerm]:
        """Add nothing; compare the losses with and without adapter, of tokens that no update has seen yet."""
        aside = self._phase == (forward.phase_index, False)
        reference = forward.outputs.extra.get("reference") if self.config.guard.groups and not aside else None
        if reference is not None:
            gained, tokens = _compared(forward.outputs, reference, forward.batch.count)
            self.gained, self.tokens = self.gained + gained, self.tokens + tokens
        return []

    @hookimpl
    def schedule_lr(self, step: Step) -> LrAdvice:
        if step.phase_index != self._phase[0]:
            self._phase = (step.phase_index, bool(step.factors))
            if not self._phase[1]:  # what was compared in this first step had no adapter in it
                self.gained, self.tokens = 0.0, 0
        if not self._phase[1]:
            return self._full
        if self.since == 0 and self.config.angle_slots:
            self.before = self._looked_at(step.factors)
        self.since += 1
        return self._full if self.ramp is None else self._rise(step)

    @hookimpl
    def adapter_reset(self, boundary: Boundary) -> Reset | None:
        mine = boundary.kind in self.config.at
        if not boundary.factors or not (mine or boundary.kind in RESET_ANYWAY):
            return None
        self._tell(boundary)
        answer = self._answer() if mine else None
        self.answered = self.answered or mine
        self.since, self.told, self.slots, self.before = 0, 0, list(boundary.slots), {}
        self.guard = State(self.guard.window)
        return answer

    @hookimpl
    def on_epoch_end(self, epoch: Epoch) -> None:
        if epoch.kind == "phase" and epoch.factors:
            self._tell(epoch)
        elif epoch.kind == "run" and not self.answered:
            kinds = " or ".join(self.config.at)
            epoch.log.mark("never-asked", f"no boundary of kind {kinds} came in this run, so it reset nothing")

    def state(self) -> dict[str, Any]:
        counts = {"since": self.since, "told": self.told, "ramp": self.ramp, "warm": self.warm}
        sums = {"gained": float(self.gained), "tokens": int(self.tokens), "alarm": self.guard.alarm}
        guard = {**sums, "window": [list(row) for row in self.guard.window]}
        kept = {"answered": self.answered, "slots": list(self.slots), "before": dict(self.before)}
        return {**counts, **kept, "guard": guard}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.since, self.told, self.ramp, self.warm = (state[name] for name in ("since", "told", "ramp", "warm"))
        self.answered, self.slots, self.before = state["answered"], list(state["slots"]), dict(state["before"])
        guard = state["guard"]
        self.gained, self.tokens = guard["gained"], guard["tokens"]
        self.guard = State(tuple((nats, tokens) for nats, tokens in guard["window"]), guard["alarm"])

    # --------------------------------------------------------------------------------------------------- answering
    def _answer(self) -> Reset:
        """Return what a boundary does; the count of `until` leaves out resets before which nothing was trained."""
        if self.config.moments != "keep" and self.config.rewarm_steps:
            self.ramp = 0
        spent = self.config.until is not None and self.warm >= self.config.until
        if spent or self.guard.alarm:
            return self._cold
        self.warm += self.since > 0
        return self._warm

    def _rise(self, step: Step) -> LrAdvice:
        """Return the rate of a step of the ramp: (k + 1) / rewarm_steps of it, k steps after the reset."""
        assert self.ramp is not None
        scale = (self.ramp + 1) / self.config.rewarm_steps
        self.ramp = self.ramp + 1 if scale < 1 else None
        if self.config.moments == "clear":
            return LrAdvice(scale, why="rewarm")
        if "lora_b" not in step.base_lr:
            text = f"moments: clear_b warms the rate of group lora_b up, and this task has {', '.join(step.base_lr)}"
            raise PluginError(f"{text}; set moments: clear, or rewarm_steps: 0")
        return LrAdvice({"lora_b": scale}, why="rewarm")

    # --------------------------------------------------------------------------------------------------- telling
    def _tell(self, event: Boundary | Epoch) -> None:
        """Log how A and B stand before a reset, and what adapting gained; nothing where nothing was trained since."""
        if self.since == self.told:
            return
        self.told = self.since
        from .measures import growth, size, turned

        factors, start, slots = event.factors, event.start, self.slots
        event.log("a_ratio", growth((_stack(f.a, slots), _stack(start[f.name], slots)) for f in factors))
        event.log("b_norm", size(_stack(f.b, slots) for f in factors))
        if self.before:
            before = {f.name: self.before[f.name].to(f.a.device) for f in factors}
            for name, angle in turned(self._looked_at(factors), before).items():
                event.log(f"angle_{name}", angle)
        if self.config.guard.groups:
            self._judge(event)

    def _judge(self, event: Boundary | Epoch) -> None:
        nats, tokens, rule = float(self.gained), int(self.tokens), self.config.guard
        event.log("gain", nats / max(tokens, 1))
        now = (*self.guard.window, (nats, tokens))[-rule.groups :]
        self.guard = advance(self.guard, nats, tokens, rule.groups, rule.margin)
        self.gained, self.tokens = 0.0, 0
        if self.guard.alarm:
            text = f"before the last {len(now)} resets adapting gained {gain(now):.4g} nats a token"
            text += f", less than {-rule.margin:g}"
            event.log.mark("guard", f"{text}: A is drawn anew at the next reset")

    def _looked_at(self, factors: Sequence[Any]) -> dict[str, Tensor]:
        """Return copies of A, (slots looked at, rank, in) by site; of a bank evenly spread slots of the last reset."""
        return {f.name: _stack(f.a, self._spread(f.a)).clone() for f in factors}

    def _spread(self, a: Tensor) -> list[int]:
        there = self.slots or list(range(len(a) if a.dim() == 3 else 1))
        count = min(self.config.angle_slots, len(there))
        return [there[i * len(there) // count] for i in range(count)]


def _compared(outputs: Outputs, alone: Outputs, count: int) -> tuple[Any, Any]:
    """Return nats gained over the base alone, and of how many tokens: of all that is scored, or of the loss's items."""
    if "nats" in outputs.scores:
        return (alone.scores["nats"] - outputs.scores["nats"]).sum(), outputs.scores["tokens"].sum()
    return (alone.loss - outputs.loss).detach().float() * count, count


def _stack(factor: Tensor, slots: Sequence[int]) -> Tensor:
    """Return a factor with a leading index for adapters: some slots of a bank, all where none is named, or the one."""
    factor = factor.detach()
    if factor.dim() == 2:
        return factor[None]
    return factor[list(slots)] if slots else factor


def _rule(config: WarmAConfig) -> Any:
    """Return what `Reset.a` says: a word, or a function whose name the record of the reset shows."""
    if config.a in ("keep", "redraw"):
        return config.a
    rho = config.rho

    def a(now: Tensor, start: Tensor, generator: Generator) -> Tensor:
        from . import policies

        if config.a == "pull":
            assert rho is not None
            return policies.pull(now, start, rho)
        return policies.norm(now, start) if config.a == "norm" else policies.orth(now, start)

    a.__name__ = config.a
    return a
