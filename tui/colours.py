"""Colours that people with any colour vision can tell apart (Okabe and Ito), and what carries meaning without them."""

from __future__ import annotations

from collections.abc import Iterable

DARK = ("#56b4e9", "#e69f00", "#00b383", "#f0e442", "#e07bb5", "#ff7a45", "#b3b3b3", "#8f9bff")
LIGHT = ("#0072b2", "#b86e00", "#007a5a", "#8a7400", "#a8407f", "#c23f00", "#555555", "#4b46c8")

# a sign beside every colour: status must be readable in one colour, too
STATUS = {
    "live": ("●", "#56b4e9", "#0072b2"),
    "paused": ("‖", "#f0e442", "#8a7400"),
    "queued": ("○", "#8a94a6", "#6b7280"),
    "finished": ("✔", "#00b383", "#007a5a"),
    "failed": ("✖", "#ff7a45", "#c23f00"),
    "stopped": ("■", "#e69f00", "#b86e00"),
    "stale": ("?", "#e07bb5", "#a8407f"),
    "gone": ("∅", "#b3b3b3", "#555555"),
    "unknown": ("·", "#8a94a6", "#6b7280"),
}


def series(k: int, dark: bool = True) -> str:
    """Return the colour of the k-th line of a chart."""
    palette = DARK if dark else LIGHT
    return palette[k % len(palette)]


def status(label: str, dark: bool = True) -> tuple[str, str]:
    """Return the sign and the colour of a run's status."""
    sign, on_dark, on_light = STATUS.get(label, STATUS["unknown"])
    return sign, on_dark if dark else on_light


def mix(a: str, b: str, share: float) -> str:
    """Return `share` of colour `a` laid over `b`."""
    one, two = _rgb(a), _rgb(b)
    return "#" + "".join(f"{round(x * share + y * (1 - share)):02x}" for x, y in zip(one, two, strict=True))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def assign(names: Iterable[str]) -> dict[str, int]:
    """Give each name a place in the palette, in the order of first appearance."""
    return {name: k for k, name in enumerate(dict.fromkeys(names))}
