"""What is told of a class that cannot be a task, before anything asks it for more."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from ctr.engine.host import discover
from ctr.engine.task import Metric, task_problem


class Whole:
    class Config(BaseModel):
        pass

    metrics = {"accuracy": Metric("%", "higher")}


for name in ("fingerprints", "build", "share", "groups", "begin", "batches", "batch", "forward", "evaluate", "items",
             "order", "probe", "state", "restore"):  # fmt: skip
    setattr(Whole, name, lambda *given: None)


def changed(**more: Any) -> type:
    return type("Changed", (Whole,), more)


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (len, "the entry point must name a class, not <built-in function len>"),
        (None, "the entry point must name a class, not None"),
        (dict, "task class dict has no fingerprints, build, share, groups,"),
        (changed(order=None), "task class Changed has no order"),
        (changed(Config=3), "a task needs a nested pydantic class Config"),
        (changed(metrics=None), "task class Changed: metrics must be a mapping of names to Metric"),
        (changed(metrics={"accuracy": "%"}), "task class Changed: metrics must be a mapping of names to Metric"),
        (changed(metrics={"../up": Metric()}), "task class Changed: metric ../up: its name "),
    ],
)
def test_a_class_that_cannot_be_a_task_is_named_with_what_it_lacks(task: Any, why: str) -> None:
    assert str(task_problem(task)).startswith(why)


def test_whole_tasks_are_taken() -> None:
    assert task_problem(Whole) is None
    assert discover().tasks and not any(map(task_problem, discover().tasks.values()))
