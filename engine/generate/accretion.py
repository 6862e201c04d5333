"""Accretion: facts (a), the same facts told again in a later phase (b_...), facts that contradict them (c).

Every entity draws a guild, and for each of four fields a value: its guild's customary one in a share `customs` of the
draws, any of the eight otherwise. A guild's customs are what the parts b tell beside the facts, so they are the one
thing about A that B can teach of an entity that B does not name. Part c draws four other values, names no guild, and
ends in an answer of A's form. Part neutral speaks of other entities in rows of A's build.

After the accretion files of Surface Tension Transformers, in words of our own. There a fact is a function of
`index mod 8`, and c is the profile three further on; here every entity draws its own. There c labels its answer as a
conflict, and neutral has no answer; here both end like A, so that c contradicts, and neutral differs in content alone.
"""

from __future__ import annotations

from .rows import Family, Knob, Knobs, Row, another, below, chance
from .words import FIELDS, FIRST

GUILDS = ("Ash", "Brook", "Crane", "Dune", "Elm", "Forge", "Gull", "Hart")
NEUTRAL = (
    ("rough", "smooth", "grainy", "glossy", "matte"),
    ("low", "middle", "high", "polar", "tilted"),
    ("spiral", "grid", "wave", "radial", "dotted"),
)
_GUILD, _FACTS, _CONFLICT, _NEUTRAL = 0, 10, 30, 50
Facts = tuple[str, str, str, str]


def name(entity: int) -> str:
    return f"E{entity:04d}"


def guild(entity: int, key: int) -> int:
    return below(key, len(GUILDS), entity, _GUILD)


def _values(entity: int, key: int, knobs: Knobs) -> list[int]:
    own = guild(entity, key)
    drawn = [below(key, len(FIRST[field]), entity, _FACTS + field) for field in range(len(FIELDS))]
    usual = [chance(key, knobs["customs"], entity, _FACTS + len(FIELDS) + field) for field in range(len(FIELDS))]
    return [own if follows else value for value, follows in zip(drawn, usual, strict=True)]


def _words(values: list[int]) -> Facts:
    color, home, trade, tool = (words[value] for words, value in zip(FIRST, values, strict=True))
    return color, home, trade, tool


def facts(entity: int, key: int, knobs: Knobs) -> Facts:
    """Return what parts a and b say of an entity: color, home, trade, tool."""
    return _words(_values(entity, key, knobs))


def conflicting_facts(entity: int, key: int, knobs: Knobs) -> Facts:
    """Return what part c says of an entity; no field is as in `facts`."""
    values = _values(entity, key, knobs)
    return _words([another(key, v, len(FIRST[f]), entity, _CONFLICT + f) for f, v in enumerate(values)])


def _tells(told: Facts) -> str:
    return "wears {}, lives in {}, is a {} and owns a {}".format(*told)


def _answer(who: str, told: tuple[str, ...], label: str = "Answer") -> str:
    return f"{label} {who}: {', '.join(told)}."


def _custom(number: int) -> str:
    _, home, trade, _ = _words([number] * len(FIELDS))
    return f"{home} {trade}s"


def _a(entity: int, key: int, knobs: Knobs) -> list[Row]:
    who, told = name(entity), facts(entity, key, knobs)
    return [Row(f"{who} of guild {GUILDS[guild(entity, key)]} {_tells(told)}. {_answer(who, told)}", who)]


def _related(entity: int, key: int, knobs: Knobs) -> list[Row]:
    who, told, own = name(entity), facts(entity, key, knobs), guild(entity, key)
    color, home, trade, tool = told
    text = f"Recall {who}, guild {GUILDS[own]} ({_custom(own)}): a {trade} of {home} in {color} with a {tool}."
    return [Row(f"{text} {_answer(who, told)}", who)]


def _related_strong(entity: int, key: int, knobs: Knobs) -> list[Row]:
    again = _answer(name(entity), facts(entity, key, knobs), "Check")
    return [Row(f"{row.text} {again}", row.group) for row in _related(entity, key, knobs)]


def _rehearsal(entity: int, key: int, knobs: Knobs) -> list[Row]:
    own = guild(entity, key)
    custom = f"Guild {GUILDS[own]} is mostly {_custom(own)}."
    return [Row(f"{row.text} {custom}", row.group) for row in _a(entity, key, knobs)]


def _c(entity: int, key: int, knobs: Knobs) -> list[Row]:
    who, told = name(entity), conflicting_facts(entity, key, knobs)
    return [Row(f"Changed: {who} now {_tells(told)}. {_answer(who, told)}", who)]


def _neutral(entity: int, key: int, knobs: Knobs) -> list[Row]:
    who = f"N{entity:04d}"
    finish, orbit, mark = (words[below(key, len(words), entity, _NEUTRAL + f)] for f, words in enumerate(NEUTRAL))
    text = f"{who} is a relic of {finish} finish, kept on a {orbit} orbit, with a {mark} mark."
    return [Row(f"{text} {_answer(who, (finish, orbit, mark))}", who)]


FAMILY = Family(
    parts={
        "a": _a,
        "b_related": _related,
        "b_related_strong": _related_strong,
        "b_rehearsal": _rehearsal,
        "c": _c,
        "neutral": _neutral,
    },
    knobs={"customs": Knob(0.5, 0.0, 1.0, "share of facts that are as the entity's guild has them")},
    conditions={
        "related": "b_related",
        "related_strong": "b_related_strong",
        "rehearsal": "b_rehearsal",
        "neutral": "neutral",
    },
)
