"""The paired panel as text: each seed a dot, the interval, zero, and the figures that carry the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from ctr.engine.stats import difference_unit, sentence

from . import colours, ticks
from .clean import plain
from .groups import Contrast
from .texts import wrapped

VERDICTS = {
    "improves": ("▲ improves", 2),
    "worse": ("▼ worse", 5),
    "no difference": ("≈ no difference can be claimed", 1),
    "identical": ("= identical", 0),
    "cannot say": ("… cannot say yet", 6),
}


def panel(contrasts: Sequence[Contrast], width: int, dark: bool) -> Text:
    """Write all contrasts of one metric on one scale."""
    if not contrasts:
        return Text("Nothing to compare: the study has one arm, or names no contrast.", "dim", end="")
    out = Text(end="", no_wrap=True)
    ends = [v for c in contrasts for v in (*c.result.differences, *(c.result.interval or ()))]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    if not high > low:
        low, high = low - 1.0, high + 1.0
    pad = (high - low) * 0.05
    low, high = low - pad, high + pad
    for k, contrast in enumerate(contrasts):
        out.append("\n\n" if k else "")
        out.append_text(_one(contrast, width, low, high, dark))
    return out


def _one(c: Contrast, width: int, low: float, high: float, dark: bool) -> Text:
    out = Text(end="", no_wrap=True)
    unit = difference_unit(c.unit)
    out.append(f"{c.a} − {c.b}", "bold")
    out.append(f"{' at ' + c.point if c.point else ''}  {plain(c.metric, 60)}{' in ' + unit if unit else ''}", "dim")
    sign, colour = VERDICTS.get(c.result.verdict, VERDICTS["cannot say"])
    out.append("\n")
    out.append(sign, "bold " + colours.series(colour, dark))
    if c.result.differences:
        out.append("\n")
        out.append_text(_strip(c, width, low, high, dark))
    for text in _figures(c, unit):
        for part in wrapped(text, width):
            out.append("\n" + part)
    return out


def _strip(c: Contrast, width: int, low: float, high: float, dark: bool) -> Text:
    """Draw seeds, interval and zero over one another on two rows, and the scale below."""

    def at(value: float) -> int:
        return min(max(round((value - low) / (high - low) * (width - 1)), 0), width - 1)

    dots, span, scale = [" "] * width, [" "] * width, [" "] * width
    for place in (dots, span):
        place[at(0.0)] = "┊"
    for value in c.result.differences:
        k = at(value)
        dots[k] = {" ": "●", "┊": "●", "●": "2"}.get(
            dots[k], str(min(int(dots[k]) + 1, 9)) if dots[k].isdigit() else "●"
        )
    if c.result.interval:
        a, b = at(c.result.interval[0]), at(c.result.interval[1])
        span[a : b + 1] = ["─"] * (b - a + 1)
        span[a], span[b] = "├", "┤"
    if c.result.mean is not None:
        span[at(c.result.mean)] = "◆"
    for tick in ticks.nice(low, high, max(width // 12, 2)):
        text = ticks.number(tick, 3)
        start = min(max(at(tick) - len(text) // 2, 0), width - len(text))
        if all(ch == " " for ch in scale[max(start - 1, 0) : start + len(text) + 1]):
            scale[start : start + len(text)] = list(text)
    out = Text("".join(dots), colours.series(0, dark), end="", no_wrap=True)
    out.append("\n" + "".join(span), "bold")
    out.append("\n" + "".join(scale), "dim")
    return out


def _figures(c: Contrast, unit: str) -> list[str]:
    """Return the sentences below the strip."""
    r = c.result
    lines = [plain(sentence(r, c.a, c.b, c.metric, c.unit), 600)]
    lines.append(
        f"wins {r.wins}  ties {r.ties}  losses {r.losses}"
        + (f"  ·  {c.waiting} seed{'s' * (c.waiting > 1)} still at work" if c.waiting else "")
    )
    if r.sign_p is not None:
        kind = "exact" if r.sign_exact else "sampled"
        lines.append(f"sign-flip p = {r.sign_p:.3g} ({kind}); attainable {ticks.number(r.attainable_p, 3)}")
    if r.attainable:
        lines.append(plain(r.attainable, 200))
    if r.n >= 2 and r.verdict == "no difference":
        lines.append(f"needs: {plain(r.seeds_note, 200)}" + _more(r.seeds_needed, r.n))
    if r.bootstrap:
        lines.append(f"bootstrap 95 % [{r.bootstrap[0]:+.3g}, {r.bootstrap[1]:+.3g}] {r.bootstrap_kind}")
    for seed, why in r.dropped[:4]:
        lines.append(f"seed {seed} dropped: {plain(why, 120)}")
    return lines


def _more(needed: int | None, n: int) -> str:
    return f" (at least {needed - n} more)" if needed is not None and needed > n else ""
