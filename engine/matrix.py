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


@dataclass(frozen=True)
class Reading:
    """One number read from a matrix: `kind` of `task` after phase `after`; larger is better."""

    kind: Literal["learning", "backward transfer", "retention"]
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
        return name if name in self.tasks else self.tasks[0] if len(self.tasks) == 1 else None

    def learning(self, label: str) -> float | None:
        """Return how much better the phase made its own task: before its phase minus after, turned for `higher`."""
        labels, task = list(self.rows), self.trained(label)
        place = labels.index(label) if label in self.rows else 0
        if task is None or place == 0:
            return None
        return self._better_by(self.at(label, task), self.at(labels[place - 1], task))

    def backward_transfer(self, task: str, after: str) -> float | None:
        """Return what later phases did to a task: R[t][t] − R[p][t], turned for `higher`; negative means they hurt."""
        return self._better_by(self.at(after, task), self._own(task, after))

    def retention(self, task: str, after: str) -> float | None:
        """Return R[t][t] / R[p][t], turned for `higher`; 1 means kept. None where the divisor is 0.

        A ratio of losses is unbounded and depends on the loss floor; read it beside backward transfer, not instead.
        """
        own, now = self._own(task, after), self.at(after, task)
        above, below = (own, now) if self.better == "lower" else (now, own)
        return above / below if above is not None and below else None

    def readings(self) -> Iterator[Reading]:
        """Yield everything that can be read, phase by phase."""
        for label in self.rows:
            learned, task = self.learning(label), self.trained(label)
            if learned is not None and task is not None:
                yield Reading("learning", task, label, learned)
            for other in self.tasks:
                moved, kept = self.backward_transfer(other, label), self.retention(other, label)
                if moved is not None:
                    yield Reading("backward transfer", other, label, moved)
                if kept is not None:
                    yield Reading("retention", other, label, kept)

    def _own(self, task: str, after: str) -> float | None:
        """Return R[t][t] of the last phase before `after` that trained the task; None if none did, or `after` does."""
        labels = list(self.rows)
        if after not in self.rows or self.trained(after) == task:
            return None
        own = [label for label in labels[: labels.index(after)] if self.trained(label) == task]
        return self.at(own[-1], task) if own else None

    def _better_by(self, now: float | None, before: float | None) -> float | None:
        if now is None or before is None:
            return None
        return before - now if self.better == "lower" else now - before

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
