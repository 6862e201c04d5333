"""The short way into a command: taken where one package alone claims it, and never in another's place."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from ctr.engine import cli, entry
from ctr.tui import quick

OURS = {"ctr.quick": "tui = ctr.tui.quick:tui", "ctr.commands": "tui = ctr.tui.command:tui"}


def install(folder: Path, name: str, points: dict[str, str]) -> None:
    made = folder / f"{name}-1.0.dist-info"
    made.mkdir(parents=True)
    text = "".join(f"[{group}]\n{line}\n\n" for group, line in points.items())
    (made / "entry_points.txt").write_text(f"[console_scripts]\ntui = wrong:tui\n\n{text}")


OTHER = {"ctr.commands": "tui = other:tui"}


@pytest.mark.parametrize(
    ("ours", "others", "short"),
    [
        (OURS, {}, True),
        (OURS, {"ctr.commands": "tui2 = other:tui"}, True),
        ({"ctr.quick": OURS["ctr.quick"]}, {}, False),
        ({"ctr.commands": OURS["ctr.commands"]}, {}, False),
        (OURS, OTHER, False),
        (OURS, {"ctr.quick": "tui = other:tui"}, False),
        ({"ctr.quick": OURS["ctr.quick"]}, OTHER, False),
        ({**OURS, "ctr.quick": "tui = ctr.tui.no_such_module:tui"}, {}, False),
    ],
)
def test_a_short_way_needs_one_owner(
    ours: dict[str, str], others: dict[str, str], short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "a", "ctr_engine", ours)
    install(tmp_path / "b", "other", others)
    install(tmp_path / "c", "ctr_engine", OURS)  # a second copy further down the path counts for nothing
    path = [str(tmp_path / name) for name in "abc"]
    monkeypatch.setattr(entry, "declared", lambda _, real=entry.declared: real([*path, str(tmp_path / "missing")]))
    assert (entry.find("tui") is quick.tui) == short
    assert entry.find("--help") is None and entry.find("runs/x") is None


def test_the_reader_of_entry_points_agrees_with_the_librarys() -> None:
    groups = [group for group in entry_points().groups if group.startswith("ctr.")]
    known = {(p.group, p.name, p.value) for group in groups for p in entry_points(group=group)}
    assert {(group, name, value) for _, group, name, value in entry.declared(sys.path)} == known and known


@pytest.mark.parametrize("words", [["--once"], ["runs", "--json"], ["a", "b"], [""], ["--"], ["--theme", "ctr-light"]])
def test_words_that_are_more_than_a_folder_are_read_by_the_command_line(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(quick, "view", lambda *given: shown.append(given))
    for stream in ("stdin", "stdout"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True, raising=False)
    assert not quick.tui(words) and not shown
    assert quick.tui(["runs"]) and quick.tui([]) and len(shown) == 2


def test_whatever_is_not_taken_goes_the_whole_way(monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[str] = []
    monkeypatch.setattr(cli, "main", lambda: went.append("whole"))
    monkeypatch.setattr(entry, "find", lambda name: lambda words: bool(words))
    for argv in (["ctr"], ["ctr", "tui"], ["ctr", "tui", "x"]):
        monkeypatch.setattr("sys.argv", argv)
        entry.main()
    assert went == ["whole", "whole"]
