"""What routes keep against what they learn, and how loud each group of the adapter speaks in them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_style import ARMS, FAINT, INK, house_style, label, png
from .report_routes import candidates, heat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_GROUPS, MOST_HEATS = 96, 6


def routes(rows: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw methods of one arm by learning kept and by what the other tasks gain, and the weights of their groups."""
    from matplotlib.figure import Figure

    with house_style():
        maps = [(row["method"], *heat(row)) for row in rows if 0 < len(heat(row)[1]) <= MOST_GROUPS][:MOST_HEATS]
        height = max(3.6, 0.9 + sum(0.75 + 0.28 * len(phases) for _, phases, _, _ in maps))
        figure = Figure(figsize=(11.0 if maps else 6.5, height), layout="constrained")
        parts: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15)) if maps else [figure]
        _plane(parts[0].subplots(), rows, gains)
        if maps:
            axes = parts[1].subplots(len(maps), 1, squeeze=False).ravel()
            for axis, (method, phases, groups, cells) in zip(axes, maps, strict=True):
                _map(axis, method, phases, groups, cells)
        figure.suptitle(label(title, 110), x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
        return png(figure)


def _plane(axis: Axes, rows: Sequence[Mapping[str, Any]], gains: Sequence[Mapping[str, Any]]) -> None:
    """Draw methods with their intervals on the items reported, and a grid's candidates on those that chose, faint."""
    for points in candidates(rows).values():
        x, y = np.array(points).T
        axis.scatter(x, y, s=9, color=FAINT, alpha=0.55, linewidths=0, zorder=1)
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in (row for row in gains if row["against"] == "sequential"):
        by_method.setdefault(row["method"], {})[row["quantity"]] = row
    axis.axhline(0, color=FAINT, linewidth=1)
    axis.axvline(1, color=FAINT, linewidth=1)
    axis.plot([1], [0], marker="s", color=INK, zorder=3)
    axis.annotate("last state", (1, 0), textcoords="offset points", xytext=(5, 5), fontsize=8.5, color=INK)
    for number, (method, found) in enumerate(by_method.items()):
        kept, tasks = found.get("learning kept"), [row for name, row in found.items() if name.startswith("gain of ")]
        if kept is None or kept["mean"] is None or len(tasks) < 2 or any(row["mean"] is None for row in tasks):
            continue
        x, y, color = 1 + kept["mean"], sum(row["mean"] for row in tasks[:-1]), ARMS[number % len(ARMS)]
        if kept["interval"]:
            axis.plot([1 + kept["interval"][0], 1 + kept["interval"][1]], [y, y], color=color, linewidth=1.2, zorder=2)
        axis.plot([x], [y], marker="o", color=color, zorder=3)
        offset = (5, 5) if number % 2 == 0 else (5, -11)
        axis.annotate(label(method, 20), (x, y), textcoords="offset points", xytext=offset, fontsize=8.5, color=color)
    axis.set_xlabel("learning of the last phase that is kept")
    axis.set_ylabel("gain of the other tasks, in loss")
    axis.margins(0.12)


def _map(
    axis: Axes, method: str, phases: Sequence[str], groups: Sequence[str], cells: Sequence[Sequence[float]]
) -> None:
    table = np.array(cells)
    axis.imshow(table, cmap="Blues", vmin=min(0.0, table.min()), vmax=max(1.0, table.max()), aspect="auto")
    if len(groups) <= 16:
        for (i, j), value in np.ndenumerate(table):
            color = "white" if value > 0.62 * max(1.0, table.max()) else INK
            axis.text(j, i, f"{value:.2g}", ha="center", va="center", fontsize=8, color=color)
        names = [_short(group) for group in groups]
        axis.set_xticks(range(len(groups)), names, fontsize=8, rotation=0 if sum(map(len, names)) < 80 else 60)
    else:
        axis.set_xticks([])
        axis.set_xlabel(f"{len(groups)} groups, lower blocks left", fontsize=8.5)
    axis.set_yticks(range(len(phases)), [label(phase, 12) for phase in phases])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(f"{label(method, 30)}: mean weight", fontsize=9.5)


def _short(group: str) -> str:
    """Return the last part of a name, and before it the number of its block where it has one."""
    block = re.search(r"\.(\d+)\.", group)
    return label((f"{block[1]} " if block else "") + group.rpartition(".")[2], 10)
