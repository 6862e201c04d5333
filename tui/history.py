"""What the event log says, gathered record by record: spans, marks, levels, epochs, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .facts import mapping, number, numbers, text, whole
from .ticks import number as written

Record = Mapping[str, Any]
INFINITE = 1 << 62


@dataclass
class Span:
    """A state that stands from `start` until `end` (None: still)."""

    owner: str
    name: str
    value: str
    start: int
    end: int | None = None


class Decision(NamedTuple):
    """Something a plugin or a person decided, and why. All strings are printable."""

    step: int
    epoch: int | None
    owner: str
    what: str
    why: str = ""
    of_state: bool = False


class Threshold(NamedTuple):
    owner: str
    series: str
    value: float
    name: str


class Observed(NamedTuple):
    """One evaluation: what was read, with which weights, by whom."""

    step: int
    split: str
    weights: str
    values: Mapping[str, float]
    by: str


class EpochRow(NamedTuple):
    """One line of the table of epochs."""

    step: int
    kind: str
    phase: str
    epoch: int | None
    loss: float | None
    lr: float | None
    grad_accum: int | None
    val: Mapping[str, float]


@dataclass
class History:
    """Everything gathered so far. `records` are kept as they were read; unknown kinds only there."""

    records: list[Record] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    levels: dict[tuple[str, str], Threshold] = field(default_factory=dict)
    epochs: list[EpochRow] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)
    observed: list[Observed] = field(default_factory=list)
    version: int = 0
    _open: dict[tuple[str, str], Span] = field(default_factory=dict)

    def extend(self, records: Sequence[Record]) -> None:
        for record in records:
            if isinstance(record, dict):
                self.records.append(record)
                self._take(record)
        self.version += bool(records)

    def cut(self, seq: int) -> None:
        """Forget the records after `seq`: a resumed run has replaced them."""
        kept = [r for r in self.records if (whole(r.get("seq")) or 0) <= seq]
        self.__init__(version=self.version + 1)  # type: ignore[misc]
        self.extend(kept)

    def latest(self, split: str, weights: str = "") -> Observed | None:
        """Return the newest evaluation of a split, of the weights asked for if any are."""
        for found in reversed(self.observed):
            if found.split == split and (not weights or found.weights == weights):
                return found
        return None

    def standing(self, step: float) -> list[Span]:
        """Return the spans that stand at `step`, one for each owner and name."""
        return [s for s in self.spans if s.start <= step and (s.end is None or step < s.end)]

    def _take(self, r: Record) -> None:
        step = min(max(whole(r.get("step")) or 0, -INFINITE), INFINITE)
        kind = r.get("event")
        handler = _HANDLERS.get(kind) if isinstance(kind, str) else None
        if handler is not None:
            handler(self, r, step)

    def _decide(self, r: Record, step: int, what: str, why: str = "", owner: object = None) -> None:
        who = text(owner if owner is not None else r.get("owner"), 80)
        self.decisions.append(Decision(step, whole(r.get("epoch")), who, what, why))

    def _state(self, r: Record, step: int) -> None:
        owner, name, value = text(r.get("owner"), 80), text(r.get("name"), 80), text(r.get("value"), 80)
        before = self._open.get((owner, name))
        if before is not None:
            if before.value == value:
                return
            before.end = step
        span = Span(owner, name, value, step)
        self.spans.append(span)
        self._open[owner, name] = span
        was = f"{before.value} → {value}" if before is not None else f"begins in {value}"
        self.decisions.append(
            Decision(step, whole(r.get("epoch")), owner, f"{name}: {was}", text(r.get("why"), 500), of_state=True)
        )

    def _mark(self, r: Record, step: int) -> None:
        name, why, owner = text(r.get("name"), 120), text(r.get("why"), 500), text(r.get("owner"), 80)
        last = self.decisions[-1] if self.decisions else None
        if last and last.owner == owner and last.step == step and not last.why and last.of_state:
            # a change of state and the mark that explains it are one decision
            self.decisions[-1] = Decision(step, whole(r.get("epoch")), owner, last.what, why or name)
        else:
            self._decide(r, step, name, why)

    def _level(self, r: Record, step: int) -> None:
        value = number(r.get("value"))
        owner, series, name = text(r.get("owner"), 80), text(r.get("series"), 120), text(r.get("name"), 80)
        if value is not None:
            self.levels[owner, name] = Threshold(owner, series, value, name or owner)

    def _epoch(self, r: Record, step: int) -> None:
        train, evaluations, advice = mapping(r.get("train")), mapping(r.get("evaluations")), mapping(r.get("advice"))
        self.epochs.append(
            EpochRow(
                step,
                text(r.get("kind"), 20),
                text(r.get("phase"), 60),
                whole(r.get("epoch")),
                number(train.get("loss")),
                number(r.get("lr")),
                whole(r.get("grad_accum")),
                numbers(evaluations.get("val")),
            )
        )
        for split, values in evaluations.items():
            self.observed.append(Observed(step, text(split, 40), "", numbers(values), "engine"))
        self._advice(r, step, advice)

    def _advice(self, r: Record, step: int, advice: Record) -> None:
        why = mapping(advice.get("why"))
        told: set[str] = set()
        for plugin, asked in mapping(advice.get("asked")).items():
            self._decide(r, step, f"asks grad_accum {written(number(asked))}", text(why.get(plugin), 500), plugin)
            told.add(plugin)
        for slug, plugin in mapping(advice.get("save")).items():
            self._decide(r, step, f"saves {text(slug, 80)}", text(mapping(why).get(str(plugin)), 500), plugin)
            told.add(str(plugin))
        stops = advice.get("stop")
        for plugin in stops if isinstance(stops, list) else []:
            self._decide(r, step, "stops the phase", text(why.get(str(plugin)), 500), plugin)
            told.add(str(plugin))
        for plugin, reason in why.items():
            if plugin not in told and reason:
                self._decide(r, step, "advises", text(reason, 500), plugin)

    def _boundary(self, r: Record, step: int) -> None:
        if r.get("kind") == "phase":
            self.phases.append((step, text(r.get("phase"), 60)))
        reset = mapping(r.get("reset"))
        if reset:
            what = f"reset of the adapter at {text(r.get('kind'), 20)}: A {text(reset.get('a'), 40) or '–'}"
            self._decide(r, step, what, "", reset.get("owner"))

    def _evaluation(self, r: Record, step: int) -> None:
        self.observed.append(
            Observed(
                step,
                text(r.get("split"), 40),
                text(r.get("weights"), 80),
                numbers(r.get("values")),
                text(r.get("by"), 80),
            )
        )

    def _told(self, r: Record, step: int) -> None:
        kind = text(r.get("event"), 40)
        if kind == "control":
            self._decide(r, step, f"obeys the request to {text(r.get('request'), 40)}", "", r.get("who") or "someone")
        elif kind == "warning":
            self._decide(r, step, "warning", text(r.get("text"), 500))
        elif kind == "error":
            self._decide(
                r, step, text(r.get("kind"), 60) or "error", text(r.get("text"), 500), r.get("plugin") or "engine"
            )
        elif kind == "resumed":
            self._decide(r, step, "resumed", f"from {text(r.get('checkpoint'), 120)}", "engine")
        elif kind == "cached":
            phases = r.get("phases")
            names = ", ".join(text(name, 40) for name in phases) if isinstance(phases, list) else ""
            self._decide(r, step, "taken over", f"phases {names} of run {text(r.get('run'), 150)}", "engine")


_HANDLERS = {
    "state": History._state,
    "mark": History._mark,
    "level": History._level,
    "epoch": History._epoch,
    "boundary": History._boundary,
    "evaluation": History._evaluation,
    "control": History._told,
    "warning": History._told,
    "error": History._told,
    "resumed": History._told,
    "cached": History._told,
}


def line(record: Record) -> tuple[str, str, str, str]:
    """Return sequence number, step, kind and the rest of a record, for the list of events; all printable."""
    rest = {k: v for k, v in record.items() if k not in ("seq", "time", "event", "step") and v not in (None, {}, [])}
    parts = [f"{text(k, 40)} {_brief(v)}" for k, v in rest.items()]
    return (
        text(whole(record.get("seq"))),
        text(whole(record.get("step"))),
        text(record.get("event"), 40) or "?",
        "  ".join(parts)[:600],
    )


def _brief(value: object, depth: int = 0) -> str:
    if isinstance(value, float):
        return written(value)
    if isinstance(value, dict) and depth < 3:
        return "{" + ", ".join(f"{text(k, 40)} {_brief(v, depth + 1)}" for k, v in list(value.items())[:8]) + "}"
    if isinstance(value, list) and depth < 3:
        return "[" + ", ".join(_brief(v, depth + 1) for v in value[:8]) + "]"
    return (
        text(value, 200) if isinstance(value, (str, int)) and not isinstance(value, bool) else text(str(value)[:40], 40)
    )
