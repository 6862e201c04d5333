"""The evaluation matrix of each arm as a heat map: phases down, tasks across, the mean over seeds in every cell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_style import FAINT, INK, house_style, label, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS, WIDE = 3, 10.0  # panels a row; a scale that spans more than this is logarithmic


def matrices(found: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw one panel an arm, all in one scale of colour, darker is better; a frame marks the task a phase trained."""
    from matplotlib.figure import Figure

    with house_style():
        columns = min(COLUMNS, len(found))
        lines = -(-len(found) // columns)
        tasks, labels = (max(len(matrix[what]) for matrix in found) for what in ("tasks", "labels"))
        size = columns * (1.5 + 0.95 * tasks) + 0.4, lines * (1.1 + 0.5 * labels) + 0.9
        figure = Figure(figsize=(max(size[0], 5.5), size[1]), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        tint = _scale(found)
        for axis, matrix in zip(axes, found, strict=False):
            _panel(axis, matrix, tint)
        for axis in axes[len(found) :]:
            axis.set_axis_off()
        told = ", ".join(sorted({f"{label(m['metric'])}: {m['better']} is better" for m in found}))
        figure.suptitle(
            f"{label(title, 90)}\n{told}, darker is better; framed: the task that the phase trained",
            x=0.01, ha="left", fontsize=10.5, color=INK,
        )  # fmt: skip
        return png(figure)


def _scale(found: Sequence[Mapping[str, Any]]) -> Any:
    """Return a function from a cell's mean and direction to its place in the colours, from 0 (worst) to 1 (best)."""
    means = [cell["mean"] for m in found for row in m["cells"] for cell in row if cell["mean"] is not None]
    wide = bool(means) and min(means) > 0 and max(means) / min(means) > WIDE
    turn = math.log if wide else float
    low, high = (turn(min(means)), turn(max(means))) if means else (0.0, 1.0)

    def tint(value: float, better: str) -> float:
        share = (turn(value) - low) / (high - low) if high > low else 0.5
        return 1 - share if better == "lower" else share

    return tint


def _panel(axis: Axes, matrix: Mapping[str, Any], tint: Any) -> None:
    from matplotlib.patches import Rectangle

    tasks, labels = matrix["tasks"], matrix["labels"]
    place = np.full((len(labels), len(tasks)), np.nan)
    for i, row in enumerate(matrix["cells"]):
        for j, cell in enumerate(row):
            if cell["mean"] is not None:
                place[i, j] = tint(cell["mean"], matrix["better"])
    axis.imshow(place, cmap="Blues", vmin=-0.08, vmax=1.15, aspect="auto")
    for i, row in enumerate(matrix["cells"]):
        for j, cell in enumerate(row):
            shown = "n/a" if cell["mean"] is None else f"{cell['mean']:#.4g}"
            axis.text(j, i, shown, ha="center", va="center", color="white" if place[i, j] > 0.62 else INK, fontsize=9.5)
        if matrix["trained"][i] in tasks:
            corner = tasks.index(matrix["trained"][i]) - 0.5 + 0.03, i - 0.5 + 0.03
            axis.add_patch(Rectangle(corner, 0.94, 0.94, fill=False, edgecolor="#D55E00", linewidth=2))
    axis.set_xticks(range(len(tasks)), [label(task, 14) for task in tasks])
    axis.set_yticks(range(len(labels)), [label(name, 14) for name in labels])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_ylabel("after", color=FAINT)
    axis.set_title(f"{label(matrix['arm'], 24)}, n = {matrix['n']}", pad=8)
