"""Fixtures of tests that train several phases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ctr.engine.kernel import Kernel


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report out: drawing takes longer than training here."""
    monkeypatch.setattr("ctr.engine.report.build_report", lambda folder: {})


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Note the phase of every update that is made."""
    made: list[str] = []
    update = Kernel._update

    def count(self: Kernel, plan: Any, *rest: Any) -> None:
        made.append(plan.phase.name)
        update(self, plan, *rest)

    monkeypatch.setattr(Kernel, "_update", count)
    yield made
