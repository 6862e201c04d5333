"""A contrast drawn as one small strip: a dot a seed, the mean, its interval, and zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WIDTH, HEIGHT, MIDDLE = 420, 46, 20


def strip(row: Mapping[str, Any]) -> str:
    """Return an inline SVG that takes its colours from the page; empty where there is no difference to draw."""
    differences = row["differences"]
    if not differences:
        return ""
    ends = [*differences, *(row["interval"] or ())]
    reach = max(abs(value) for value in ends) or 1.0

    def x(value: float) -> str:
        return f"{WIDTH / 2 + 0.46 * WIDTH * value / reach:.1f}"

    parts = [f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="3" y2="{HEIGHT - 10}"/>']
    if row["interval"]:
        low, high = map(x, row["interval"])
        parts.append(f'<line class="interval" x1="{low}" x2="{high}" y1="{MIDDLE}" y2="{MIDDLE}"/>')
    for i, value in enumerate(differences):
        parts.append(f'<circle class="seed" cx="{x(value)}" cy="{MIDDLE + 5 * (i % 3 - 1)}" r="3.5"/>')
    if row["mean"] is not None:
        at = float(x(row["mean"]))
        points = f"{at - 6:.1f},{MIDDLE} {at:.1f},{MIDDLE - 8} {at + 6:.1f},{MIDDLE} {at:.1f},{MIDDLE + 8}"
        parts.append(f'<polygon class="mean" points="{points}"/>')
    parts.append(f'<text x="{x(0)}" y="{HEIGHT - 1}" text-anchor="middle">0</text>')
    parts.append(f'<text x="{WIDTH - 2}" y="{HEIGHT - 1}" text-anchor="end">better →</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="paired differences">{"".join(parts)}</svg>'
