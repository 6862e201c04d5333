"""The matrix by hand: tasks A, B, C trained in turn, with numbers a person can check."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from ctr.engine.errors import DataError
from ctr.engine.matrix import Matrix, Reading, load
from ctr.engine.reading_names import NAMES, in_source, names

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


def test_interference_is_what_one_phase_did_alone() -> None:
    matrix = losses()
    assert matrix.interference("A", "C") == 1.5 and matrix.backward_transfer("A", "C") == 0.5
    assert matrix.interference("B", "C") == matrix.backward_transfer("B", "C") == -1.5  # C follows B at once
    assert matrix.interference("A", "A") is None and matrix.interference("B", "A") is None
    told = [(r.kind, r.task) for r in matrix.readings() if r.after == "C"]
    assert ("interference", "A") in told and ("interference", "B") not in told  # one number, one name


def test_learning_b_has_two_zero_points_and_two_names() -> None:
    matrix = losses()
    assert matrix.learning("B") == 2.0 and matrix.learning_from_start("B") == 2.5
    assert matrix.read("learning from start", "B", "B") == 2.5 and matrix.read("learning", "A", "B") is None


SOURCE = {  # by the source's formulas, from ROWS by hand; X_Y is the loss of X after Y
    ("learning_b", "B_A − B_B"): 3.5 - 1.5,
    ("learning_b", "B_before − B_B"): 4.0 - 1.5,
    ("accretion_a_after_b", "A_A − A_B"): 1.0 - 2.0,
    ("backward_transfer_a_after_b", "A_B − A_A"): 2.0 - 1.0,
    ("forgetting_a", "A_B − A_A"): 2.0 - 1.0,
    ("interference_a_after_c", "A_C − A_B"): 0.5 - 2.0,
    ("interference_b_after_c", "B_C − B_B"): 3.0 - 1.5,
    ("retention_ratio", "A_A / A_B"): 1.0 / 2.0,
}


@pytest.mark.parametrize(("name", "value"), SOURCE.items(), ids=lambda x: str(x))
def test_the_names_of_the_source_give_its_numbers(name: tuple[str, str], value: float) -> None:
    row = next(n for n in NAMES if (n.source, n.formula) == name)
    task, after = ("B", "C") if "b_after_c" in row.source else ("A", "C") if "c" == row.source[-1] else ("A", "B")
    task = "B" if row.source == "learning_b" else task
    ours = losses().read(row.reading, task, after)  # type: ignore[arg-type]
    assert ours is not None
    assert in_source(Reading(row.reading, task, after, ours), row) == value  # type: ignore[arg-type]
    assert (row.better == "higher") == (row.sign > 0)


def test_a_name_of_another_reading_is_refused() -> None:
    with pytest.raises(ValueError, match="learning_b is a name of learning, given retention"):
        in_source(Reading("retention", "A", "B", 1.0), names("learning")[1])


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
        ("learning from start", "B", "B"),
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
