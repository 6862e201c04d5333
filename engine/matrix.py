"""The evaluation matrix `R[p][t]`, the number of task t after phase p, and what is read from it.

Every reading is oriented so that larger is better, for a loss and for an accuracy alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

START = "start"
Kind = Literal["learning", "learning from start", "backward transfer", "interference", "retention"]
Place = tuple[Kind, str, str]


@dataclass(frozen=True)
class Reading:
    """One number read from a matrix: `kind` of `task` after phase `after`; larger is better."""

    kind: Kind
    task: str
    after: str
    value: float


@dataclass
class Matrix:
    """Rows in the order of the phases, `start` first. `phases` says which task each phase trains.

    Without `phases`, a phase trains the task it is named after, or the only task there is.
    """

    tasks: Sequence[str]
    metric: str = "loss"
    better: Literal["higher", "lower"] = "lower"
    phases: Mapping[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def put(self, label: str, task: str, value: float) -> None:
        """Book the value of `task` after phase `label`; the row's place is where its label first came."""
        self.rows.setdefault(label, {})[task] = value

    def at(self, label: str, task: str) -> float | None:
        """Return R[label][task], None where it was not measured or is not finite."""
        value = self.rows.get(label, {}).get(task)
        return value if value is not None and math.isfinite(value) else None

    def trained(self, label: str) -> str | None:
        """Name the task that the phase `label` trained."""
        if label == START:
            return None
        name = self.phases.get(label, label)
        if name in self.tasks or label in self.phases:
            return name if name in self.tasks else None  # a task that is scored once has no column
        return self.tasks[0] if len(self.tasks) == 1 else None

    def read(self, kind: Kind, task: str, after: str) -> float | None:
        """Return a reading by its name; None where it is undefined."""
        if kind == "learning":
            return self.learning(after) if self.trained(after) == task else None
        if kind == "learning from start":
            return self.learning_from_start(after) if self.trained(after) == task else None
        named = {"backward transfer": self.backward_transfer, "interference": self.interference}
        return named.get(kind, self.retention)(task, after)

    def learning(self, label: str) -> float | None:
        """Return how much better the phase made its own task: the row before it minus its own, turned for `higher`."""
        return self._better(self.trained(label), label, self._before(label))

    def learning_from_start(self, label: str) -> float | None:
        """Return learning held against row `start`, so that it holds what earlier phases did to the task too."""
        return self._better(self.trained(label), label, START if START in self.rows else None)

    def backward_transfer(self, task: str, after: str) -> float | None:
        """Return what all phases since its own did to a task: R[t][t] − R[p][t], turned for `higher`.

        Negative means that they hurt. A gain of an earlier task, elsewhere called accretion, is this number too.
        """
        return self._better(task, after, self._own(task, after))

    def interference(self, task: str, after: str) -> float | None:
        """Return what the phase `after` alone did to a task trained before it: the row before minus its own.

        Turned for `higher`; negative means that the phase hurt, as for every reading.
        """
        return self._better(task, after, self._before(after)) if self._own(task, after) else None

    def retention(self, task: str, after: str) -> float | None:
        """Return R[t][t] / R[p][t], turned for `higher`; 1 means kept. None where the divisor is 0.

        A ratio of losses is unbounded and depends on the loss floor; read it beside backward transfer, not instead.
        """
        own = self._own(task, after)
        then, now = (self.at(own, task) if own else None), self.at(after, task)
        above, below = (then, now) if self.better == "lower" else (now, then)
        return above / below if above is not None and below else None

    def places(self) -> Iterator[Place]:
        """Yield kind, task and phase of every reading that these phases allow, phase by phase, defined or not.

        A number that two readings share by definition has one place: interference begins where the row before is not
        the task's own phase, learning from start where it is not the first row.
        """
        for label in self.rows:
            task, before = self.trained(label), self._before(label)
            if task is not None and before is not None:
                yield "learning", task, label
                if before != START:
                    yield "learning from start", task, label
            for other in self.tasks:
                own = self._own(other, label)
                if own is not None:
                    yield "backward transfer", other, label
                    if own != before:
                        yield "interference", other, label
                    yield "retention", other, label

    def readings(self) -> Iterator[Reading]:
        """Yield every reading that has a value, phase by phase."""
        for kind, task, after in self.places():
            value = self.read(kind, task, after)
            if value is not None:
                yield Reading(kind, task, after, value)

    def _before(self, label: str) -> str | None:
        """Return the row before a phase's; None for the first row and for a phase that has none."""
        labels = list(self.rows)
        place = labels.index(label) if label in self.rows else 0
        return labels[place - 1] if place else None

    def _own(self, task: str, after: str) -> str | None:
        """Return the last phase before `after` that trained the task; None if none did, or `after` does."""
        labels = list(self.rows)
        if after not in self.rows or self.trained(after) == task:
            return None
        own = [label for label in labels[: labels.index(after)] if self.trained(label) == task]
        return own[-1] if own else None

    def _better(self, task: str | None, after: str, before: str | None) -> float | None:
        """Return how much better a task stands in one row than in an earlier one."""
        if task is None or before is None:
            return None
        now, then = self.at(after, task), self.at(before, task)
        if now is None or then is None:
            return None
        return then - now if self.better == "lower" else now - then

    def document(self) -> dict[str, Any]:
        """Return what `matrix.json` holds."""
        rows = [{"label": label, "values": dict(values)} for label, values in self.rows.items()]
        return {
            "tasks": list(self.tasks),
            "metric": self.metric,
            "better": self.better,
            "phases": dict(self.phases),
            "rows": rows,
        }

    @classmethod
    def from_document(cls, document: Any, phases: Mapping[str, str] | None = None) -> Matrix:
        """Take back what `document` gave; whatever is malformed is left out, so that old or cut files can be read."""
        from .storage import number

        tree = document if isinstance(document, dict) else {}
        named = phases or _strings(tree.get("phases"))
        matrix = cls(_texts(tree.get("tasks")), str(tree.get("metric", "loss")), "lower", named)
        if tree.get("better") == "higher":
            matrix.better = "higher"
        rows = tree.get("rows")
        for row in rows if isinstance(rows, list) else []:
            values = row.get("values") if isinstance(row, dict) else None
            if isinstance(values, dict) and isinstance(row.get("label"), str):
                for task, value in values.items():
                    if (found := number(value)) is not None:
                        matrix.put(row["label"], task, found)
        return matrix


def load(path: Path, phases: Mapping[str, str] | None = None) -> Matrix | None:
    """Return the matrix of a run, None where it has none; raises `DataError` where the file is no JSON."""
    from .storage import read_json

    document = read_json(path)
    return None if document is None else Matrix.from_document(document, phases)


def _texts(value: Any) -> list[str]:
    return [x for x in value if isinstance(x, str)] if isinstance(value, list) else []


def _strings(value: Any) -> dict[str, str]:
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
