"""How rows of text are divided into train, validation, calibration and test, so that nothing held out is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import orjson

from ctr.engine.errors import DataError
from ctr.engine.seeding import stream

from .text_config import Data
from .text_reading import TextRow, TextSource

FAITHFUL_SHARE = 0.75


def divide(source: TextSource, data: Data) -> dict[str, list[int]]:
    """Return the row indices of each split; calibration is left out where its fraction is 0.

    Indices ascend, except where the split is `faithful`: there they stand in the order of the source's permutation.
    """
    given = {index for rows in source.given.values() for index in rows}
    pool = [index for index in range(len(source.rows)) if index not in given]
    rows = [source.rows[index] for index in pool]
    grouped = any(row.group is not None for row in rows)
    how = data.split_by or ("group" if grouped else "row")
    if how == "group" and not grouped:
        text = f"{source.place}: data.split_by is group, and no row names a group"
        raise DataError(f"{text}; {_naming(data)}, or use `split_by: row`")
    fractions = data.fractions()
    cut = {"group": _by_group, "row": _by_row, "faithful": _faithful}[how]
    splits = {name: [pool[index] for index in part] for name, part in cut(rows, fractions, data.split_seed).items()}
    found = {**{name: list(part) for name, part in source.given.items()}, **splits}
    _check(source.place, found, data, how, rows)
    return found


def place_of(group: str, seed: int) -> float:
    """Return where a group stands in [0, 1): a hash of the seed and its name, so the same in every data set."""
    return stream(seed, f"group {group}") / 2**64


def _by_group(rows: Sequence[TextRow], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Cut [0, 1) at the fractions; a row without a group is a group with the rows that equal it."""
    edges = np.cumsum(list(fractions.values()))
    names = [*fractions, "train"]
    split_of: dict[str | bytes, list[int]] = {}
    splits: dict[str, list[int]] = {name: [] for name in names}
    for index, row in enumerate(rows):
        key = row.group if row.group is not None else content(row)
        if key not in split_of:
            name = key if isinstance(key, str) else f"row.{key.decode()}"
            split_of[key] = splits[names[int(np.searchsorted(edges, place_of(name, seed), side="right"))]]
        split_of[key].append(index)
    return splits


def _by_row(rows: Sequence[TextRow], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Cut the different rows, in a seeded order, at the fractions, each to the nearest whole number but 0."""
    number: dict[bytes, int] = {}
    which = np.array([number.setdefault(content(row), len(number)) for row in rows])
    random = np.random.RandomState(stream(seed, "split") & 0xFFFFFFFF)  # its stream is frozen
    order = random.permutation(len(number))
    splits: dict[str, list[int]] = {}
    start = 0
    for name, share in [*fractions.items(), ("train", 1.0)]:
        stop = start + max(1, int(share * len(number) + 0.5))
        splits[name] = np.flatnonzero(np.isin(which, order[start:stop])).tolist()
        start = stop
    return splits


def _faithful(rows: Sequence[TextRow], fractions: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """Train on the first 75 % of torch's permutation; share the rest out in its order, validation first."""
    from torch import Generator, randperm

    order: list[int] = randperm(len(rows), generator=Generator().manual_seed(seed)).tolist()
    start = max(1, int(FAITHFUL_SHARE * len(rows)))
    splits = {"train": order[:start]}
    held_out, whole = order[start:], sum(fractions.values())
    shares = [(name, fractions[name]) for name in ("val", "test", "calibration") if name in fractions]
    edges = [round(float(edge) / whole * len(held_out)) for edge in np.cumsum([share for _, share in shares])]
    for (name, _), first, last in zip(shares, [0, *edges], edges, strict=False):
        splits[name] = held_out[first:last]
    return splits


def content(row: TextRow) -> bytes:
    """Return what makes two rows equal."""
    return orjson.dumps(row.text if row.text is not None else list(row.messages))


def _check(place: str, splits: Mapping[str, Sequence[int]], data: Data, how: str, rows: Sequence[TextRow]) -> None:
    if len(rows) < 1 + len(data.fractions()):
        count = "one row" if len(rows) == 1 else f"{len(rows)} rows"
        text = f"{place}: has {count} to be split into {', '.join(['train', *data.fractions()])}"
        raise DataError(f"{text}; give more rows (a text file has one row per line)")
    for name in (name for name in ("train", *data.fractions()) if not splits[name]):
        share = f"{data.fractions().get(name, 1 - sum(data.fractions().values())):g}"
        units = {"group": "groups", "row": "different rows", "faithful": "rows"}[how]
        count = str(len({row.group or content(row) if how == "group" else content(row) for row in rows}))
        remedy = "lower the fractions" if name == "train" else f"raise data.{name}_fraction"
        seed = ", take another data.split_seed" if how == "group" else ""
        text = f"{place}: the {name} split is empty: {share} of {count} {units} is none"
        raise DataError(f"{text}; {remedy}{seed} or give more rows")


def _naming(data: Data) -> str:
    ways = {"text": "set data.group_prefix", "jsonl": "give rows the key group", "hub": "set data.group_column"}
    return ways.get(getattr(data, "source", ""), "there is none to set")
