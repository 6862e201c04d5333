"""Whole runs of a stream, their scores by item, and the invariants: that they hold, and that breaking one shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ctr.engine import scores
from ctr.engine.bank_optimizer import BankOptimizer
from ctr.engine.cli import app
from ctr.engine.errors import UsageError
from ctr.engine.report import build_report
from ctr.engine.study import run as run_study
from ctr.engine.tasks import document_scoring
from ctr.engine.verify_stream import TEXTS, findings

from .tasks.streams import LENGTHS, study, write_documents

TWO_ARMS = {
    "  adapted: {}\n": "  adapted: {}\n  frozen: {train: {optimizer: {base_lr: 0.0}}}\n",
    "compare: {on: [test.bits_per_byte]}": "compare: {contrasts: [adapted - frozen], on: [test.bits_per_byte]}",
}


def test_every_invariant_holds_on_a_cold_stream(tmp_path: Path) -> None:
    found = {one.name: one for one in findings(study(tmp_path), arm=None, sets=())}
    assert found.keys() == TEXTS.keys() and all(one.holds for one in found.values()), found
    assert all(one.difference in (None, 0.0) for name, one in found.items() if name != "I5")


def test_what_could_not_be_seen_is_not_claimed(tmp_path: Path) -> None:
    path = study(tmp_path)
    write_documents(tmp_path / "documents.txt", [40, 7, 6, 5])
    found = {one.name: one for one in findings(path, arm=None, sets=())}
    assert [name for name, one in found.items() if one.holds is None] == ["I2", "I3"]
    assert all(one.holds for name, one in found.items() if name not in ("I2", "I3"))


def test_a_warm_stream_claims_all_but_that_documents_are_independent(tmp_path: Path) -> None:
    path = study(tmp_path, {"  adapted: {}": "  warm: {plugins: {warm_a: {}}}"})
    found = {one.name: one for one in findings(path, arm=None, sets=())}
    assert [name for name, one in found.items() if not one.holds] == ["I2"] and found["I2"].holds is None
    assert "later groups moved by 0)" not in found["I3"].how


def broken(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    forward = document_scoring.forward
    monkeypatch.setattr(document_scoring, "forward", lambda *given: change(forward(*given), *given))


def leaks_labels(outputs: Any, module: Any, batch: Any, *_: Any) -> Any:
    outputs.logits = outputs.logits.scatter_add(
        -1, batch.tensors["labels"][..., None], torch.ones_like(outputs.logits[..., :1])
    )
    return outputs


def shares_a_batch(outputs: Any, *_: Any) -> Any:
    outputs.scores["losses"] = outputs.scores["losses"] + 1e-3 * outputs.scores["losses"].mean()
    return outputs


def test_documents_are_clipped_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One norm over the bank, as torch's own clipping takes it, would bind the documents of a group together."""
    sgd = {
        "{kind: adamw, base_lr: 5e-2, weight_decay: 0.0, betas: [0.0, 0.999], eps: 1e-10}": "{kind: sgd, base_lr: 5.0}"
    }
    path, sets = study(tmp_path, sgd), ["train.clip_norm=0.001"]

    def held() -> dict[str, bool | None]:
        return {one.name: one.holds for one in findings(path, arm=None, sets=sets)}

    assert all(held().values())
    monkeypatch.delattr(BankOptimizer, "clip")
    assert [name for name, holds in held().items() if not holds] == ["I2", "I3"]


@pytest.mark.parametrize(
    ("change", "fails"), [(leaks_labels, {"I11"}), (shares_a_batch, {"I1", "I2", "I3"})], ids=["label", "mates"]
)
def test_what_breaks_an_invariant_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, fails: set[str]
) -> None:
    broken(monkeypatch, change)
    found = {one.name for one in findings(study(tmp_path), arm=None, sets=()) if one.holds is False}
    assert found & fails, found


def test_the_command_prints_each_invariant_and_refuses_what_is_no_stream(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["verify-stream", str(study(tmp_path))])
    assert done.exit_code == 0, done.output
    assert all(text in done.output for text in TEXTS.values()) and done.output.count("holds") >= len(TEXTS)
    with pytest.raises(UsageError, match="no phase of this run streams documents"):
        findings(Path(__file__).parents[2] / "specs" / "smoke.yaml", arm=None, sets=())
    with pytest.raises(UsageError, match="has 1 chunks, and three are needed: take a smaller chunk"):
        findings(study(tmp_path, {"chunk: 8, window: 24": "chunk: 60, window: 60"}), arm=None, sets=())


def test_a_study_of_streams_is_paired_item_by_item(tmp_path: Path) -> None:
    spec = study(tmp_path, TWO_ARMS)
    result = run_study(spec, tmp_path / "runs")
    assert result.code == 0
    folder = tmp_path / "runs" / "streamed"
    kept = {arm: scores.load(folder / f"{arm}-s1", "selected", "test") for arm in ("adapted", "frozen")}
    adapted, frozen = kept["adapted"], kept["frozen"]
    assert adapted is not None and frozen is not None and adapted.what == "documents"
    assert adapted.units["loss"].tolist() == [n - 1 for n in LENGTHS]
    assert not np.array_equal(adapted.sums["loss"], frozen.sums["loss"])
    short = [i for i, n in enumerate(LENGTHS) if n - 1 <= 8]
    assert short and np.array_equal(adapted.sums["loss"][short], frozen.sums["loss"][short])
    report = build_report(folder)
    row = next(row for row in report["items"] if row["which"] == "all")
    total = {arm: one.sums["bits_per_byte"].sum() / one.units["bits_per_byte"].sum() for arm, one in kept.items()}
    assert row["mean"] == pytest.approx(total["frozen"] - total["adapted"]) and row["n"] == len(LENGTHS)
    assert row["interval"][0] < row["mean"] < row["interval"][1]
    assert report["contrasts"][0]["mean"] == pytest.approx(row["mean"])
    assert "Paired by item" in (folder / "report.md").read_text()
    (folder / "frozen-s1" / "scores" / "selected.test.json").write_text("[]")
    assert "holds no scores by item" in str(build_report(folder)["problems"])
