"""The laws that every built-in plugin keeps, by table: one class of the kit a row, and no plugin without a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ctr.engine.events_log import read_events
from ctr.engine.host import discover
from ctr.engine.testing import PluginLaws, Subject, TinyDocuments, TinyText, Trial, bits, finish, make
from tests.engine.tasks.sequences import Sequences
from tests.engine.tiny import Tiny

torch.set_num_threads(1)
SEED = 3


@dataclass(frozen=True)
class Row:
    """A plugin as its own `trial` says, or with more settings or another task where `on` names the case."""

    plugin: str
    on: str = ""
    over: Mapping[str, Any] = field(default_factory=dict)


TABLE = [
    Row("checkpoint_gate"),
    Row("constant_scale"),
    Row("phase_controller"),
    Row("random_regimes"),
    Row("replay_rates"),
    # hidden states, attention maps and branches to look at, handed out whether it asks or not
    Row("geometry", "open", {"task": partial(TinyText, SEED, open_house=True)}),
    Row("geometry", "sequence", {"task": partial(Sequences, SEED, open_house=True)}),
    Row("warm_a"),
    Row(
        "warm_a",
        "guarded",
        {
            "inert": {"a": "redraw", "moments": "clear", "angle_slots": 0},
            "active": {"guard": {"groups": 1, "margin": 0.01}, "until": 4},
            "task": partial(TinyDocuments, SEED, compared=True),
        },
    ),
]


def subject(row: Row) -> Subject:
    kind = discover().plugins[row.plugin]
    return Subject(row.plugin, kind, Trial.of(kind, **row.over))


for _row in TABLE:
    _kind = discover().plugins[_row.plugin]
    _name = "Test" + "".join(part.title() for part in f"{_row.plugin}_{_row.on}".split("_"))
    _over = {key: staticmethod(value) if callable(value) else value for key, value in _row.over.items()}
    globals()[_name] = type(_name, (PluginLaws,), {"plugin": _kind, "__module__": __name__, **_over})


# what is composed are several phases on several tasks, which no tiny task has: its laws are tried in whole runs there
ELSEWHERE = {"routed": "tests/plugins/routed/test_routed_laws.py"}


def test_every_built_in_has_a_row() -> None:
    ours = {name for name, kind in discover().plugins.items() if kind.__module__.startswith("ctr.plugins.")}
    assert {row.plugin for row in TABLE} == ours - set(ELSEWHERE)
    assert all((Path(__file__).parents[2] / path).is_file() for path in ELSEWHERE.values())


def test_the_order_of_registration_of_all_built_ins_together_changes_no_bit(tmp_path: Path) -> None:
    def all_of(folder: Path, rows: list[Row]) -> dict[str, bytes]:
        plugins, generators = {}, {}
        for row in rows:
            if row.on not in ("guarded", "sequence"):
                plugins[row.plugin], generators[row.plugin] = subject(row).made("active", tmp_path)
        task = TinyText(SEED, open_house=True, lora=True)
        return bits(finish(make(folder, plugins, generators=generators, task=task, epochs=5, reset_at=["epoch"])))

    assert all_of(tmp_path / "a", TABLE) == all_of(tmp_path / "b", TABLE[::-1])
    assert all_of(tmp_path / "c", TABLE[2:] + TABLE[:2]) == all_of(tmp_path / "a2", TABLE)


def test_both_arms_are_bit_identical_until_the_epoch_whose_observation_enters_s1(tmp_path: Path) -> None:
    """The recommendation of epoch N governs N + 1, so even the weights after the epoch that enters S1 are equal."""
    row = Row("phase_controller", "", {"active": {"rule": "faithful", "s1_threshold": -0.001}})
    kernel = make(tmp_path / "with", {row.plugin: subject(row).made("active", tmp_path)[0]}, epochs=6)
    base = make(tmp_path / "without", epochs=6)
    seen: dict[str, list[dict[str, bytes]]] = {"with": [], "without": []}
    for name, one in (("with", kernel), ("without", base)):
        one._end_epoch = _remember(one, seen[name])  # type: ignore[method-assign]
        finish(one)
    marks = [
        r for r in read_events(tmp_path / "with") if r["event"] == "mark" and "S0_EXPLORE -> S1_BOUNDARY" in r["why"]
    ]
    assert len(marks) == 1
    entered = int(marks[0]["why"].split()[1].rstrip(":"))
    same = [left == right for left, right in zip(seen["with"], seen["without"], strict=True)]
    assert 2 <= entered < 5
    assert same == [epoch <= entered for epoch in range(6)]


def _remember(kernel: Any, into: list[dict[str, bytes]]) -> Callable[[Any], None]:
    end = kernel._end_epoch

    def ended(plan: Any) -> None:
        into.append(bits(kernel))
        end(plan)

    return ended


def test_the_tiny_task_has_what_makes_resume_hard() -> None:
    module = Tiny(SEED).build()
    kinds = {type(part) for part in module}  # type: ignore[attr-defined]
    assert {torch.nn.Dropout, torch.nn.BatchNorm1d} <= kinds and Tiny(SEED).batches(0) * 4 > len(Tiny(SEED).x)
