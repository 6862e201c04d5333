"""Which series a chart shows together, and the pictures made from a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import colours
from .follow import AXES, RunStore
from .history import Span
from .picture import Axis, Level, Line, Mark, Picture, Shade

TRAIN = ("train.loss", "val.loss")


def default_charts(keys: Sequence[str]) -> list[list[str]]:
    """Choose the charts of a run nobody has arranged: losses, rates, then metrics and what plugins log."""
    have = set(keys)
    charts = [[k for k in TRAIN if k in have] or ["train.loss"]]
    rates = [k for k in keys if k.split("[")[0] in ("train.lr", "train.base_lr")]
    rates += [k for k in keys if k.split("[")[0].endswith(".ceiling")]
    if rates:
        charts.append(rates[:6])
    metrics = [k for k in keys if k.startswith("val.") and k != "val.loss"]
    if metrics:
        charts.append(metrics[:4])
    scales = [k for k in keys if k.split("[")[0].endswith(".scale")]
    if scales:
        charts.append(scales[:6])
    terms = [k for k in keys if ".term." in k]
    if terms:
        charts.append(terms[:6])
    norm = [k for k in keys if k == "train.grad_norm"]
    return charts + ([norm] if norm else [])


def needed(keys: Iterable[str], axis: str) -> list[str]:
    """Return what must be followed to draw these series on that axis."""
    extra = AXES.get(axis, "")
    return list(dict.fromkeys([*keys, *([extra] if extra else [])]))


def standard(
    store: RunStore,
    keys: Sequence[str],
    *,
    axis: str = "step",
    log: bool = False,
    smooth: int = 0,
    title: str = "",
) -> Picture:
    """Draw series of one run, shaded by the states of its plugins, with marks where something was decided."""
    found = store.axis(axis)
    until = float(max(store.newest(), *(int(d.data.steps[-1]) for d in store.series.values() if d.data.size), 0))
    lines = []
    for k, key in enumerate(keys):
        about = store.about(key)
        lines.append(Line(_label(key, about.unit), k, store.data(key), about.hold, until, smooth))
    return Picture(
        title,
        found,
        lines,
        shades=shades(store.history.spans, found, until),
        marks=[*phase_marks(store, found), *marks(store, found)],
        levels=levels(store, keys),
        log=log,
        span=(0.0, found.position(until)) if until else None,
    )


def _label(key: str, unit: str) -> str:
    from .clean import plain

    return plain(key, 60) + (f" ({unit})" if unit else "")


def shades(spans: Sequence[Span], axis: Axis, until: float) -> list[Shade]:
    """Turn the states of one owner into stretches; the owner with the most changes is the one to shade by."""
    owners = [(s.owner, s.name) for s in spans]
    if not owners:
        return []
    main = max(dict.fromkeys(owners), key=owners.count)
    mine = [s for s in spans if (s.owner, s.name) == main]
    places = colours.assign(sorted({s.value for s in mine}))
    return [
        Shade(axis.position(s.start), axis.position(until if s.end is None else s.end), s.value, places[s.value])
        for s in mine[-500:]
    ]


def marks(store: RunStore, axis: Axis) -> list[Mark]:
    quiet = ("advises", "warning")
    made = [d for d in store.history.decisions if d.what not in quiet and not d.what.startswith("asks")]
    return [Mark(axis.position(d.step), d.what) for d in made[-300:]]


def phase_marks(store: RunStore, axis: Axis) -> list[Mark]:
    return [Mark(axis.position(step), name, "◆") for step, name in store.history.phases[1:200]]


def levels(store: RunStore, keys: Sequence[str]) -> list[Level]:
    shown = {*keys, *(k.split(".", 1)[-1] for k in keys)}
    return [Level(t.value, t.name) for t in store.history.levels.values() if t.series in shown][:8]
