"""Outcomes against a swept value, one panel a metric: each arm's mean and interval over seeds, its reference beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_style import ARMS, INK, STYLES, house_style, label, png
from .trend import spans_decades

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 9
MOST_FAINT = 12


def dose_response(rows: Sequence[Mapping[str, Any]], arms: Sequence[str], title: str) -> bytes:
    """Draw a line for each arm and each choice of the other swept keys; thin lines are seeds."""
    from matplotlib.figure import Figure

    with house_style():
        metrics = list(dict.fromkeys(row["metric"] for row in rows))[:MOST_PANELS]
        columns = min(len(metrics), 3)
        lines = -(-len(metrics) // columns)
        figure = Figure(figsize=(max(4.8 * columns, 7.5), 4.0 * lines + 0.9), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(metrics) :]:
            axis.set_visible(False)
        for axis, metric in zip(axes, metrics, strict=False):
            _panel(axis, [row for row in rows if row["metric"] == metric], arms)
        handles, texts = axes[0].get_legend_handles_labels()
        figure.legend(handles, texts, loc="outside lower center", ncols=min(len(texts), 4), fontsize=9)
        figure.suptitle(label(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        return png(figure)


def _panel(axis: Axes, rows: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> None:
    numeric = all(row["numeric"] for row in rows)
    values = list(dict.fromkeys(point["value"] for row in rows for point in row["points"]))
    if not numeric:
        values = list(dict.fromkeys(map(str, values)))
    place = {value: float(value) if numeric else float(i) for i, value in enumerate(values)}
    lone: dict[str, int] = {}
    for row in rows:
        number = lone[row["arm"]] = lone.get(row["arm"], -1) + 1
        color, style = _color(row["arm"], arms), STYLES[number % len(STYLES)]
        x = [place[p["value"] if numeric else str(p["value"])] for p in row["points"]]
        if sum(one["arm"] == row["arm"] for one in rows) == 1:
            _faint(axis, x, row["points"], color)
        _line(axis, x, row["points"], color, style, _name(row))
    for reference in dict.fromkeys(row["reference"] for row in rows if row["reference"]):
        if all(row["arm"] != reference for row in rows):
            row = next(row for row in rows if row["reference"] == reference)
            _beside(axis, row["points"][0]["beside"], _color(reference, arms), label(reference, 24))
    _axis(axis, rows[0], list(place.values()), [label(v, 16) for v in values] if not numeric else None)


def _color(arm: str, arms: Sequence[str]) -> str:
    return ARMS[list(arms).index(arm) % len(ARMS)] if arm in arms else INK


def _name(row: Mapping[str, Any]) -> str:
    fixed = ", ".join(f"{label(key.rsplit('.', 1)[-1], 20)} {label(value, 16)}" for key, value in row["others"])
    return label(row["arm"], 24) + (f" ({fixed})" if fixed else "")


def _line(axis: Axes, x: list[float], points: Sequence[Mapping[str, Any]], color: str, style: Any, name: str) -> None:
    y = np.array([np.nan if p["mean"] is None else p["mean"] for p in points])
    ends = [p["interval"] or (v, v) for p, v in zip(points, y, strict=True)]
    spread = np.abs(np.array(ends, dtype=float).T - y)
    axis.errorbar(
        x, y, yerr=spread, color=color, linestyle=style, marker="o", markersize=5, linewidth=1.8, capsize=3,
        elinewidth=1.4, label=name, zorder=4,
    )  # fmt: skip


def _faint(axis: Axes, x: list[float], points: Sequence[Mapping[str, Any]], color: str) -> None:
    seeds = list(points[0]["by_seed"])
    for seed in seeds if len(seeds) <= MOST_FAINT else []:
        y = [p["by_seed"][seed] for p in points]
        y = [np.nan if v is None else v for v in y]
        axis.plot(x, y, color=color, alpha=0.3, linewidth=0.8, zorder=2)


def _beside(axis: Axes, beside: Mapping[str, Any] | None, color: str, name: str) -> None:
    """Draw an arm without a sweep as a level with its interval."""
    if beside is None or beside["mean"] is None:
        return
    axis.axhline(beside["mean"], color=color, linewidth=1.6, linestyle="--", label=name, zorder=3)
    if beside["interval"]:
        axis.axhspan(*beside["interval"], color=color, alpha=0.12, linewidth=0, zorder=1)


def _axis(axis: Axes, row: Mapping[str, Any], x: list[float], names: list[str] | None) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if names is not None:
        axis.set_xticks(x, names)
    elif spans_decades(x):
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        if len(x) <= 8:
            axis.set_xticks(sorted(x))
    unit = label(row["unit"], 12)
    axis.set_title(f"{label(row['metric'])}{f' [{unit}]' if unit else ''}: {row['better']} is better")
    axis.set_xlabel(label(row["key"], 60))
