"""What `ctr plugins` says of one plugin, and of one that is made for another version of the plugin API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ctr.engine.api import VERSION, api_problem, declared
from ctr.engine.catalogue import plugin_rows
from ctr.engine.cli import app
from ctr.engine.errors import SpecError, UsageError
from ctr.engine.host import discover
from ctr.engine.spec import load_study
from tests.fixtures.planted import faults


def point(name: str, value: Any) -> Any:
    members = {"name": name, "value": f"some.module:{name}", "dist": None, "load": lambda self: value}
    return type("Point", (), members)()


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that these plugins are installed, and nothing else."""
    discover()  # what is really installed is remembered first, for this test and for all others

    def pretend(**plugins: Any) -> None:
        points = [point(name, value) for name, value in plugins.items()]
        monkeypatch.setattr("ctr.engine.host.entry_points", lambda group: points if group == "ctr.plugins" else [])

    return pretend


def test_a_page_has_card_settings_with_ranges_and_reasons_hooks_and_version() -> None:
    said = CliRunner().invoke(app, ["plugins", "constant_scale"]).stdout
    assert "hooks: schedule_lr" in said and "plugin API not declared; this ctr has 1" in said
    assert "a whole number at least 0" in said and "the factor on the base rate" in said
    assert "## What we measured" in said
    row = json.loads(CliRunner().invoke(app, ["plugins", "constant_scale", "--json"]).stdout)
    assert row["settings"]["scale"] == {
        "type": "float", "range": "a number at least 0", "default": "required",
        "description": "the factor on the base rate",
    }  # fmt: skip
    assert row["card"].startswith("# controls") and row["api"] == {"made_for": None, "here": 1, "satisfied": True}


def test_a_card_cannot_drive_a_terminal(installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carded"
    package.mkdir()
    (package / "__init__.py").write_text("from tests.fixtures.planted.faults import Base\n\nclass P(Base): ...\n")
    (package / "README.md").write_text("# p\n\x1b[2J[red]x[/]\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import carded  # type: ignore[import-not-found]

    installed(p=carded.P)
    said = CliRunner().invoke(app, ["plugins", "p"]).stdout
    assert "\x1b" not in said and "\\x1b[2J[red]x[/]" in said


def test_a_plugin_that_is_not_there_is_guessed(installed: Any) -> None:
    installed(focal=faults.Base)
    with pytest.raises(UsageError, match="no plugin vocal is installed; there are focal. Did you mean focal?"):
        plugin_rows("vocal")


@pytest.mark.parametrize(
    ("api", "text"),
    [
        ((VERSION + 1, VERSION + 2), "made for plugin API 2 to 3, and this ctr has plugin API 1"),
        ((VERSION, VERSION + 5), None),
        (None, None),
        ("1", "api must be the lowest and the highest version"),
        ((2, 1), "api must be the lowest and the highest version"),
        ((True, True), "api must be the lowest and the highest version"),
    ],
)  # fmt: skip
def test_versions_are_held_against_each_other(api: Any, text: str | None) -> None:
    problem = api_problem(type("P", (), {"api": api}))
    assert problem is None if text is None else text in str(problem)


def test_a_plugin_of_another_version_is_refused_by_a_page_and_by_a_study(installed: Any, study: Any) -> None:
    installed(other=faults.OtherVersion)
    row = plugin_rows("other")[0]
    assert not row["api"]["satisfied"] and "made for plugin API 2 to 3, and this ctr has plugin API 1" in row["error"]
    said = CliRunner().invoke(app, ["plugins", "other"]).stdout
    assert "made for plugin API 2 to 3; this ctr has 1: NOT satisfied" in said
    found = discover.__wrapped__()
    found.tasks.update(discover().tasks)
    path = study({"constant_scale: {scale: 1.5, from_epoch: 1}": "other: {}"})
    with pytest.raises(SpecError, match="plugin .other. is installed but cannot be loaded: .* 2 to 3, .* API 1"):
        load_study(path, (), found)
    assert declared(faults.OtherVersion) == (2, 3)
