"""The host refuses what pluggy would let pass, and attributes every answer and every exception."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import BaseModel

from ctr.engine.errors import PluginError
from ctr.engine.hooks import EpochAdvice, LossTerm, LrAdvice, Reset, hookimpl
from ctr.engine.host import Host, find, implementations, plugin_problem
from ctr.engine.task import Metric

from .tiny import make

torch.set_num_threads(1)


class Unmarked:
    def schedule_lr(self, step: Any) -> LrAdvice:
        return LrAdvice()


class First:
    @hookimpl(tryfirst=True)
    def schedule_lr(self) -> LrAdvice:
        return LrAdvice()


class Last:
    @hookimpl(trylast=True)
    def schedule_lr(self) -> LrAdvice:
        return LrAdvice()


class Wrapper:
    @hookimpl(wrapper=True)
    def schedule_lr(self) -> Any:
        yield


class Optional:
    @hookimpl(optionalhook=True)
    def schedule_lr(self) -> LrAdvice:
        return LrAdvice()


class Renamed:
    @hookimpl(specname="schedule_lr")
    def rate(self) -> LrAdvice:
        return LrAdvice()


class Misspelt:
    @hookimpl
    def shedule_lr(self) -> LrAdvice:
        return LrAdvice()


class Greedy:
    @hookimpl
    def schedule_lr(self, step: Any, optimizer: Any) -> LrAdvice:
        return LrAdvice()


@pytest.mark.parametrize(
    ("plugin", "text"),
    [
        (Unmarked, "Unmarked: schedule_lr bears a hook's name but no @hookimpl marker"),
        (First, "First: schedule_lr sets tryfirst; answers combine without order"),
        (Last, "Last: schedule_lr sets trylast"),
        (Wrapper, "Wrapper: schedule_lr sets wrapper"),
        (Optional, "Optional: schedule_lr sets optionalhook"),
        (Renamed, "Renamed: rate sets specname"),
        (Misspelt, "Misspelt: shedule_lr is no hook; .* Did you mean schedule_lr?"),
        (Greedy, "Greedy: schedule_lr asks for optimizer; this hook gives step"),
    ],
)
def test_what_the_host_refuses(tmp_path: Path, plugin: type, text: str) -> None:
    with pytest.raises(PluginError, match=text):
        implementations(plugin)
    with pytest.raises(PluginError, match=text):
        make(tmp_path, {"p": plugin()})


def raises(hook: str, error: BaseException) -> Any:
    def method(self: Any) -> Any:
        raise error

    return type("Bad", (), {hook: hookimpl(method)})()


@pytest.mark.parametrize("hook", ["extra_loss", "schedule_lr", "adapter_reset", "on_epoch_end"])
@pytest.mark.parametrize("error", [ValueError("too bad"), KeyError(), SystemExit(3), AssertionError()])
def test_an_exception_says_plugin_hook_phase_step_and_line(tmp_path: Path, hook: str, error: BaseException) -> None:
    with pytest.raises(PluginError) as caught:
        make(tmp_path, {"bad": raises(hook, error)}).run()
    text = str(caught.value)
    assert text.startswith(f"plugin bad, hook {hook}, ") and "step 0: raised " + type(error).__name__ in text
    assert "test_host.py:" in text
    assert (caught.value.plugin, caught.value.hook, caught.value.step) == ("bad", hook, 0)


def answers(hook: str, answer: Any) -> Any:
    def method(self: Any) -> Any:
        return answer

    return type("Odd", (), {hook: hookimpl(method)})()


ONE = torch.zeros(())


@pytest.mark.parametrize(
    ("hook", "answer", "text"),
    [
        ("schedule_lr", 0.5, "answered float, not LrAdvice"),
        ("on_epoch_end", LrAdvice(), "answered LrAdvice, not EpochAdvice"),
        ("adapter_reset", "keep", "answered str, not Reset"),
        ("extra_loss", LossTerm("a", ONE), "answered LossTerm, not a list of LossTerm"),
        ("extra_loss", [0.5], "answered a list with float, not LossTerm"),
        ("extra_loss", [LossTerm("a/b", ONE)], "a term whose name a/b must be letters"),
        ("extra_loss", [LossTerm("a", torch.zeros(2))], "term a with a value that is no 0-d tensor"),
        ("extra_loss", [LossTerm("a", 1.0)], "term a with a value that is no 0-d tensor"),
        ("extra_loss", [LossTerm("a", ONE, "x")], "term a with weight x, not a number"),
        ("extra_loss", [LossTerm("a", ONE), LossTerm("a", ONE)], "two terms of one name"),
        ("on_epoch_end", EpochAdvice(save="../x"), "a snapshot whose name must be letters"),
        ("on_epoch_end", EpochAdvice(save="selected"), "a snapshot whose name is written by ctr itself"),
        ("on_epoch_end", EpochAdvice(grad_accum=0), "grad_accum 0"),
        ("on_epoch_end", EpochAdvice(grad_accum=10**30), "grad_accum 1000"),
        ("on_epoch_end", EpochAdvice(grad_accum=True), "grad_accum True"),
        ("on_epoch_end", EpochAdvice(stop_phase="no"), "stop_phase no; True or False is expected"),
        ("on_epoch_end", EpochAdvice(save=3), "save 3, not a text"),
        ("on_epoch_end", EpochAdvice(why=b"x"), "why b'x', not a text"),
        ("schedule_lr", LrAdvice(scale=None), "scale None, not a number"),
        ("schedule_lr", LrAdvice(scale="0.5"), "scale 0.5, not a number"),
        ("schedule_lr", LrAdvice(scale=True), "scale True, not a number"),
        ("schedule_lr", LrAdvice(scale=10**400), "scale beyond what a float holds"),
        ("schedule_lr", LrAdvice(ceiling=torch.ones(2)), r"ceiling as a tensor of shape \(2,\)"),
        ("schedule_lr", LrAdvice(scale={3: 0.5}), "a group of scale 3, not a text"),
        ("schedule_lr", LrAdvice(why=3), "why 3, not a text"),
        ("adapter_reset", Reset(a="foo"), "a foo; keep, redraw or a function is expected"),
        ("adapter_reset", Reset(b=math.nan), "b nan; it must be finite"),
        ("adapter_reset", Reset(clear=frozenset({"c"})), "clear .*; of a and b"),
        ("extra_loss", [LossTerm(7, ONE)], "a term's name 7, not a text"),
        ("extra_loss", [LossTerm("a", torch.zeros((), dtype=torch.int64))], "no 0-d tensor of real numbers"),
        ("extra_loss", [LossTerm("a", torch.zeros((), dtype=torch.complex64))], "no 0-d tensor of real numbers"),
    ],
)
def test_wrong_answers_are_refused_by_plugin_and_hook(tmp_path: Path, hook: str, answer: Any, text: str) -> None:
    with pytest.raises(PluginError, match=text) as caught:
        make(tmp_path, {"odd": answers(hook, answer)}).run()
    assert caught.value.plugin == "odd" and caught.value.hook == hook


def test_a_plugin_logs_under_its_own_name_only(tmp_path: Path) -> None:
    class Talk:
        def __init__(self, name: str, value: Any) -> None:
            self.name, self.value = name, value

        @hookimpl
        def schedule_lr(self, step: Any) -> None:
            step.log(self.name, self.value)

    for name, value, text in [
        ("scale", 1.0, "is one that ctr writes itself"),
        ("a/b", 1.0, "must be letters"),
        ("a", torch.zeros(2), "a single number is expected"),
        ("a", "high", "a number is expected"),
    ]:
        with pytest.raises(PluginError, match=f"plugin t, hook schedule_lr, in phase main, step 0: .*{text}"):
            make(tmp_path / str(value.__class__.__name__) / name.replace("/", "_"), {"t": Talk(name, value)}).run()


def test_a_state_that_cannot_be_put_back_is_refused() -> None:
    class Forgets:
        class Config(BaseModel):
            pass

        def state(self) -> dict[str, Any]:
            return {}

    assert plugin_problem(Forgets) is not None and "restore belong together" in str(plugin_problem(Forgets))


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (["rank"], "metrics must be a mapping of names to Metric"),
        ({"rank": "higher"}, "metrics must be a mapping of names to Metric"),
        ({"a b": Metric()}, "metric a b: its name must be letters"),
    ],
)
def test_what_a_plugin_says_of_its_numbers_is_checked(metrics: Any, text: str) -> None:
    config = type("Config", (BaseModel,), {})
    told = type("Told", (), {"Config": config, "metrics": metrics})
    assert f"plugin class Told: {text}" in str(plugin_problem(told))


class FakePoint:
    """An entry point of a package that misbehaves when loaded."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name, self.value, self.error = name, "some.module:Class", error
        self.dist = None

    def load(self) -> Any:
        raise self.error


def test_a_broken_package_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [FakePoint("b", SystemExit(2)), FakePoint("a", ImportError("no\x1b[2J")), FakePoint("../x", ValueError())]
    points += [FakePoint("train", ValueError()), FakePoint("z.y", ValueError())]
    monkeypatch.setattr("ctr.engine.host.entry_points", lambda group: points)
    found = find("ctr.plugins")
    assert [one.name for one in found] == ["../x", "a", "b", "train", "z.y"]
    assert "owner of ctr's own series" in str(found[3].error) and "must hold no '.'" in str(found[4].error)
    assert found[0].error is not None and found[0].error.startswith("its name must be")
    assert found[1].error == "ImportError: no\\x1b[2J" and found[2].error == "SystemExit: 2"


def test_a_closing_plugin_is_asked_at_the_end_of_the_run_alone() -> None:
    class Late:
        Config = BaseModel
        closing = True
        seen: ClassVar[list[str]] = []

        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            self.seen.append(epoch.kind)

    class Both(Late):
        @hookimpl
        def schedule_lr(self, step: Any) -> None: ...

    host = Host({"late": Late()}, {"late": torch.Generator()}, 0)
    for kind in ("start", "epoch", "phase", "run"):
        assert host.on_epoch_end is not None
        host.on_epoch_end(epoch=SimpleNamespace(kind=kind, phase=None, step=0))
    assert Late.seen == ["run"]
    assert plugin_problem(Late) is None
    assert "is closing, so on_epoch_end is the one hook" in str(plugin_problem(Both))
