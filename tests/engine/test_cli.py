"""The command line as a user has it: strangers' packages beside it, pipes that close, answers for machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]
CTR = [sys.executable, "-W", "error", "-c", "from ctr.engine.cli import main; main()"]
NOISY = """
import os
from pydantic import BaseModel
from ctr.engine.hooks import LrAdvice, hookimpl

print("noise of an import")
os.write(1, b"noise past Python\\n")


class Noisy:
    "Prints."

    class Config(BaseModel, extra="forbid", frozen=True):
        pass

    def __init__(self, config, generator):
        pass

    @hookimpl
    def schedule_lr(self, step):
        print("noise of a hook")
        return LrAdvice()


def loud():
    print("loud was called")


def snap():
    raise BrokenPipeError("somewhere else")
"""
CLAIMS = {
    "ctr-noisy": "[ctr.plugins]\nnoisy = ctr_noisy:Noisy\n"
    "[ctr.commands]\nloud = ctr_noisy:loud\nsnap = ctr_noisy:snap\n",
    "ctr-other": "[ctr.commands]\nloud = ctr_noisy:loud\nreport = ctr_noisy:loud\nalone = ctr_noisy:loud\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two installed distributions, one of which prints whenever it can."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "ctr_noisy.py").write_text(NOISY)
    for name, points in CLAIMS.items():
        about = folder / f"{name.replace('-', '_')}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(points)
    return folder


@pytest.fixture
def ctr(site: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a command to its end."""

    def run(*words: object, **more: Any) -> Any:
        env = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.run([*CTR, *map(str, words)], env=env, cwd=tmp_path, text=True, timeout=240, **streams)

    return run


# ---------------------------------------------------------------------------------------------------- answers
@pytest.mark.parametrize("words", [["plugins", "--json"], ["schema"], ["check", "tried.yaml", "--json"]])
def test_light_answers_hold_nothing_that_plugins_print(ctr: Any, study: Write, words: list[str]) -> None:
    study()
    done = ctr(*words)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "noise of an import" in done.stderr and "noise past Python" in done.stderr


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_answers_with_its_report_alone(ctr: Any, study: Write, jobs: int) -> None:
    noisy = {"constant_scale: {scale: 1.5, from_epoch: 1}": "noisy: {}", "epochs: 3": "epochs: 1"}
    done = ctr("run", study({**noisy, "seeds: [1, 2]": "seeds: [1]"}), "--jobs", jobs, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [run["state"] for run in told["runs"]] == ["finished", "finished"] and "noise of a hook" in done.stderr
    if jobs == 1:
        assert json.loads(ctr("report", "runs/tried", "--json").stdout) == told
        assert json.loads(ctr("explain", "runs/tried/constant-s1", "--step", 1, "--json").stdout)


def test_a_closed_pipe_is_no_error_and_another_broken_pipe_is_one(ctr: Any) -> None:
    for words in (["plugins"], ["schema"], ["--help"], ["status", "."]):
        reader, writer = os.pipe()
        os.close(reader)
        done = ctr(*words, stdout=writer)
        os.close(writer)
        assert (done.returncode, "Error" in done.stderr) == (0, False), done.stderr
    done = ctr("snap")
    assert done.returncode == 1 and "BrokenPipeError: somewhere else" in done.stderr


# ---------------------------------------------------------------------------------------------------- names
def test_a_command_that_two_packages_claim_is_listed_once_and_refused(ctr: Any) -> None:
    listed = [line.split()[0] for line in ctr("--help").stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed.count("loud") == listed.count("report") == listed.count("alone") == 1
    done = ctr("loud")
    assert done.returncode == 2 and done.stderr == "ctr loud is claimed by ctr-noisy and ctr-other; uninstall one\n"
    assert "loud was called" in ctr("alone").stdout


def test_a_built_in_command_keeps_its_name_and_says_who_claims_it(ctr: Any) -> None:
    done = ctr("report", "nowhere")
    assert done.returncode == 2 and "nowhere holds no study.json" in done.stderr and "loud" not in done.stdout
    assert "ctr report is built in; the command of that name of ctr-other cannot be called" in done.stderr
    assert "built in" not in ctr("specs").stderr + ctr("--help").stderr


@pytest.mark.parametrize("given", ["", " "])
def test_an_empty_folder_for_runs_is_refused(ctr: Any, study: Write, tmp_path: Path, given: str) -> None:
    done = ctr("run", study(), "--runs", given)
    assert done.returncode == 2 and "an empty text names no folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tried.yaml"]
