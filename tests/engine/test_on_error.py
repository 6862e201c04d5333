"""A plugin that fails ends the run, or is left out from then on; then everybody is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from ctr.engine.errors import PluginError, SpecError
from ctr.engine.events_log import read_events
from ctr.engine.hooks import LossTerm, LrAdvice, hookimpl
from ctr.engine.host import Registry, discover, plugin_problem
from ctr.engine.spec import RunSpec, load_study
from ctr.engine.spec_schema import study_schema
from ctr.engine.study import run
from ctr.engine.testing import Neighbour, bits, finish, make, stop_in

torch.set_num_threads(1)
OFF = {"brittle": "disable"}


class Brittle:
    """Halves the rate and adds a term until it fails in the hook and at the step that it is told."""

    class Config(BaseModel, extra="forbid", frozen=True):
        hook: str = "schedule_lr"
        step: int = 7
        silent: bool = False

    def __init__(self, config: Any, generator: Any = None) -> None:
        self.config, self.calls = config, 0

    def _over(self, hook: str, step: int) -> bool:
        due = (step, hook) >= (self.config.step, self.config.hook)  # extra_loss comes first, in a step as by name
        if due and not self.config.silent:
            raise ZeroDivisionError("so brittle")
        return due

    @hookimpl
    def extra_loss(self, forward: Any) -> list[LossTerm]:
        over = self._over("extra_loss", forward.step)
        return [] if over else [LossTerm("more", forward.outputs.loss, 0.5)]

    @hookimpl
    def schedule_lr(self, step: Any) -> LrAdvice | None:
        return None if self._over("schedule_lr", step.step) else LrAdvice(scale=0.5)

    def state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


def made(folder: Path, on_error: dict[str, str] | None = None, checkpoint: Any = None, **settings: Any) -> Any:
    draws = torch.Generator()
    plugins = {"brittle": Brittle(Brittle.Config(**settings)), "neighbour": Neighbour(None, draws)}
    return make(folder, plugins, generators={"neighbour": draws}, on_error=on_error, checkpoint=checkpoint)


@pytest.mark.parametrize("hook", ["extra_loss", "schedule_lr"])
def test_from_where_it_failed_on_a_run_is_as_if_it_answered_nothing(hook: str, tmp_path: Path) -> None:
    failed = finish(made(tmp_path / "a", OFF, hook=hook))
    silent = finish(made(tmp_path / "b", hook=hook, silent=True))
    assert bits(failed) == bits(silent)
    told = [r for r in read_events(tmp_path / "a") if r["event"] == "warning"]
    assert [(r["disabled"], r["hook"], r["step"]) for r in told] == [("brittle", hook, 7)]
    assert "raised ZeroDivisionError: so brittle" in told[0]["text"] and "test_on_error.py:" in told[0]["text"]


def test_left_alone_it_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="so brittle"):
        finish(made(tmp_path))


@pytest.mark.parametrize("step", [6, 12])
def test_resumed_it_stays_disabled(step: int, tmp_path: Path) -> None:
    """Killed before the failure it fails again, killed after it it is not asked again."""
    more: dict[str, Any] = {"on_error": OFF, "checkpoint": {"every_steps": 5}}
    straight = finish(made(tmp_path / "a", **more))
    stop_in(made(tmp_path / "b", **more), step, "step")
    resumed = finish(made(tmp_path / "b", **more))
    assert bits(straight) == bits(resumed) and list(resumed.host.disabled) == ["brittle"]
    told = [[r["step"] for r in read_events(tmp_path / f) if r.get("disabled")] for f in "ab"]
    assert told == [[7], [7]]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    found = Registry({**discover().plugins, "brittle": Brittle}, discover().tasks)
    monkeypatch.setattr("ctr.engine.study.discover", lambda: found)
    return found


GIVEN = "constant_scale: {scale: 1.5, from_epoch: 1}"


def test_the_report_warns_and_claims_no_matched_arms(study: Any, registry: Registry, tmp_path: Path) -> None:
    path = study({GIVEN: "brittle: {step: 4, on_error: disable}", "[1, 2]": "[1]"})
    result = run(path, tmp_path / "runs")
    assert result.code == 0
    report = json.loads((result.folder / "report.json").read_text())
    assert "not the treatments that they name (disabled: brittle in constant-s1)" in report["exactness"]
    assert any("so brittle" in line and "disabled from here on" in line for line in report["problems"])
    assert [row["warnings"] != [] for row in report["runs"]] == [False, True]
    for page in ("report.md", "report.html"):
        assert "not the treatments that they name" in (result.folder / page).read_text()


def test_the_policy_is_part_of_the_resolved_run_and_of_its_identity(study: Any, registry: Registry) -> None:
    runs = {
        policy: load_study(study({GIVEN: f"brittle: {{step: 4{policy}}}"}), (), registry).runs()[-1]
        for policy in ("", ", on_error: fail", ", on_error: disable")
    }
    plain, fail, disable = runs.values()
    assert "on_error" not in str(plain.document()) and plain.document() == fail.document()
    assert disable.document()["plugins"]["brittle"]["on_error"] == "disable"
    assert RunSpec.from_document(disable.document(), registry) == disable
    ids = [one.identity({}, "cpu", {}) for one in (plain, fail, disable)]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("on_error: ignore", r"plugins.brittle.on_error: must be one of fail, disable, given .ignore."),
        ("on_eror: fail", "no such setting; settings: "),
    ],
)
def test_a_policy_that_does_not_exist_is_refused(given: str, text: str, study: Any, registry: Registry) -> None:
    with pytest.raises(SpecError, match=text):
        load_study(study({GIVEN: f"brittle: {{{given}}}"}), (), registry)


def test_no_plugin_may_have_the_setting_itself() -> None:
    taken = type("Taken", (), {"Config": type("Config", (BaseModel,), {"__annotations__": {"on_error": str}})})
    assert "has a setting on_error" in str(plugin_problem(taken))


def test_the_schema_for_editors_knows_it(registry: Registry) -> None:
    about = study_schema(registry)["$defs"]["plugin:brittle"]["properties"]["on_error"]
    assert ["fail", "disable"] in [branch.get("enum") for branch in about["anyOf"]]
