"""The matrix by hand: tasks A, B, C trained in turn, with numbers a person can check."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ctr.engine.errors import DataError
from ctr.engine.matrix import Matrix, Reading, load

ROWS = {"start": (4.0, 4.0, 4.0), "A": (1.0, 3.5, 4.0), "B": (2.0, 1.5, 3.0), "C": (0.5, 3.0, 1.0)}


def losses(rows: dict[str, tuple[float, ...]] = ROWS) -> Matrix:
    matrix = Matrix(["A", "B", "C"])
    for label, values in rows.items():
        for task, value in zip("ABC", values, strict=True):
            matrix.put(label, task, value)
    return matrix


def test_readings_of_a_loss_are_larger_when_better() -> None:
    matrix = losses()
    assert [matrix.learning(p) for p in "ABC"] == [3.0, 2.0, 2.0]  # before its own phase minus after
    assert matrix.backward_transfer("A", "B") == -1.0 and matrix.backward_transfer("A", "C") == 0.5
    assert matrix.backward_transfer("B", "C") == -1.5
    assert matrix.retention("A", "B") == 0.5 and matrix.retention("A", "C") == 2.0 and matrix.retention("B", "C") == 0.5


def test_the_same_story_told_as_accuracy_has_the_same_signs() -> None:
    matrix = Matrix(["A", "B"], "accuracy", "higher")
    for label, a, b in (("start", 0.1, 0.1), ("A", 0.8, 0.2), ("B", 0.6, 0.9)):
        matrix.put(label, "A", a)
        matrix.put(label, "B", b)
    assert matrix.learning("B") == pytest.approx(0.7)
    assert matrix.backward_transfer("A", "B") == pytest.approx(-0.2)
    assert matrix.retention("A", "B") == pytest.approx(0.75)


def test_all_readings_in_order_and_none_that_has_no_meaning() -> None:
    readings = list(losses().readings())
    assert readings[0] == Reading("learning", "A", "A", 3.0)
    assert [(r.kind, r.task, r.after) for r in readings if r.after == "B"] == [
        ("learning", "B", "B"),
        ("backward transfer", "A", "B"),
        ("retention", "A", "B"),
    ]
    assert not [r for r in readings if r.after == "start"]


def test_a_task_trained_twice_is_held_against_its_latest_phase() -> None:
    matrix = Matrix(["A", "B"], phases={"first": "A", "second": "B", "third": "A", "fourth": "B"})
    for label, value in (("start", 5.0), ("first", 3.0), ("second", 4.0), ("third", 2.0), ("fourth", 2.5)):
        matrix.put(label, "A", value)
    assert matrix.learning("third") == 2.0
    assert matrix.backward_transfer("A", "second") == -1.0 and matrix.backward_transfer("A", "fourth") == -0.5
    assert matrix.backward_transfer("A", "third") is None


def test_one_task_needs_no_phase_names() -> None:
    matrix = Matrix(["main"])
    matrix.put("start", "main", 2.0)
    matrix.put("warmup", "main", 1.5)
    assert list(matrix.readings()) == [Reading("learning", "main", "warmup", 0.5)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_read(bad: float) -> None:
    matrix = losses({**ROWS, "B": (bad, bad, bad)})
    assert matrix.learning("B") is None and matrix.backward_transfer("A", "B") is None
    assert matrix.retention("A", "B") is None and matrix.learning("C") is None


def test_retention_over_zero_has_no_value() -> None:
    assert losses({**ROWS, "B": (0.0, 1.5, 3.0)}).retention("A", "B") is None


def test_unknown_labels_read_as_nothing() -> None:
    matrix = losses()
    assert matrix.learning("Z") is None and matrix.backward_transfer("A", "Z") is None and matrix.at("Z", "A") is None


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    from ctr.engine.rundir import write_json

    matrix = losses()
    matrix.phases = {"A": "A"}
    matrix.put("C", "A", math.inf)  # what a run diverged to survives a resume
    write_json(tmp_path / "matrix.json", matrix.document())
    assert load(tmp_path / "matrix.json") == matrix
    assert load(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "{}", '{"tasks": 3, "rows": 4}', '{"tasks": [1], "rows": [1, {"label": 2, "values": {"A": "x"}}]}'],
)
def test_a_malformed_document_gives_an_empty_matrix(tmp_path: Path, text: str) -> None:
    (tmp_path / "matrix.json").write_text(text)
    matrix = load(tmp_path / "matrix.json")
    assert matrix is None or list(matrix.readings()) == []


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "matrix.json").write_text('{"tasks": ["A"')
    with pytest.raises(DataError, match="matrix.json"):
        load(tmp_path / "matrix.json")
