"""Base rates to the last bit, and directions that are what the optimizer then does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctr.engine.errors import DataError
from ctr.engine.optim import Rates, base_rate, build_optimizer, direction

VECTORS = Path(__file__).parents[3] / "shared" / "data" / "vectors" / "commit_regimes.json"


def schedule(kind: str, per: str = "epoch", warmup: float = 0) -> Any:
    return SimpleNamespace(kind=kind, per=per, warmup_epochs=warmup)


@pytest.mark.skipif(not VECTORS.exists(), reason="the recorded traces lie beside the development checkout only")
def test_the_cosine_agrees_with_the_recorded_schedule_to_the_last_bit() -> None:
    recorded = json.loads(VECTORS.read_text())["base_schedule_30_epochs"]
    assert [base_rate(schedule("cosine"), 0.01, e, 30, 2) for e in range(30)] == recorded


def test_schedules_by_hand() -> None:
    assert [base_rate(schedule("cosine"), 1.0, e, 4, 2) for e in range(4)] == [0.5, 1.0, 1.0, 0.5]
    assert [base_rate(schedule("linear"), 1.0, e, 4, 0) for e in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert [base_rate(schedule("constant"), 0.3, e, 4, 1) for e in range(3)] == [0.3, 0.3, 0.3]
    assert base_rate(schedule("cosine"), 0.01, 0, 1, 2) == 0.005


def test_a_schedule_per_step_counts_in_micro_batches_and_runs_over_its_phase() -> None:
    optimizer = SimpleNamespace(base_lr=1.0, groups={"head": SimpleNamespace(lr_ratio=0.1)})
    train = SimpleNamespace(schedule=schedule("linear", "step", 0.5), optimizer=optimizer, epochs=2)
    rates = Rates(train, ["base", "head"], 4)
    seen = [rates.at(epoch, micro)["base"] for epoch in range(2) for micro in range(4)]
    assert seen == [0.5, 1.0, 1.0, *[1 - k / 6 for k in range(1, 6)]]
    assert rates.at(0, 1)["head"] == 0.1


SETTINGS = [
    ("sgd", {"momentum": 0.0, "weight_decay": 0.0}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01}),
    ("sgd", {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("sgd", {"momentum": 0.9, "dampening": 0.2}),
    ("adam", {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}),
    ("adamw", {"betas": (0.8, 0.999), "eps": 1e-6, "weight_decay": 0.1}),
]


@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_the_direction_is_what_the_next_step_subtracts_per_unit_rate(kind: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, dtype=torch.float64))
    spec = SimpleNamespace(kind=kind, groups={}, model_dump=lambda exclude: dict(settings))
    optimizer = build_optimizer(spec, {"base": [p]})
    for _ in range(4):
        p.grad = torch.randn(6, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.01
        predicted, before = direction(optimizer)["base"][0], p.detach().clone()
        optimizer.step()
        torch.testing.assert_close(before - p.detach(), 0.01 * predicted, rtol=1e-9, atol=1e-12)


def test_a_group_that_nobody_has_is_refused_by_name() -> None:
    spec = SimpleNamespace(
        kind="sgd", groups={"haed": SimpleNamespace(weight_decay=None)}, model_dump=lambda exclude: {}
    )
    with pytest.raises(DataError, match=r"no such group haed; this task has base"):
        build_optimizer(spec, {"base": [torch.nn.Parameter(torch.zeros(1))]})
