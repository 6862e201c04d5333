"""What a treatment did to a metric against what it did to the loss, one panel a metric, both with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .figure_style import ARMS, FAINT, INK, house_style, label, png
from .stats import difference_unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = "oDs^vP*X"
MOST_PANELS = 9


def against_loss(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], title: str) -> bytes:
    """Draw a point for each contrast and point of the sweep: right is a better loss, up a better metric."""
    from matplotlib.figure import Figure

    with house_style():
        metrics = list(dict.fromkeys(row["metric"] for row in rows))[:MOST_PANELS]
        columns = min(len(metrics), 3)
        lines = -(-len(metrics) // columns)
        names = list(dict.fromkeys(_name(row) for row in rows))
        figure = Figure(figsize=(max(4.6 * columns, 7), 4.1 * lines + 0.5 + 0.2 * len(names)), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(metrics) :]:
            axis.set_visible(False)
        for axis, metric in zip(axes, metrics, strict=False):
            _panel(axis, [row for row in rows if row["metric"] == metric], arms)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=min(len(texts), 3), fontsize=9)
        figure.suptitle(label(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        return png(figure)


def _name(row: Mapping[str, Any]) -> str:
    at = f" at {label(row['point'], 30)}" if row["point"] else ""
    return f"{label(row['a'], 24)} − {label(row['b'], 24)}{at}"


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    axis.axhline(0, color=FAINT, linewidth=1, zorder=1)
    axis.axvline(0, color=FAINT, linewidth=1, zorder=1)
    points = list(dict.fromkeys(row["point"] for row in rows))
    for row in rows:
        color = ARMS[list(arms).index(row["a"]) % len(ARMS)] if row["a"] in arms else INK
        x, y = row["loss"]["mean"], row["mean"]
        if y is None:
            continue
        axis.errorbar(
            x, y, xerr=_arms_of(x, row["loss"]["interval"]), yerr=_arms_of(y, row["interval"]), color=color,
            fmt=MARKERS[points.index(row["point"]) % len(MARKERS)], markersize=7, markeredgecolor="white",
            elinewidth=1.6, capsize=3, label=_name(row), zorder=3,
        )  # fmt: skip
    unit = label(difference_unit(rows[0]["unit"]), 12)
    loss = label(rows[0]["loss"]["metric"])
    axis.set_title(f"{label(rows[0]['metric'])}{f' [{unit}]' if unit else ''}")
    axis.set_ylabel("change, better →")
    axis.set_xlabel(f"← costs   change of {loss}   better →")
    axis.margins(0.12)


def _arms_of(middle: float, interval: Sequence[float] | None) -> list[list[float]] | None:
    return [[middle - interval[0]], [interval[1] - middle]] if interval else None
