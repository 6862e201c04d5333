"""What a generator gives and is given: rows, knobs, and draws that belong to an entity and not to a place in a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ctr.engine.seeding import mix

_WORD = 1 << 32
_FIRST, _SECOND = 0, 10
Value = float | int | bool
Words = tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]


@dataclass(frozen=True)
class Row:
    """One line of a part. `group` is the entity it speaks of, by which rows are split so that none leaks."""

    text: str
    group: str


@dataclass(frozen=True)
class Knob:
    """A number that shapes a family. Its default says the type; `low` and `high` are allowed."""

    default: Value
    low: Value
    high: Value
    about: str


Knobs = Mapping[str, Value]


@dataclass(frozen=True)
class Family:
    """A family of data: its parts by name, each a function of (entity, key of the seed, knobs), and its knobs.

    `conditions` are the parts that stand for one another in a study; the other parts always belong to it.
    """

    parts: Mapping[str, Callable[[int, int, Knobs], list[Row]]]
    knobs: Mapping[str, Knob]
    conditions: Mapping[str, str]


def below(key: int, count: int, *place: int) -> int:
    """Draw an integer in [0, count) at a place of the stream `key`; equal arguments draw equal numbers."""
    return (mix(key, *place) % _WORD) * count // _WORD  # mix is good in its low 32 bits


def chance(key: int, share: float, *place: int) -> bool:
    """Draw true with probability `share`: never at 0, always at 1."""
    return mix(key, *place) % _WORD < share * _WORD


def another(key: int, given: int, count: int, *place: int) -> int:
    """Draw an integer in [0, count) that is not `given`."""
    return (given + 1 + below(key, count - 1, *place)) % count


def told(other: int, words: Words, key: int, entity: int, shared: bool) -> list[str]:
    """Return what the first source (`other` 0) or the second (1) says of an entity: one word a field, never the same.

    `words` holds each source's words by field. With `shared` the second source draws from the first one's words.
    """
    first, second = words
    said = []
    for field, own in enumerate(first):
        value = below(key, len(own), entity, _FIRST + field)
        if not other:
            said.append(own[value])
        elif shared:
            said.append(own[another(key, value, len(own), entity, _SECOND + field)])
        else:
            said.append(second[field][below(key, len(second[field]), entity, _SECOND + field)])
    return said
