"""What set the rate and what made up the loss at one step: the numbers behind the two panels."""

from __future__ import annotations

import math
from typing import NamedTuple

from .follow import RunStore


class Factor(NamedTuple):
    """A plugin's factor on the base rate, or its ceiling, with the reason it gave."""

    plugin: str
    value: float
    why: str = ""


class Rate(NamedTuple):
    """The rate of one parameter group: base × factors, then the lowest ceiling."""

    group: str
    base: float | None
    factors: tuple[Factor, ...]
    ceilings: tuple[Factor, ...]
    used: float | None

    @property
    def product(self) -> float | None:
        return None if self.base is None else self.base * math.prod(f.value for f in self.factors)

    @property
    def binding(self) -> Factor | None:
        """Return the ceiling that set the rate, if one did."""
        lowest = min((c for c in self.ceilings if not math.isnan(c.value)), key=lambda c: c.value, default=None)
        if lowest is None or (self.product is not None and self.product <= lowest.value):
            return None
        return lowest


class Term(NamedTuple):
    plugin: str
    name: str
    value: float | None
    weight: float | None

    @property
    def share(self) -> float | None:
        """Return what the term adds to the total."""
        return None if self.value is None or self.weight is None else self.value * self.weight


class Loss(NamedTuple):
    """The task loss, each term, and their weighted sum as logged."""

    task: float | None
    terms: tuple[Term, ...] = ()
    total: float | None = None


class Keys(NamedTuple):
    """Which series of a run the panels need."""

    rate: tuple[str, ...] = ()
    loss: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("",)
    terms: tuple[tuple[str, str], ...] = ()


def keys(names: list[str]) -> Keys:
    """Find the series of rates, factors, ceilings, reasons, terms and weights among a run's series."""
    rate = [n for n in names if _part(n) in ("scale", "ceiling", "why") or _bare(n) in ("train.lr", "train.base_lr")]
    loss = [n for n in names if n in ("train.loss", "train.total") or _part(n).startswith(("term.", "weight."))]
    groups = dict.fromkeys(_group(n) for n in rate if _part(n) != "why")
    terms = [(n.split(".", 1)[0], _part(n)[5:]) for n in loss if _part(n).startswith("term.")]
    return Keys(tuple(rate), tuple(loss), tuple(groups) or ("",), tuple(terms))


def rates(store: RunStore, need: Keys, step: float) -> list[Rate]:
    """Read the rate of every group at a step."""
    return [_rate(store, need, group, step) for group in need.groups]


def loss(store: RunStore, need: Keys, step: float) -> Loss:
    """Read task loss and terms at a step."""
    terms = tuple(
        Term(p, t, _near(store, f"{p}.term.{t}", step), _at(store, f"{p}.weight.{t}", step)) for p, t in need.terms
    )
    return Loss(_near(store, "train.loss", step), terms, _near(store, "train.total", step))


def _rate(store: RunStore, need: Keys, group: str, step: float) -> Rate:
    suffix = f"[{group}]" if group else ""
    factors: list[Factor] = []
    ceilings: list[Factor] = []
    for key in need.rate:
        plugin, part = key.split(".", 1)[0], _part(key)
        if part not in ("scale", "ceiling") or _group(key) not in (group, ""):
            continue
        if not _group(key) and group and f"{plugin}.{part}{suffix}" in need.rate:
            continue
        value = _at(store, key, step)
        if value is not None:
            found = Factor(plugin, value, store.label_at(f"{plugin}.why", step))
            (factors if part == "scale" else ceilings).append(found)
    base = _first(_at(store, f"train.base_lr{suffix}", step), _at(store, "train.base_lr", step) if not group else None)
    used = _first(_near(store, f"train.lr{suffix}", step), _near(store, "train.lr", step) if not group else None)
    return Rate(group, base, tuple(factors), tuple(ceilings), used)


def _first(*values: float | None) -> float | None:
    return next((v for v in values if v is not None), None)


def _at(store: RunStore, key: str, step: float) -> float | None:
    row = store.data(key).at(step)
    return row[1] if row else None


def _near(store: RunStore, key: str, step: float) -> float | None:
    data = store.data(key)
    row = data.at(step) if store.about(key).hold else data.nearest(step)
    return row[1] if row else None


def _group(key: str) -> str:
    return key[key.index("[") + 1 : -1] if "[" in key and key.endswith("]") else ""


def _bare(key: str) -> str:
    return key.split("[", 1)[0]


def _part(key: str) -> str:
    """Return what follows the owner, without the group; nothing for the engine's own series."""
    owner, _, rest = _bare(key).partition(".")
    return "" if owner in ("train", "val", "calibration", "test", "clock") else rest
