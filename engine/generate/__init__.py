"""Texts to train on that are made, not found: families of parts that share entities, and agree or contradict.

A row depends on (family, part, entity, seed, knobs) alone: more entities add rows and change none, and parts of equal
seed and knobs speak of the same entities. Every character is ASCII, one byte and one token.
"""

from __future__ import annotations

from collections.abc import Mapping

from ctr.engine.errors import DataError, guess
from ctr.engine.seeding import stream
from ctr.engine.text import printable

from . import accretion, conflict, conflict2
from .rows import Family, Knob, Knobs, Row, Value

__all__ = ["CONDITIONS", "KNOBS", "MOST", "PARTS", "Knob", "Row", "generate", "settled"]

MOST = 1_000_000
"""The most entities: some hundreds of MB of text."""
_FAMILIES: Mapping[str, Family] = {
    "accretion": accretion.FAMILY,
    "conflict": conflict.FAMILY,
    "conflict2": conflict2.FAMILY,
}
PARTS: Mapping[str, tuple[str, ...]] = {name: tuple(family.parts) for name, family in _FAMILIES.items()}
KNOBS: Mapping[str, Mapping[str, Knob]] = {name: family.knobs for name, family in _FAMILIES.items()}
CONDITIONS: Mapping[str, Mapping[str, str]] = {name: family.conditions for name, family in _FAMILIES.items()}
"""The parts that stand for one another in a study, by condition."""


def generate(family: str, part: str, entities: int, seed: int, **knobs: Value) -> list[Row]:
    """Return the rows of a part, entity by entity; raises `DataError` for what is unknown or out of range."""
    values = settled(family, entities, seed, knobs)
    row = _FAMILIES[family].parts.get(part)
    if row is None:
        raise _unknown(f"part of {family}", part, PARTS[family])
    key = stream(seed, f"generate.{family}")
    return [one for entity in range(entities) for one in row(entity, key, values)]


def settled(family: str, entities: int, seed: int, knobs: Mapping[str, Value]) -> Knobs:
    """Return the value of every knob of a family, given or by default; raises `DataError` as `generate` does."""
    if family not in _FAMILIES:
        raise _unknown("family of generated data", family, _FAMILIES)
    _check("entities", entities, Knob(256, 1, MOST, ""))
    _check("seed", seed, Knob(0, 0, 2**63 - 1, ""))
    known = KNOBS[family]
    for name, value in knobs.items():
        if name not in known:
            raise _unknown(f"knob of {family}", name, known)
        _check(name, value, known[name])
    return {name: knobs.get(name, knob.default) for name, knob in known.items()}


def _check(name: str, value: Value, knob: Knob) -> None:
    whole = type(knob.default)
    fits = type(value) is whole or (whole is float and type(value) is int)
    if fits and knob.low <= value <= knob.high:
        return
    between = f"from {knob.low} to {knob.high}"
    wanted = {bool: "true or false", int: f"a whole number {between}", float: f"a number {between}"}[whole]
    raise DataError(f"{name} is {printable(value, 80)}; give {wanted}")


def _unknown(what: str, given: str, known: Mapping[str, object] | tuple[str, ...]) -> DataError:
    shown = printable(given, 80)
    return DataError(f"no {what} {shown or 'of an empty name'}; there are {', '.join(known)}.{guess(given, known)}")
