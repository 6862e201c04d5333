"""What `ctr new-plugin` writes works as written, and it never writes over anything."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctr.engine.candidates import candidates
from ctr.engine.cli import app
from ctr.engine.errors import UsageError
from ctr.engine.host import ARGUMENTS, Registry, discover, implementations, plugin_problem
from ctr.engine.new_plugin import name_problem, new_plugin, project
from ctr.engine.spec import load_study
from ctr.engine.study import run
from ctr.engine.task import task_problem

ALL = ",".join(ARGUMENTS)
LAWS = "dose or hosted or no_torch or three_steps or inert or mutation"  # all of them are tried by the tutorial's test


@pytest.fixture
def path_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", list(sys.path))


def write(folder: Path, name: str, hooks: str = "schedule_lr,on_epoch_end", **more: bool) -> Any:
    new_plugin(name, folder, hooks=hooks, task=more.get("task", False), panel=True, command=True)
    return candidates(str(folder))[0].load()


@pytest.mark.parametrize("many", [1, 2, 3, 4])
def test_every_choice_of_hooks_gives_a_plugin_with_these_hooks(many: int, tmp_path: Path, path_as_before: None) -> None:
    for index, hooks in enumerate(combinations(ARGUMENTS, many)):
        kind = write(tmp_path / str(index), f"choice{many}{index}", ",".join(hooks))
        assert plugin_problem(kind) is None and set(implementations(kind)) == set(hooks)
        assert (tmp_path / str(index) / f"ctr_choice{many}{index}" / "README.md").is_file()


def test_its_tests_pass_untouched(tmp_path: Path) -> None:
    new_plugin("untouched", tmp_path / "p", hooks=ALL, task=False, panel=False, command=False)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LAWS, "tests"]
    env = {"PYTHONPATH": str(tmp_path / "p"), "PATH": "", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tmp_path / "p", capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout[-3000:]


def test_its_task_and_plugin_train_by_its_own_spec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_as_before: None, no_drawing: None
) -> None:
    kind = write(tmp_path / "p", "ruler", task=True)
    import ctr_ruler.panel  # type: ignore[import-not-found]
    import ctr_ruler.task  # type: ignore[import-not-found]

    assert task_problem(ctr_ruler.task.RulerTask) is None
    found = Registry({**discover().plugins, "ruler": kind}, {**discover().tasks, "ruler": ctr_ruler.task.RulerTask})
    monkeypatch.setattr("ctr.engine.study.discover", lambda: found)
    result = run(tmp_path / "p" / "specs" / "ruler.yaml", tmp_path / "runs", seeds=[1], sets=["train.threads=1"])
    assert [outcome.status for outcome in result.outcomes] == ["finished", "finished"], result.outcomes
    from ctr.engine.series import read_series

    class Records:
        name, events, spec = "treated-s1", (), {}  # type: ignore[var-annotated]

        def series(self, key: str) -> Any:
            return read_series(tmp_path / "runs" / "ruler" / "treated-s1", key)

    assert "dose 0.333 after 6 steps" in str(ctr_ruler.panel.sections(Records()))


@pytest.mark.parametrize("hooks", ["schedule_lr", "adapter_reset", "extra_loss"])
def test_its_spec_is_valid(hooks: str, tmp_path: Path, path_as_before: None) -> None:
    name = f"valid{hooks.replace('_', '')}"
    kind = write(tmp_path / "p", name, hooks)
    found = Registry({**discover().plugins, name: kind}, discover().tasks)
    study = load_study(tmp_path / "p" / "specs" / f"{name}.yaml", (), found)
    assert len(study.runs()) == 6


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=r"holds README.md already; nothing was written"):
        write(tmp_path, "kept")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("geometry", "is taken: ctr-engine .* is installed here"),
        ("causal_lm", "is taken"),
        ("Focal", "small letters"),
        ("focal-loss", "small letters"),
        ("class", "no word of Python"),
        ("../x", "must be letters"),
        ("train", "owner of ctr's own series"),
        ("\x1b[31m", "must be letters"),
        ("a.b", "must hold no '.'"),
        ("con", "reserved by some operating systems"),
        ("9lives", "begin with a letter"),
        ("a__b", "parted by single"),
    ],
)
def test_names_are_checked(name: str, text: str) -> None:
    import re

    assert re.search(text, str(name_problem(name)))


@pytest.mark.parametrize(("hooks", "text"), [("schedul_lr", "Did you mean schedule_lr"), (" , ", "names none")])
def test_hooks_are_checked(hooks: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=text):
        write(tmp_path, "fine", hooks)
    assert list(tmp_path.iterdir()) == []


def test_the_project_says_nothing_of_where_packages_come_from() -> None:
    texts = project("quiet", list(ARGUMENTS), task=True, panel=True, command=True)
    assert not [path for path, text in texts.items() if "py" + "pi" in text.lower() or "$" in text]


def test_the_command_prints_what_it_wrote(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["new-plugin", "spoken", str(tmp_path / "p")])
    assert done.exit_code == 0
    assert "ctr_spoken/formula.py" in done.stdout and "ctr check-plugin spoken" in done.stdout
