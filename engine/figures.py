"""Four panels for each seed, and the same over all seeds.

Arms are told apart by colour and by line style, regimes by tint and by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_data import Line, Span, Trace, change
from .figure_style import ARMS, DASHES, FAINT, INK, STYLES, TINTS, house_style, label, png
from .inference import t_interval
from .stats import LARGEST

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def panels(traces: Sequence[Trace], arms: Sequence[str], names: Mapping[str, str], title: str) -> bytes:
    """Draw metric, train loss, derivative and rate over epochs: one line an arm, or mean and 95 % band over seeds."""
    from matplotlib.figure import Figure

    with house_style():
        shown = [arm for arm in arms if any(t.arm == arm for t in traces)]
        groups = {arm: [t for t in traces if t.arm == arm] for arm in shown}
        ruled = [arm for arm in shown if any(t.spans for t in groups[arm])]
        values = sorted({span.value for t in traces for span in t.spans})
        tints = {value: TINTS[i % len(TINTS)] for i, value in enumerate(values)}
        figure = Figure(figsize=(12, 7.6 + 0.22 * len(ruled)), layout="constrained")
        grid = figure.add_gridspec(3, 2, height_ratios=(max(0.07 * len(ruled), 0.001), 1, 1))
        end = max((t.end for t in traces), default=0.0) or 1.0
        axes = [figure.add_subplot(grid[1 + i // 2, i % 2]) for i in range(4)]
        for column in (0, 1):
            if ruled:
                _ribbon(figure.add_subplot(grid[0, column], sharex=axes[column]), ruled, groups, tints, end)
        for axis in axes:
            axis.set_xlim(0, end)
            axis.set_xlabel("epochs")
            if len(traces) == len(shown) and ruled:
                _shade(axis, groups[ruled[0]][0].spans, tints)
        _draw(axes, groups, arms, names)
        figure.suptitle(label(title, 110), x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
        _legend(figure, axes[0], tints, ruled[:1] if len(traces) == len(shown) else [])
        return png(figure)


def _draw(
    axes: Sequence[Axes], groups: Mapping[str, list[Trace]], arms: Sequence[str], names: Mapping[str, str]
) -> None:
    metric, loss, deriv, rate = axes
    logged, colors = bool(names["watched"]), {}
    for arm, traces in groups.items():
        place = list(arms).index(arm)
        colors[arm] = ARMS[place % len(ARMS)]
        how = {"color": colors[arm], "linestyle": STYLES[place % len(STYLES)], "zorder": 3 + place / 100}
        if len(traces) == 1:
            _faint(loss, traces[0].loss, colors[arm])
        curve(metric, [t.metric for t in traces], how, label(arm))
        curve(loss, [t.epoch_loss for t in traces], how)
        curve(deriv, [t.watched if logged else change(t.epoch_loss) for t in traces], how)
        curve(rate, [t.lr for t in traces], how, held=True)
    every = [t for traces in groups.values() for t in traces]
    _levels(deriv, every)
    if len(every) == len(groups):
        _marks(deriv, groups, colors)
    else:
        _fit(metric, [t.metric.y for t in every])
        _fit(loss, [t.epoch_loss.y for t in every])
        _fit(deriv, [*([t.watched.y for t in every] if logged else []), [v for t in every for v, _ in t.levels]])
    metric.set_title(label(names["metric"]))
    loss.set_title("train loss")
    deriv.set_title(label(names["watched"] or "change of the train loss per epoch"))
    rate.set_title("learning rate")
    _log_scale(rate)


def curve(axis: Axes, lines: Sequence[Line], how: Mapping[str, Any], name: str = "", held: bool = False) -> None:
    """Draw one line, or the mean of several with the 95 % t band where two or more reach."""
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return
    if len(lines) == 1:
        x, y = lines[0]
    else:
        x, y, low, high = band(lines, held)
        axis.fill_between(x, low, high, color=how["color"], alpha=0.16, linewidth=0, zorder=2)
    dot = "o" if len(x) <= 60 and not held else ""
    step = "steps-post" if held else "default"
    axis.plot(x, y, label=name or None, linewidth=1.8, marker=dot, markersize=3, drawstyle=step, **how)


def _fit(axis: Axes, values: Sequence[Any]) -> None:
    """Show what was measured: with two seeds a t band is thirteen times as wide, and would flatten every line."""
    y = np.concatenate([np.asarray(part, dtype=float) for part in values] or [np.empty(0)])
    y = y[np.abs(y) < LARGEST]
    if len(y) and y.max() > y.min():
        room = 0.06 * (y.max() - y.min())
        axis.set_ylim(y.min() - room, y.max() + room)


def band(lines: Sequence[Line], held: bool = False) -> tuple[Any, Any, Any, Any]:
    """Return x, mean, and the 95 % t interval over seeds; where one seed reaches alone the band has no width.

    Epoch values meet at their epochs; a rate, which holds until it changes, is read at 400 places.
    """
    if held:
        x = np.linspace(0, max(float(line.x[-1]) for line in lines), 400)
        rows = [_holding(line, x) for line in lines]
    else:
        x = np.unique(np.concatenate([line.x for line in lines]))
        rows = [_at(line, x) for line in lines]
    table = np.array(rows)
    low, mean, high = np.empty(len(x)), np.empty(len(x)), np.empty(len(x))
    for i, column in enumerate(table.T):
        d = column[np.isfinite(column)]
        mean[i] = d.mean() if len(d) else np.nan
        low[i], high[i] = t_interval(d) or (mean[i], mean[i]) if len(d) else (np.nan, np.nan)
    return x, mean, low, high


def _at(line: Line, x: Any) -> Any:
    values = dict(zip(line.x.tolist(), line.y.tolist(), strict=True))
    return [values.get(place, np.nan) for place in x.tolist()]


def _holding(line: Line, x: Any) -> Any:
    """Return what a line that holds until its next point stands at; NaN after its end."""
    rows = line.y[np.maximum(np.searchsorted(line.x, x, side="right") - 1, 0)]
    return np.where(x > line.x[-1], np.nan, rows)


def _faint(axis: Axes, line: Line, color: Any) -> None:
    axis.plot(line.x, line.y, color=color, alpha=0.28, linewidth=0.8, zorder=2)


def _shade(axis: Axes, spans: Iterable[Span], tints: Mapping[str, str]) -> None:
    for span in spans:
        axis.axvspan(span.start, span.end, color=tints[span.value], alpha=0.45, linewidth=0, zorder=0)


def _ribbon(
    axis: Axes, ruled: Sequence[str], groups: Mapping[str, list[Trace]], tints: Mapping[str, str], end: float
) -> None:
    """Draw a lane for each arm that has regimes: how large a share of its seeds is in which, and when."""
    x = np.linspace(0, end, 481)
    for lane, arm in enumerate(ruled):
        traces, floor = groups[arm], np.full(len(x), float(-lane))
        for value, tint in tints.items():
            share = np.zeros(len(x))
            for t in traces:
                for span in t.spans:
                    share += (span.value == value) & (x >= span.start) & (x < span.end)
            top = floor - 0.86 * share / len(traces)
            axis.fill_between(x, floor, top, color=tint, linewidth=0, step="post")
            floor = top
        for span in traces[0].spans if len(traces) == 1 else []:
            if span.end - span.start > 0.12 * end:
                at = (span.start + span.end) / 2
                axis.text(at, -lane - 0.45, label(span.value, 20), ha="center", va="center", fontsize=7.5, color=INK)
    axis.set_yticks([-lane - 0.43 for lane in range(len(ruled))], [label(arm, 18) for arm in ruled], fontsize=8)
    axis.tick_params(length=0, labelbottom=False)
    axis.set_ylim(-len(ruled), 0)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def _levels(axis: Axes, traces: Iterable[Trace]) -> None:
    """Draw threshold lines, named in a corner: labels at the lines would cover each other."""
    axis.axhline(0, color=FAINT, linewidth=0.8, zorder=1)
    levels = sorted({level for t in traces for level in t.levels}, reverse=True)
    lines = [
        axis.axhline(value, color=INK, linewidth=1, linestyle=DASHES[i % len(DASHES)], zorder=2)
        for i, (value, _) in enumerate(levels)
    ]
    if lines:
        names = [f"{label(name, 24)} {value:g}" for value, name in levels]
        axis.legend(lines, names, loc="lower right", fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")


def _marks(axis: Axes, groups: Mapping[str, list[Trace]], colors: Mapping[str, str]) -> None:
    """Draw where each run entered a regime, in the colour of its arm; the lanes above say which regime."""
    for arm, traces in groups.items():
        for span in [span for t in traces for span in t.spans[1:]]:
            axis.axvline(span.start, color=colors[arm], linewidth=1, linestyle=":", zorder=2)
            axis.plot(
                span.start, 0, "^", color=colors[arm], transform=axis.get_xaxis_transform(), clip_on=False, zorder=5
            )


def _log_scale(axis: Axes) -> None:
    """Use a log axis where every rate is positive; ticks are plain text, since names may hold any character."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    data = [np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()]
    y = np.concatenate(data) if data else np.empty(0)
    y = y[np.isfinite(y)]
    if len(y) and y.min() > 0:
        axis.set_yscale("log")
        axis.set_ylim(y.min() / 1.3, y.max() * 1.3)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        few = y.max() / y.min() < 10
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:.3g}") if few else NullFormatter())


def _legend(figure: Figure, axis: Axes, tints: Mapping[str, str], shaded: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles, names = axis.get_legend_handles_labels()
    handles += [Patch(color=tint) for tint in tints.values()]
    names += [label(value, 24) for value in tints]
    if shaded and tints:
        names[-len(tints)] += f" (shaded: {label(shaded[0], 18)})"
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), fontsize=9)
