"""What the report says of runs over several tasks: numbers by hand, undefined ones, and every form of it."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctr.engine.events_log import EventLog
from ctr.engine.inference import t_interval
from ctr.engine.report import build_report, render_tables
from ctr.engine.rundir import write_json
from ctr.engine.series import SeriesWriter, read_series, series_index

from .report_folders import Built

PHASES = "phases: [{name: A, task: A}, {name: B, task: B}, {name: C, task: C}]\n"
START = (4.0, 4.0, 4.0)
BASE = {"A": (1.0, 3.5, 4.0), "B": (2.0, 1.5, 3.0), "C": (3.0, 2.5, 1.0)}


@pytest.fixture(autouse=True)
def plates(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing where the figures are not what is tested."""
    if "drawn" not in request.fixturenames:
        for name in ("figures.panels", "figure_pairs.differences", "figure_matrix.matrices"):
            monkeypatch.setattr(f"ctr.engine.{name}", lambda *what: b"\x89PNG")


@pytest.fixture
def drawn() -> None:
    """Asks for real figures."""


def add(study: Built, arm: str, seed: int, rows: dict[str, Any], cosine: float | None = 0.1, **more: Any) -> Path:
    def records(log: EventLog) -> None:
        for phase, step in (("A", 16), ("B", 32), ("C", 48)):
            log.write("epoch", step, kind="phase", phase=phase, seconds=1.0, grad_accum=1, advice={})
        log.write("cosine", 32, of="delta", left="A", right="B", mean=cosine, targets={"q": cosine})

    folder = study.run(arm, seed, 90.0, spec=PHASES, more=records, **more)
    told = [{"label": label, "values": dict(zip("ABC", row, strict=True))} for label, row in
            (("start", START), *rows.items())]  # fmt: skip
    about = {"tasks": list("ABC"), "metric": "loss", "better": "lower", "rows": told}
    write_json(folder / "matrix.json", about)
    return folder


def angles(folder: Path, values: list[float]) -> None:
    """Write a series of gradient cosines as a plugin would have logged it, at the start and after each phase."""
    writer = SeriesWriter(folder)
    writer.resume({key: len(read_series(folder, key)[0]) for key in series_index(folder)})
    writer.declare("geometry.gradient_cosine.A.B")
    writer.append("geometry.gradient_cosine.A.B", [0, 16, 32, 48], values)
    writer.flush()
    writer.close()


@pytest.fixture
def study(tmp_path: Path) -> Built:
    """Three seeds; the controller's A ends at 2.5, 2.4, 2.6 where the baseline's ends at 3."""
    built = Built(tmp_path / "study")
    for seed, end in ((1, 2.5), (2, 2.4), (3, 2.6)):
        angles(add(built, "baseline", seed, BASE), [0.5, 0.4, 0.3, 0.2 + seed / 10])
        add(built, "controller", seed, {**BASE, "C": (end, 2.5, 1.0)}, cosine=0.2 + seed / 100)
    return built


def found(rows: list[dict[str, Any]], **about: str) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in about.items())]
    return row


def test_readings_and_their_paired_differences(study: Built) -> None:
    report = build_report(study.close())
    moved = found(report["transfer"], arm="controller", kind="backward transfer", task="A", after="C")
    assert moved["mean"] == pytest.approx(-1.5) and moved["n"] == 3 and list(moved["by_seed"]) == ["1", "2", "3"]
    assert moved["interval"] == pytest.approx(t_interval(np.array([-1.5, -1.4, -1.6])))
    gained = found(report["transfer_contrasts"], kind="backward transfer", task="A", after="C")
    assert gained["mean"] == pytest.approx(0.5) and gained["verdict"] == "improves" and gained["n"] == 3
    assert gained["interval"] == pytest.approx(t_interval(np.array([0.5, 0.6, 0.4])))
    alone = found(report["transfer_contrasts"], kind="interference", task="A", after="C")
    assert alone["mean"] == pytest.approx(0.5)
    assert found(report["transfer_contrasts"], kind="learning", task="B", after="B")["verdict"] == "identical"
    assert not [row for row in report["transfer"] if row["kind"] == "interference" and row["task"] == "B"]


def test_matrices_hold_the_start_row_and_intervals(study: Built) -> None:
    matrix = found(build_report(study.close())["matrices"], arm="controller")
    assert matrix["labels"] == ["start", "A", "B", "C"] and matrix["trained"] == [None, "A", "B", "C"]
    assert matrix["cells"][0][0]["mean"] == 4.0 and matrix["cells"][3][0]["mean"] == pytest.approx(2.5)
    assert matrix["cells"][3][0]["interval"] == pytest.approx(t_interval(np.array([2.5, 2.4, 2.6])))


def test_cosines_of_deltas_and_gradients_by_pair(study: Built) -> None:
    report = build_report(study.close())
    delta = found(report["cosines"], arm="controller", of="delta")
    assert (delta["left"], delta["right"]) == ("A", "B") and delta["mean"] == pytest.approx(0.22)
    last = found(report["cosines"], of="gradient", after="C")
    assert last["mean"] == pytest.approx(0.4) and last["n"] == 3
    assert [row["after"] for row in report["cosines"] if row["of"] == "gradient"] == ["start", "A", "B", "C"]
    differs = found(report["cosine_contrasts"], of="delta")
    assert differs["mean"] == pytest.approx(0.12) and "verdict" not in differs


def test_undefined_is_not_a_number_and_nothing_is_a_percentage(tmp_path: Path) -> None:
    """A divisor of zero at every seed, and phases that changed nothing."""
    built = Built(tmp_path / "study")
    for seed in (1, 2):
        for arm in ("baseline", "controller"):
            add(built, arm, seed, {**BASE, "C": (0.0, 2.5, 1.0)}, cosine=None)
    report = build_report(built.close())
    kept = found(report["transfer"], arm="baseline", kind="retention", task="A", after="C")
    assert kept["mean"] is None and kept["n"] == 0
    none = found(report["transfer_contrasts"], kind="retention", task="A", after="C")
    assert none["verdict"] == "cannot say" and none["n"] == 0
    lines = (built.path / "report.md").read_text().splitlines()
    assert "| baseline | retention | A | C | n/a | – | – | 0 |" in lines
    assert "| baseline | deltas | A, B | – | n/a | – | – | 0 |" in lines
    transfers = [line for line in lines if "backward transfer" in line and line.startswith("| ")]
    assert transfers and not any("%" in line for line in transfers)


def test_a_failed_run_drops_its_pair(study: Built) -> None:
    add(study, "baseline", 4, BASE)
    add(study, "controller", 4, BASE, status="failed")
    row = found(build_report(study.close())["transfer_contrasts"], kind="learning", task="A", after="A")
    assert row["n"] == 3 and row["dropped"] == [[4, "controller has no value"]]


def test_every_form_tells_it(study: Built) -> None:
    report = build_report(study.close())
    titles = ("Differences of readings", "Evaluation matrix", "Readings of the evaluation matrix", "Cosines",
              "Names elsewhere")  # fmt: skip
    for name in ("report.md", "report.html"):
        told = (study.path / name).read_text().replace("\\", "")
        assert all(title in told for title in titles) and "accretion_a_after_b" in told and "minus ours" in told
    assert json.loads((study.path / "report.json").read_text())["matrices"][0]["better"] == "lower"
    out = StringIO()
    Console(file=out, width=80).print(render_tables(report))
    assert "readings of controller − baseline, positive is better" in out.getvalue()
    assert re.search(r"interference +A after C +3 +\+0\.5 ", out.getvalue())
    assert max(map(len, out.getvalue().splitlines())) <= 80


def test_a_heat_map_is_drawn_and_an_old_one_removed(drawn: None, study: Built) -> None:
    (study.path / "figures").mkdir(parents=True)
    (study.path / "figures" / "matrices-old.png").write_bytes(b"of an earlier report")
    build_report(study.close())
    kept = {path.name for path in (study.path / "figures").glob("matrices*")}
    assert kept == {"matrices.png"} and (study.path / "figures" / "matrices.png").stat().st_size > 5000


def test_one_task_in_one_phase_has_none_of_it(tmp_path: Path) -> None:
    built = Built(tmp_path / "study")
    built.run("baseline", 1, 90.0)
    report = build_report(built.close())
    assert not any(report[key] for key in ("transfer", "transfer_contrasts", "matrices", "cosines", "reading_names"))
    assert "Names elsewhere" not in (built.path / "report.html").read_text()
