"""What a run is refused for once its parts are there and before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ctr.engine.build import _check_plugins
from ctr.engine.errors import PluginError, SpecError


class Fits:
    @staticmethod
    def misfit(config: Any, run: Any, adapter: Any) -> str | None:
        return None if adapter == config else f"wants {config}, not {adapter}"


class Breaks:
    @staticmethod
    def misfit(config: Any, run: Any, adapter: Any) -> str | None:
        raise KeyError(config)


def check(adapter: Any, **plugins: tuple[Any, Any]) -> None:
    run = SimpleNamespace(plugins={name: config for name, (_, config) in plugins.items()})
    registry: Any = SimpleNamespace(plugins={name: kind for name, (kind, _) in plugins.items()})
    _check_plugins(run, registry, adapter)


def test_every_plugin_says_why_it_cannot_act_in_a_run() -> None:
    check("lora", a=(Fits, "lora"), silent=(object, None))
    with pytest.raises(SpecError) as caught:
        check("bank", b=(Fits, "lora"), a=(Fits, "\x1b[2J"), good=(Fits, "bank"))
    assert [(p.path, p.text) for p in caught.value.problems] == [
        ("plugins.a", "wants \\x1b[2J, not bank"),
        ("plugins.b", "wants lora, not bank"),
    ]
    assert caught.value.exit_code == 3


def test_a_plugin_that_breaks_while_it_judges_is_named() -> None:
    with pytest.raises(PluginError, match="plugin p could not judge the run: KeyError: 'x'"):
        check(None, p=(Breaks, "x"))
