"""Faults that were planted in plugins are found, each by the law it breaks, on the line on which it stands."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.candidates import Candidate, candidates
from ctr.engine.check_plugin import verdicts
from ctr.engine.cli import main
from ctr.engine.errors import UsageError
from ctr.engine.testing import LAWS, Broken, NotTried, Subject, Trial, try_law
from tests.fixtures.planted import faults, heavy

torch.set_num_threads(1)
CHECKS = {law.name: law for law in LAWS}


def lines_of(kind: type) -> set[str]:
    """Return the marked lines of a class, or of its module where it is no class of `faults`."""
    thing: Any = kind if kind.__module__.endswith("faults") else inspect.getmodule(kind)
    source, first = inspect.getsourcelines(thing)
    file = inspect.getsourcefile(thing)
    return {f"{file}:{max(first, 1) + i}" for i, row in enumerate(source) if "# FAULT" in row}


PLANTED = [
    (faults.GlobalDraw, "no-global-draw", "hook extra_loss, step 0: draws from a random stream of the whole process"),
    (faults.PythonDraw, "no-global-draw", "hook schedule_lr, step 0: draws"),
    (faults.MutatedBatch, "no-mutation", "hook extra_loss changes forward.batch"),
    (faults.MutatedRates, "three-steps", "does not support item assignment"),
    (faults.MisspeltHook, "hosted", "shedule_lr is no hook; .* Did you mean schedule_lr"),
    (faults.WrongType, "three-steps", "plugin tried, hook schedule_lr, .*answered float, not LrAdvice"),
    (faults.StateNotRestored, "state", "after restore.*count is 0, and was"),
    (faults.StateNotRestored, "resumed", "killed in step after 7 updates and resumed, .*self.count is"),
    (faults.NoState, "resumed", "self.count is .* state.. must hold it"),
    (heavy.Heavy, "no-torch", "importing its module loads torch"),
    (faults.OrderDependent, "order", "made before its neighbours and after them, a run differs"),
    (faults.OrderDependent, "same-seed", "two runs of one seed in one process differ"),
    (faults.BareException, "three-steps", "plugin tried, hook on_epoch_end, .*raised AssertionError"),
    (faults.EndlessLoop, "three-steps", "did not end within 2 s"),
    (faults.EscapingName, "three-steps", r"logs a number whose name \\x1b\[2Jrate must be letters"),
    (faults.NotInert, "inert", "inert settings {'weight': 0.0} change"),
    (faults.Idle, "acts", "changes no weight and logs nothing"),
    (faults.LooseSettings, "hosted", "Config lacks extra='forbid'.*frozen=True"),
    (faults.StateOfObjects, "state", "holds what no checkpoint can"),
    (faults.OtherVersion, "hosted", "made for plugin API 2 to 3, and this ctr has plugin API 1"),
]  # fmt: skip
UNMARKED = {("StateNotRestored", "resumed")}  # the line it names is where the memory changes, not where it is lost


@pytest.mark.parametrize(("kind", "law", "text"), PLANTED, ids=lambda case: getattr(case, "__name__", str(case)[:20]))
def test_a_planted_fault_is_found_on_its_line(kind: Any, law: str, text: str, tmp_path: Path) -> None:
    subject = Subject("tried", kind, Trial.of(kind))
    with pytest.raises(Broken, match=text) as caught:
        try_law(CHECKS[law], subject, tmp_path, 2.0 if kind is faults.EndlessLoop else 60.0)
    found = re.match(r"\S+:\d+", caught.value.place or "")
    assert found is not None
    assert found[0] in lines_of(kind) or (kind.__name__, law) in UNMARKED, caught.value.place


def test_what_is_not_declared_is_not_tried(tmp_path: Path) -> None:
    with pytest.raises(NotTried, match="names no settings under which it changes nothing"):
        try_law(CHECKS["inert"], Subject("tried", faults.NoState, Trial(active={"weight": 0.5})), tmp_path)


@pytest.mark.parametrize(
    ("trial", "text"),
    [
        ([], "trial must be a mapping"),
        ({"activ": {}}, "trial holds activ; there are .* Did you mean active"),
        ({"task": "image"}, "no task image; there are images, language, documents"),
    ],
)
def test_a_trial_that_means_nothing_is_refused(trial: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Trial.of(type("P", (), {"trial": trial}))


# ------------------------------------------------------------------------------------------- from the command line
def project(folder: Path, name: str, target: str) -> Path:
    folder.mkdir(exist_ok=True)
    escaped = json.dumps(name)
    text = f'[project]\nname = "x"\nversion = "1"\n[project.entry-points."ctr.plugins"]\n{escaped} = "{target}"\n'
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def run_check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["ctr", "check-plugin", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_a_name_with_escape_codes_is_refused_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(tmp_path / "p", "\x1b[31mred", "tests.fixtures.planted.faults:NoState")
    assert run_check([str(folder)], monkeypatch) == 6
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "BROKEN" in said.out and "its name must be letters" in said.out
    assert re.search(r"look at \S+pyproject.toml:5", said.out)


def test_a_path_is_checked_without_being_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(tmp_path / "p", "spelt", "planted_here:MisspeltHook")
    source = Path(str(faults.__file__)).read_text(encoding="utf-8")
    (folder / "planted_here.py").write_text(source, encoding="utf-8")
    assert run_check([str(folder), "--json"], monkeypatch) == 6
    rows = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in rows] == ["broken"] + ["not tried"] * (len(LAWS) - 1)
    assert f"{folder}/planted_here.py:" in rows[0]["place"]


def hard(kind: str) -> list[dict[str, Any]]:
    candidate = Candidate("tried", f"tests.fixtures.planted.faults:{kind}", "here", (str(Path(__file__).parents[2]),))
    return [row for row in verdicts(candidate, {}, 1.0) if row["verdict"] == "broken"]


def test_a_plugin_that_kills_its_process_is_named() -> None:
    assert [(row["law"], row["text"]) for row in hard("Dies")] == [
        ("three-steps", "its process ended with exit code 9")
    ]


def test_a_loop_that_no_alarm_interrupts_is_ended_from_outside_and_its_line_named() -> None:
    rows = hard("HangsInC")
    assert [row["law"] for row in rows] == ["three-steps"]
    assert rows[0]["place"].split(" in ")[0] in lines_of(faults.HangsInC)


@pytest.mark.parametrize(
    ("given", "text"), [("no_such", "no plugin no_such is installed"), ("geometri", "Did you mean geometry")]
)
def test_a_plugin_that_is_nowhere_is_a_usage_error(given: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        candidates(given)


def test_a_folder_that_is_no_project_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a project"):
        candidates(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    with pytest.raises(UsageError, match="names no plugin under"):
        candidates(str(tmp_path))
