"""The example that CONTRIBUTING.md prints works as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ctr.engine.host import implementations, plugin_problem
from ctr.engine.series import read_series
from tests.engine.tiny import finish, make

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_printed_plugin_halves_the_rate(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code is not None
    scope: dict[str, Any] = {"__name__": "printed"}
    exec(code.group(1), scope)
    halve = scope["Halve"]
    assert plugin_problem(halve) is None and list(implementations(halve)) == ["schedule_lr"]
    finish(make(tmp_path, {"halve": halve(halve.Config(from_epoch=1), None)}))
    assert read_series(tmp_path, "train.lr")[1][[0, 6, 12]].tolist() == [0.1, 0.05, 0.025]


def test_the_table_of_hooks_names_each_with_its_argument() -> None:
    from ctr.engine.host import ARGUMENTS

    for hook, argument in ARGUMENTS.items():
        assert re.search(rf"^\| `{hook}` \|.*\| `{argument}` \|", TEXT, re.MULTILINE), hook
