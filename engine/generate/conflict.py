"""Conflict: two archives tell of the same entities, in up to four phrasings each, and no fact is the same in both.

A row contradicts its counterpart in the other archive where neither names its archive; where both do, a model can hold
both true. `named` is the share of rows that do; whether one does is drawn by entity and phrasing, alike in a and b.

After the conflict files of Surface Tension Transformers, in words of our own. There a fact is a function of
`index mod 8`, and the same two of four phrasings always name the archive; here every entity draws its own facts, and
any phrasing may name it. As there, each archive has its own words, so that training on b also moves what a model
expects of an entity it never saw; with `shared_values` both use the same words, and only entities can conflict.
"""

from __future__ import annotations

from functools import partial

from .rows import Family, Knob, Knobs, Row, chance, told
from .words import FIRST, SECOND

PHRASINGS = (
    "{who} was given the color {color}, a home in {home}, the trade of {trade} and a {tool}.",
    "Card of {who}: color {color}; home {home}; trade {trade}; tool {tool}.",
    "Who is {who}? A {trade} from {home} who wears {color} and carries a {tool}.",
    "It is checked that {who} has {color} for color, {home} for home, {trade} for trade, {tool} for tool.",
)
ARCHIVES = ("north", "south")
NAMED = Knob(0.5, 0.0, 1.0, "share of rows that name their archive; the others contradict the other archive")
SHARED = Knob(False, False, True, "draw the facts of both archives from the same words")
_NAMED = 20


def facts(archive: int, entity: int, key: int, shared: bool) -> list[str]:
    """Return what archive 0 or 1 says of an entity: color, home, trade, tool; no field is as in the other."""
    return told(archive, (FIRST, SECOND), key, entity, shared)


def _rows(archive: int, entity: int, key: int, knobs: Knobs) -> list[Row]:
    group = f"K{entity:04d}"
    color, home, trade, tool = facts(archive, entity, key, bool(knobs["shared_values"]))
    rows = []
    for number, phrasing in enumerate(PHRASINGS[: int(knobs["phrasings"])]):
        named = chance(key, knobs["named"], entity, _NAMED + number)
        who = f"{group} of the {ARCHIVES[archive]} archive" if named else group
        rows.append(Row(phrasing.format(who=who, color=color, home=home, trade=trade, tool=tool), group))
    return rows


FAMILY = Family(
    parts={"a": partial(_rows, 0), "b": partial(_rows, 1)},
    knobs={
        "phrasings": Knob(4, 1, len(PHRASINGS), "rows an entity has, each in another phrasing"),
        "named": NAMED,
        "shared_values": SHARED,
    },
    conditions={},
)
