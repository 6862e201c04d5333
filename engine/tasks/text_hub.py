"""Data sets of the Hugging Face hub as rows, through the package `datasets`, which is imported only here."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import islice
from typing import Any

from ctr.engine.errors import DataError, MissingDependency, guess
from ctr.engine.text import printable

from .text_config import HubData
from .text_reading import Problems, TextRow, TextSource, made_row, messages_problem, text_problem

_OFFLINE = (
    "without a network, fetch it once where there is one and copy the cache folder (the environment variable HF_HOME "
    "says where), or save it as JSONL and use `source: jsonl`"
)


def read_hub(data: HubData) -> TextSource:
    """Read a data set by name; rows whose text is blank are left out, as no one can edit them."""
    place = f"hub:{data.name}"
    problems = Problems(place)
    wanted = {"train": data.split, "val": data.val_split, "test": data.test_split}
    rows: list[TextRow] = []
    given: dict[str, list[int]] = {}
    for split, name in wanted.items():
        if name is None:
            continue
        found = list(islice(_rows(_load(data, name), data, name, problems), data.max_rows))
        if split != "train":
            given[split] = list(range(len(rows), len(rows) + len(found)))
        rows += found
        problems.settle()
        if not found:
            raise DataError(f"{place}: the split {printable(name)} has no row with text in {printable(data.column)}")
    return TextSource(place, tuple(rows), given)


def _load(data: HubData, split: str) -> Any:
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        text = f"data.source: hub needs the package datasets, which cannot be imported ({printable(error, 200)})"
        raise MissingDependency(f"{text}; install it with: pip install datasets") from error
    try:
        return datasets.load_dataset(data.name, data.config, split=split, revision=data.revision)
    except Exception as error:  # the package raises its own, its dependencies' and plain errors alike
        what = f"hub:{data.name}: the split {printable(split)} cannot be loaded"
        raise DataError(
            f"{what}: {type(error).__name__}: {printable(error, 400)}. Check its name; {_OFFLINE}"
        ) from error


def _rows(loaded: Any, data: HubData, split: str, problems: Problems) -> Iterator[TextRow]:
    known = list(loaded.column_names)
    for setting, column in (("column", data.column), ("group_column", data.group_column)):
        if column is not None and column not in known:
            text = (
                f"hub:{data.name}: data.{setting} is {printable(column)}; the split {printable(split)} has the columns"
            )
            raise DataError(f"{text} {', '.join(printable(one, 60) for one in known)}.{guess(column, known)}")
    for index, row in enumerate(loaded):
        value = row[data.column]
        if isinstance(value, str) and not value.strip():
            continue
        chat = isinstance(value, list)
        problem = messages_problem(value) if chat else text_problem(value)
        name = f"{split}/{index}"
        if problem:
            problems.add(name, problem)
            continue
        group = row[data.group_column] if data.group_column else None
        yield made_row(name, None if chat else value, value if chat else None, group)
