"""What each item of the test split scored, kept beside a run, so that two runs can be paired item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .rundir import read_json, write_json
from .storage import make_folder
from .task import Evaluation
from .text import printable

FOLDER = "scores"


@dataclass(frozen=True)
class Scores:
    """Items by id; a metric is `sums` over `units`, item by item: the loss over counts, others over 1 or their own."""

    what: str
    ids: Sequence[str]
    sums: Mapping[str, NDArray[np.float64]]
    units: Mapping[str, NDArray[np.float64]]


def path_of(run: Path, weights: str, split: str) -> Path:
    return run / FOLDER / f"{weights}.{split}.json"


def keep(run: Path, weights: str, what: str, evaluation: Evaluation) -> None:
    """Write an evaluation item by item; `what` names the items, such as documents."""
    path = path_of(run, weights, evaluation.split)
    make_folder(path.parent)
    content = {
        "items": what,
        "ids": [str(one) for one in evaluation.ids],
        "loss_sum": evaluation.loss_sum.tolist(),
        "count": evaluation.count.tolist(),
        "metrics": {name: values.tolist() for name, values in evaluation.metrics.items()},
        "per": {name: values.tolist() for name, values in evaluation.per.items()},
    }
    write_json(path, content)


def load(run: Path, weights: str, split: str) -> Scores | None:
    """Return what was kept, None where nothing was; raises `DataError` for a file that is none of ours."""
    path = path_of(run, weights, split)
    if not path.exists():
        return None
    found = read_json(path)
    try:
        assert isinstance(found, dict)
        ids = [str(one) for one in found["ids"]]
        sums = {"loss": np.array(found["loss_sum"], np.float64)}
        units = {"loss": np.array(found["count"], np.float64)}
        for name, values in found["metrics"].items():
            per = np.array(found["per"].get(name, np.ones(len(ids))), np.float64)
            sums[name], units[name] = np.array(values, np.float64) * per, per
        what = str(found["items"])
        if any(one.shape != (len(ids),) for one in (*sums.values(), *units.values())):
            raise ValueError("as many numbers as items are expected")
    except (AssertionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: holds no scores by item: {printable(error, 200)}") from error
    return Scores(what, ids, sums, units)


def ratio(sums: NDArray[Any], units: NDArray[Any]) -> float:
    """Return a metric of several items: the sum over the units."""
    return float(sums.sum() / units.sum())
