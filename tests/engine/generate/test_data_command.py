"""`ctr data generate` as a user has it: files, manifest, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from ctr.engine.generate import PARTS, generate

Ctr = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ctr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ctr:
    """Run a command in this process, in an empty folder: exit code, stdout, stderr."""
    from ctr.engine.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ctr", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        told = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, told.out, told.err

    return run


def make(ctr: Ctr, *more: object, family: str = "accretion", out: str = "made", n: object = 8) -> tuple[int, str, str]:
    return ctr("data", "generate", family, "--out", out, "--entities", n, "--seed", 3, *more)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


@pytest.mark.parametrize("family", sorted(PARTS))
def test_one_file_a_part_and_a_manifest_that_makes_them_again(ctr: Ctr, tmp_path: Path, family: str) -> None:
    code, told, _ = make(ctr, family=family)
    assert code == 0 and len(told.splitlines()) == len(PARTS[family])
    about = manifest(tmp_path / "made")
    assert about["ctr"] == version("ctr-engine") and about["format"] == "jsonl"
    assert [one["part"] for one in about["files"].values()] == sorted(PARTS[family])
    for name, facts in about["files"].items():
        data = (tmp_path / "made" / name).read_bytes()
        assert facts["sha256"] == sha256(data).hexdigest() and facts["bytes"] == len(data)
        rows = generate(about["family"], facts["part"], about["entities"], about["seed"], **about["knobs"])
        assert [json.loads(line) for line in data.splitlines()] == [{"text": r.text, "group": r.group} for r in rows]
        assert facts["rows"] == len(rows) and data.endswith(b"\n")


def test_equal_arguments_write_equal_bytes_in_any_process(ctr: Ctr, tmp_path: Path) -> None:
    assert make(ctr)[0] == 0
    code = "from ctr.engine.cli import main; main()"
    words = ["data", "generate", "accretion", "--out", "again", "--entities", "8", "--seed", "3"]
    env = {**os.environ, "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, *words], env=env, cwd=tmp_path, check=True, timeout=120)
    assert listing(tmp_path / "again") == listing(tmp_path / "made")


def test_plain_lines_hold_the_texts_alone(ctr: Ctr, tmp_path: Path) -> None:
    assert make(ctr, "--format", "text", "--condition", "related")[0] == 0
    lines = (tmp_path / "made" / "b_related.txt").read_text().splitlines()
    assert lines == [row.text for row in generate("accretion", "b_related", 8, 3)]


def test_conditions_choose_among_the_parts_b(ctr: Ctr, tmp_path: Path) -> None:
    assert make(ctr, "--condition", "neutral", "--condition", "rehearsal")[0] == 0
    parts = ["a", "b_rehearsal", "c", "neutral"]
    assert sorted(listing(tmp_path / "made")) == sorted([*(f"{part}.jsonl" for part in parts), "manifest.json"])


def test_knobs_reach_the_rows_and_the_manifest(ctr: Ctr, tmp_path: Path) -> None:
    knobs = ("--set", "named=1", "--set", "phrasings=2", "--set", "shared_values=true")
    assert make(ctr, *knobs, family="conflict")[0] == 0
    assert manifest(tmp_path / "made")["knobs"] == {"named": 1.0, "phrasings": 2, "shared_values": True}
    lines = (tmp_path / "made" / "b.jsonl").read_text().splitlines()
    assert len(lines) == 16 and all("south archive" in line for line in lines)


def test_nothing_is_overwritten_unless_forced(ctr: Ctr, tmp_path: Path) -> None:
    assert make(ctr)[0] == 0
    before = listing(tmp_path / "made")
    code, _, told = make(ctr, n=9)
    assert code == 2 and "made holds a.jsonl, b_related.jsonl" in told and "--force" in told
    assert listing(tmp_path / "made") == before
    assert make(ctr, "--force", n=9)[0] == 0
    assert manifest(tmp_path / "made")["entities"] == 9


def test_a_manifest_alone_is_kept_too(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text("mine")
    code, _, told = make(ctr)
    assert code == 2 and "made holds manifest.json already" in told
    assert listing(tmp_path / "made") == {"manifest.json": b"mine"}


def test_files_of_other_names_are_left_alone(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.md").write_text("mine")
    assert make(ctr)[0] == 0
    assert (tmp_path / "made" / "notes.md").read_text() == "mine"


def test_a_failing_disk_leaves_no_manifest_that_lies(ctr: Ctr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make(ctr)[0] == 0
    real, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    code, _, told = make(ctr, "--force", n=9)
    assert code == 1 and "b_related.jsonl: cannot be written: No space left on device" in told
    assert "manifest.json" not in listing(tmp_path / "made")
    assert not any(name.startswith(".tmp-") for name in listing(tmp_path / "made"))


def test_where_no_folder_can_be_the_reason_is_told(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, told = make(ctr, out="file")
    assert code == 2 and told == "file: is not a folder; give one that is, or a name that is free\n"
    code, _, told = make(ctr, out="file/below")
    assert code == 1 and told == "file/below: cannot be created: Not a directory\n"
    code, _, told = make(ctr, out=" ")
    assert code == 2 and "an empty text names no folder" in told
    code, _, told = make(ctr, out="/proc/made")
    assert code == 1 and told.startswith("/proc/made: cannot be created: ")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--entities", 0), "entities is 0; give a whole number from 1 to 1000000"),
        (("--entities", -3), "entities is -3; "),
        (("--entities", 10**9), "entities is 1000000000; "),
        (("--entities", "many"), "Invalid value for '--entities'"),
        (("--seed", -1), "seed is -1; give a whole number from 0 to "),
        (("--condition", "relatd"), "relatd: no condition of accretion; there are related, related_strong, "),
        (("--set", "customs"), "--set customs: write it as knob=value"),
        (("--set", "=1"), "--set =1: write it as knob=value"),
        (("--set", "custom=1"), "no knob of accretion custom; there are customs. Did you mean customs?"),
        (("--set", "customs=half"), "--set customs=half: give a number"),
        (("--set", "customs=nan"), "customs is nan; give a number from 0.0 to 1.0"),
        (("--set", "customs=2"), "customs is 2.0; give a number from 0.0 to 1.0"),
        (("--set", "customs=0", "--set", "customs=1"), "--set customs is given twice"),
        (("--format", "csv"), "'csv' is not one of"),
    ],
)  # fmt: skip
def test_a_wrong_call_ends_with_2_names_the_value_and_writes_nothing(
    ctr: Ctr, tmp_path: Path, words: tuple[object, ...], told: str
) -> None:
    code, _, said = make(ctr, *words)
    assert code == 2 and told in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [(), ("--condition", "related"), ("--set", "customs=1")])
def test_an_unknown_family_is_told_before_all_else(ctr: Ctr, tmp_path: Path, more: tuple[str, ...]) -> None:
    code, _, said = make(ctr, *more, family="acretion")
    assert code == 2 and "no family of generated data acretion; there are accretion, conflict, conflict2." in said
    assert "Did you mean accretion?" in said and list(tmp_path.iterdir()) == []


def test_a_family_without_conditions_says_so(ctr: Ctr) -> None:
    code, _, said = make(ctr, "--condition", "related", family="conflict")
    assert code == 2 and "--condition related: no condition of conflict; leave --condition out" in said


def test_help_lists_every_knob(ctr: Ctr) -> None:
    code, told, _ = ctr("data", "generate", "--help")
    assert code == 0
    for line in ("accretion customs=0.5", "conflict phrasings=4", "conflict2 shared_values=false"):
        assert line in told
    assert "data " in ctr("--help")[1]
