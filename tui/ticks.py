"""Where an axis gets its numbers, and how numbers are written."""

from __future__ import annotations

import math


def nice(low: float, high: float, most: int) -> list[float]:
    """Return at most `most` round numbers between `low` and `high`."""
    span = high - low
    if not (math.isfinite(span) and span > 1e-300) or most < 1:
        return []
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 5) if m * power >= raw), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)] if last - first < 1000 else []


def decades(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten (as exponents) between two exponents; finer steps where less than two fit."""
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first + 1 >= 2:
        stride = max(1, math.ceil((last - first + 1) / max(most, 1)))
        return [float(k) for k in range(first, last + 1, stride)]
    return [math.log10(v) for v in nice(10**low, 10**high, most) if v > 0] if high < 300 else []


def number(value: object, digits: int = 4) -> str:
    """Write a number in few characters: 0.0123, 1.2e-05, 12.3k; an em dash for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        text = f"{value:.{max(digits - 2, 0)}e}"
        mantissa, _, exponent = text.partition("e")
        return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def labels(ticks: list[float], log: bool = False) -> list[str]:
    """Write ticks with as many digits as tell them apart."""
    values = [10**t if t < 300 else math.inf for t in ticks] if log else ticks
    for digits in range(3, 12):
        texts = [number(v, digits) for v in values]
        if len(set(texts)) == len(texts):
            return texts
    return [number(v) for v in values]


def count(value: object) -> str:
    """Write a whole number with thin groups: 12 345."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return "–"
    return f"{int(value):,}".replace(",", " ")


def span(seconds: object) -> str:
    """Write a stretch of time in two units: 3m 20s, 2h 05m, 4d 1h."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "–"
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m {s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h {s % 3600 // 60:02d}m"
    return f"{s // 86400}d {s % 86400 // 3600}h" if s < 86400 * 10000 else "ages"


def size(bytes_: object) -> str:
    """Write an amount of memory: 512M, 1.5G."""
    if isinstance(bytes_, bool) or not isinstance(bytes_, (int, float)) or not math.isfinite(bytes_) or bytes_ < 0:
        return "–"
    value = float(bytes_)
    for unit in ("B", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.0f}{unit}" if unit in "BkM" or value >= 100 else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.0f}P"
