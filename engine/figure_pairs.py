"""Every paired difference as a dot, so that the eye sees what the interval is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_style import INK, house_style, label, png
from .stats import difference_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def differences(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """Draw every paired difference as a dot, with mean and 95 % interval; right of zero is better."""
    from matplotlib.figure import Figure

    with house_style():
        metrics = list(dict.fromkeys(row["metric"] for row in rows))
        counts = [sum(row["metric"] == metric for row in rows) for metric in metrics]
        figure = Figure(figsize=(10, 1.2 + 0.42 * sum(counts) + 0.7 * len(metrics)), layout="constrained")
        axes = figure.subplots(len(metrics), 1, squeeze=False, height_ratios=[c + 0.6 for c in counts])[:, 0]
        for axis, metric in zip(axes, metrics, strict=True):
            _strip(axis, [row for row in rows if row["metric"] == metric])
        figure.suptitle(label(title, 100), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        return png(figure)


def _strip(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axis.axvline(0, color=INK, linewidth=1, zorder=1)
    for place, row in enumerate(rows):
        d = np.array(row["differences"])
        color = {"improves": "#009E73", "worse": "#D55E00"}.get(row["verdict"], "#5b6b7a")
        nudge = np.linspace(-0.13, 0.13, len(d)) if len(d) > 1 else np.zeros(len(d))
        axis.plot(d, place + nudge, "o", color=color, alpha=0.5, markersize=5.5, markeredgewidth=0, zorder=3)
        if row["interval"]:
            axis.plot(row["interval"], [place, place], color=color, linewidth=2.4, zorder=2, solid_capstyle="butt")
        if row["mean"] is not None:
            axis.plot([row["mean"]], [place], "D", color=color, markersize=8, markeredgecolor="white", zorder=4)
        axis.annotate(
            label(row["verdict"]),
            (1.01, place),
            xycoords=axis.get_yaxis_transform(),
            va="center",
            fontsize=9,
            color=color,
        )
    names = [
        f"{label(r['a'], 24)} − {label(r['b'], 24)}" + (f"\n{label(r['point'], 30)}" if r["point"] else "")
        for r in rows
    ]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.45, -0.55)
    axis.grid(False, axis="y")
    unit = label(difference_unit(rows[0]["unit"]), 12)
    axis.set_title(f"{label(rows[0]['metric'])}{f' [{unit}]' if unit else ''}: better →")
    low, high = axis.get_xlim()
    reach = max(abs(low), abs(high))
    axis.set_xlim(-reach, reach)
