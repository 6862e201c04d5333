"""Conflict2: two logs give the same units orders, one row each, of four words and two numbers that all differ.

`named` and `shared_values` are as in the family `conflict`.

After the conflict2 files of Surface Tension Transformers, in words of our own. There every value is linear in the
index, modulo 5, 18 or 80, and every row names its archive, so that none contradicts; here each unit draws its own
values, and half of the rows name no log unless `named` says otherwise.
"""

from __future__ import annotations

from functools import partial

from .conflict import NAMED, SHARED
from .rows import Family, Knobs, Row, another, below, chance, told

FIRST = (
    ("ridge", "canal", "ferry", "bank", "road"),
    ("read", "dock", "chart", "ship", "call"),
    ("rain", "fog", "heat", "wind", "snow"),
    ("wait", "turn", "check", "cool", "moor"),
)
SECOND = (
    ("loop", "spur", "ford", "pass", "quay"),
    ("write", "send", "mine", "sell", "jam"),
    ("frost", "dust", "smoke", "calm", "hail"),
    ("push", "free", "skip", "split", "leave"),
)
QUOTA, WINDOW = (10, 80), (2, 18)
"""The smallest number and how many there are."""
LOGS = ("east", "west")
_QUOTA, _NAMED = 20, 40


def facts(log: int, unit: int, key: int, shared: bool) -> list[str]:
    """Return what log 0 or 1 orders: route, permission, cause, action, quota, window; none is as in the other."""
    orders = told(log, (FIRST, SECOND), key, unit, shared)
    for number, (least, count) in enumerate((QUOTA, WINDOW)):
        value = below(key, count, unit, _QUOTA + 2 * number)
        if log:
            value = another(key, value, count, unit, _QUOTA + 2 * number + 1)
        orders.append(str(least + value))
    return orders


def _row(log: int, unit: int, key: int, knobs: Knobs) -> list[Row]:
    group = f"U{unit:04d}"
    route, permission, cause, action, quota, window = facts(log, unit, key, bool(knobs["shared_values"]))
    who = f"{group} of the {LOGS[log]} log" if chance(key, knobs["named"], unit, _NAMED) else group
    text = f"{who} takes {route}, quota {quota}, may {permission}, at {window}, on {cause} {action}."
    answer = ", ".join((route, quota, permission, window, cause, action))
    return [Row(f"{text} Answer {group}: {answer}.", group)]


FAMILY = Family(
    parts={"a": partial(_row, 0), "b": partial(_row, 1)},
    knobs={"named": NAMED, "shared_values": SHARED},
    conditions={},
)
