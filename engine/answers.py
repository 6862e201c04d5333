"""What an answer must be made of. The host looks at each object that a plugin answers with, once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .hooks import EpochAdvice, LossTerm, LrAdvice, Reset
from .text import printable, slug_problem

MOST_ACCUM = 1 << 20


class Refused(ValueError):
    """An answer that is not what its hook asks for; the host adds plugin, hook, phase and step."""


def _number(value: Any, what: str) -> None:
    """Accept a real number or a real 0-d tensor."""
    if hasattr(value, "ndim") and hasattr(value, "is_floating_point"):
        if value.ndim or not value.is_floating_point():
            shown = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
            raise Refused(f"answered {what} as {shown}; a real 0-d tensor is expected")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"answered {what} {printable(value, 40)}, not a number")
    try:
        float(value)
    except OverflowError:
        raise Refused(f"answered {what} beyond what a float holds") from None


def _text(value: Any, what: str) -> None:
    if not isinstance(value, str):
        raise Refused(f"answered {what} {printable(value, 40)}, not a text")


def _typed(answer: Any, wanted: type) -> None:
    if not isinstance(answer, wanted):
        raise Refused(f"answered {type(answer).__name__}, not {wanted.__name__}")


def check_rate(answer: Any) -> None:
    """Accept `LrAdvice` of numbers, 0-d tensors, or maps from a group's name to these."""
    _typed(answer, LrAdvice)
    for what in ("scale", "ceiling"):
        value = getattr(answer, what)
        for group, number in value.items() if isinstance(value, Mapping) else (("", value),):
            _text(group, f"a group of {what}")
            _number(number, what)
    _text(answer.why, "why")


def check_reset(answer: Any) -> None:
    """Accept `Reset` with a known policy for A, a finite factor for B, and factors named `a` and `b`."""
    _typed(answer, Reset)
    if answer.a not in ("keep", "redraw") and not callable(answer.a):
        raise Refused(f"answered a {printable(answer.a, 40)}; keep, redraw or a function is expected")
    _number(answer.b, "b")
    if not math.isfinite(float(answer.b)):
        raise Refused(f"answered b {answer.b}; it must be finite")
    if not set(answer.clear) <= {"a", "b"}:
        raise Refused(f"answered clear {printable(sorted(map(str, answer.clear)), 80)}; of a and b")


def check_epoch(answer: Any) -> None:
    """Accept `EpochAdvice` with a whole number from 1 on, a text to save under, and a plain yes or no."""
    _typed(answer, EpochAdvice)
    accum = answer.grad_accum
    if accum is not None and (isinstance(accum, bool) or not isinstance(accum, int) or not 1 <= accum <= MOST_ACCUM):
        raise Refused(f"answered grad_accum {printable(accum, 40)}; a whole number from 1 on is expected")
    if answer.save is not None:
        _text(answer.save, "save")
    if not isinstance(answer.stop_phase, bool):
        raise Refused(f"answered stop_phase {printable(answer.stop_phase, 40)}; True or False is expected")
    _text(answer.why, "why")


def terms_of(name: str, answer: Any) -> list[tuple[str, LossTerm]]:
    """Return the terms of an answer stamped with `name`, in sorted order."""
    if isinstance(answer, LossTerm | str) or not isinstance(answer, Iterable):
        raise Refused(f"answered {type(answer).__name__}, not a list of LossTerm")
    terms = list(answer)
    for term in terms:
        if not isinstance(term, LossTerm):
            raise Refused(f"answered a list with {type(term).__name__}, not LossTerm")
        _text(term.name, "a term's name")
        problem = slug_problem(term.name)
        if problem:
            raise Refused(f"answered a term whose name {printable(term.name, 80)} {problem}")
        if getattr(term.value, "ndim", None) != 0 or not term.value.is_floating_point():
            raise Refused(f"answered term {term.name} with a value that is no 0-d tensor of real numbers")
        if isinstance(term.weight, bool) or not isinstance(term.weight, int | float):
            raise Refused(f"answered term {term.name} with weight {printable(term.weight, 40)}, not a number")
    if len({term.name for term in terms}) < len(terms):
        raise Refused("answered two terms of one name")
    return [(name, term) for term in sorted(terms, key=lambda term: term.name)]


CHECKS: Mapping[str, Callable[[Any], None]] = {
    "schedule_lr": check_rate,
    "adapter_reset": check_reset,
    "on_epoch_end": check_epoch,
}
