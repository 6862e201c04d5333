"""The viewer without a screen."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ctr.engine.errors import UsageError
from ctr.tui import command

from .fake_runs import FakeRun, study
from .test_terminal_bytes import HIDDEN, SEQUENCE
from .test_terminal_bytes import folder as hostile_folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    study(tmp_path / "runs", seeds=(42, 137, 7), interval=3600.0)
    return tmp_path / "runs"


def test_one_frame_lists_studies_arms_seeds_and_verdicts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.tui(root, once=True)
    out = capsys.readouterr().out
    assert "▾ quickstart" in out and "━ controller" in out and "seed 42" in out
    assert "● live" in out and "✖ failed" in out and "○ queued" in out
    assert "the loss is not finite at step 70; culprit: task loss" in out
    assert "quickstart: No difference can be claimed between controller and baseline on test.accuracy" in out
    assert max(map(len, out.splitlines()[:14])) <= 120


def test_json_holds_the_same_facts(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.tui(root, as_json=True)
    found = json.loads(capsys.readouterr().out)
    (one,) = found["studies"]
    assert one["counts"] == {"live": 1, "failed": 1, "queued": 1, "finished": 6}
    live = next(r for r in one["runs"] if r["status"] == "live")
    assert (live["arm"], live["seed"], live["step"], live["total"]) == ("controller", 7, 150, 240)
    assert live["progress"] == 0.625 and live["val"]["accuracy"] > 80
    first = one["contrasts"][0]
    assert (first["a"], first["b"], first["n"], first["waiting"]) == ("controller", "baseline", 2, 1)
    assert first["mean"] == pytest.approx(sum(first["differences"]) / 2)


def test_numbers_that_are_not_finite_are_text_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = FakeRun(tmp_path / "demo", interval=3600.0)
    run.write_status("live", train_loss=float("nan"), val={"loss": float("inf")})
    command.tui(tmp_path, as_json=True)
    (one,) = json.loads(capsys.readouterr().out)["studies"][0]["runs"]
    assert one["train_loss"] == "nan" and one["val"] == {"loss": "inf"}


def test_status_is_short(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.status(root)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("quickstart  ● 1") and len(lines) == 3
    assert lines[1].startswith("  ● controller-s7 live  epoch 7/12  62%")


def test_a_missing_folder_is_an_error_that_names_it_and_no_terminal_says_what_to_do(root: Path) -> None:
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        command.status(Path("nowhere"))
    with pytest.raises(UsageError, match="--once"):
        command.tui(root)


def test_hostile_names_are_harmless_in_plain_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = hostile_folder(tmp_path, hostile=True)
    for call in (lambda: command.tui(root, once=True), lambda: command.status(root)):
        call()
        out = capsys.readouterr().out
        assert not SEQUENCE.search(out.encode().replace(b"\n", b"")) and not HIDDEN.search(out)
        assert "\\x1b]0;" in out
    command.tui(root, as_json=True)
    assert not HIDDEN.search(capsys.readouterr().out)


def test_the_frame_needs_neither_torch_nor_textual(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ctr.tui import frame; frame.full(Path(sys.argv[1])); "
        "print([m for m in ('torch', 'textual', 'pydantic', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_part_of_the_viewer_loads_torch() -> None:
    code = (
        "import sys, pkgutil, importlib, ctr.tui; "
        "names = [m.name for m in pkgutil.walk_packages(ctr.tui.__path__, 'ctr.tui.')]; "
        "[importlib.import_module(n) for n in names]; print(len(names) > 20, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_closed_pipe_is_no_error(root: Path) -> None:
    code = "from pathlib import Path; import sys; from ctr.tui.command import tui; tui(Path(sys.argv[1]), once=True)"
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" "{root}" | head -n 1; echo ${{PIPESTATUS[0]}}'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0" and done.stderr == ""
