"""What a composition is chosen and judged by: differences of the losses of tasks; larger is better.

The frontier score of the public "Surface Tension Transformers" code is the sum, over its own final state, of what is
gained in accretion and interference of the first task, interference of the others, learning of the last and a quarter
of the learning of those between. Each of these is a difference of the same losses, so that the score is
2·gain(first) + 1.25·gain(between) + gain(last). There, accretion is held against another state, by which the final
state scores below zero; here it scores zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ctr.engine.matrix import Kind, Matrix

KINDS: dict[str, Kind] = {
    "learning": "learning",
    "backward_transfer": "backward transfer",
    "interference": "interference",
    "retention": "retention",
}
Losses = Mapping[str, float]
STEP = 1e-5  # of a difference quotient in losses, which are of order 1


class Objective:
    """A number of the losses of all tasks under a route. `matrix` holds the run's own losses on the same items.

    `tasks` are those that the adapter learned, in the order of their last phases. Raises `ValueError` for a name that
    is neither `frontier` nor `mean` nor a reading of the matrix at its last phase.
    """

    def __init__(self, name: str, matrix: Matrix, tasks: Sequence[str]) -> None:
        self.name, self.matrix, self.tasks = name, matrix, list(tasks)
        self.last = list(matrix.rows)[-1]
        self._weights = weights(name, tasks)
        if self._weights is None:
            self._place = place(name, tasks, self.last)

    @property
    def sequential(self) -> Losses:
        """The losses of the run's own last state."""
        return {task: self.matrix.rows[self.last][task] for task in self.tasks}

    def gains(self, losses: Losses) -> dict[str, float]:
        """Return how much lower the loss of each task is than under the run's own last state."""
        return {task: self.sequential[task] - losses[task] for task in self.tasks}

    def value(self, losses: Losses) -> float:
        """Return the objective; NaN where it is undefined, as retention of a loss of 0 is."""
        if self._weights is not None:
            return sum(self._weights[task] * gain for task, gain in self.gains(losses).items())
        kind, task = self._place
        found = self.swapped(losses).read(kind, task, self.last)
        return float("nan") if found is None else found

    def swapped(self, losses: Losses) -> Matrix:
        """Return the matrix with the losses of a route in the place of its last row."""
        rows = {label: dict(row) for label, row in self.matrix.rows.items()}
        rows[self.last] = rows[self.last] | dict(losses)
        return replace(self.matrix, rows=rows)

    def by_loss(self, losses: Losses) -> dict[str, float]:
        """Return the derivative of the objective by the loss of each task, as a central difference."""
        found = {}
        for task in self.tasks:
            up, down = ({**losses, task: losses[task] + sign * STEP} for sign in (1, -1))
            found[task] = (self.value(up) - self.value(down)) / (2 * STEP)
        return found

    def kept(self, losses: Losses) -> float | None:
        """Return the share of the last phase's learning that is left; None where that learned nothing."""
        learned, left = (m.learning(self.last) for m in (self.matrix, self.swapped(losses)))
        return left / learned if left is not None and learned is not None and learned > 0 else None

    def passes(self, losses: Losses, keep_learning: float | None, tolerance: float | None) -> bool:
        """Say whether a route keeps what was learned: a share of the last task's, all but a tolerance of those between.

        These are the constraints of the source's calibration: 0.9 and 0.05. A loss that is not finite keeps nothing.
        """
        if not all(map(math.isfinite, losses.values())):
            return False
        if keep_learning is not None:
            learned, left = (m.learning(self.last) or 0.0 for m in (self.matrix, self.swapped(losses)))
            if left < keep_learning * learned:
                return False
        gains = self.gains(losses)
        return tolerance is None or all(gains[task] >= -tolerance for task in self.tasks[1:-1])

    def retained(self, losses: Losses) -> float:
        """Return what calibration seeks: the frontier without the parts for learning, 2·gain(first) + gain(between)."""
        gains = self.gains(losses)
        return sum((2 if i == 0 else 1) * gains[task] for i, task in enumerate(self.tasks[:-1]))


def weights(name: str, tasks: Sequence[str]) -> dict[str, float] | None:
    """Return the weight of each task's gain, None for an objective that is a reading."""
    if name == "mean":
        return {task: 1 / len(tasks) for task in tasks}
    if name != "frontier":
        return None
    between = dict.fromkeys(tasks, 1.25)
    return between | {tasks[0]: 2.0} | {tasks[-1]: 1.0}


def place(name: str, tasks: Sequence[str], last: str) -> tuple[Kind, str]:
    """Take a reading's name apart; raises `ValueError` saying which there are."""
    kind, _, rest = name.partition(".")
    task, after, phase = rest.rpartition(".after.")
    if kind in KINDS and after and task in tasks and phase == last:
        return KINDS[kind], task
    some = f"backward_transfer.{tasks[0]}.after.{last}"
    text = f"objective: {name!r} is neither frontier nor mean, nor a reading after the last phase"
    raise ValueError(f"{text}, such as {some}; kinds are {', '.join(KINDS)}, tasks {', '.join(tasks)}")


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say of each point whether no other is at least as good on both axes and better on one; larger is better.

    A point with a coordinate that is no number stands on no front.
    """
    known = [i for i, point in enumerate(points) if not any(map(math.isnan, point))]
    order = sorted(known, key=lambda i: (-points[i][0], -points[i][1]))
    front, best, at = [False] * len(points), float("-inf"), float("nan")
    for i in order:
        x, y = points[i]
        if y > best or (y == best and x == at):
            front[i], best, at = True, y, x
    return front
