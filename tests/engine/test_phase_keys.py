"""What the key of a run's first phases holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ctr.engine.lora_bank import BankAdapter, LoraBank, Site
from ctr.engine.provenance import base_weights

from .phase_studies import CONTROLLER, A, B, keys, write

pytestmark = pytest.mark.usefixtures("no_drawing")


def test_a_key_holds_what_decides_the_numbers_so_far_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "keyed", {"a": [A, B], "p": [A, B]}, {"p": CONTROLLER})
    before = keys(path)
    assert len(set(before)) == 2
    for same in ("log.steps=3", "checkpoint.keep=5", "study=renamed", "compare.select.on=val.accuracy"):
        assert keys(path, same) == before, same
    for other in (
        "seeds=[2]",
        "model.width=4",
        "train.micro_batch=32",
        "train.determinism=fast",
        "tasks.B.eval_batch=64",
    ):
        assert set(keys(path, other)).isdisjoint(before), other
    assert set(keys(path, threads=2)).isdisjoint(before)
    assert set(keys(path, arm="p")).isdisjoint(before)
    later = write(tmp_path, "later", {"a": [A, "{task: B, moments: keep, train: {epochs: 2}}"]})
    assert keys(later)[0] == before[0] and keys(later)[1] != before[1]
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.provenance.version", lambda name: "9.9")
        assert set(keys(path)).isdisjoint(before)
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.phase_keys._sources", lambda package: "edited")
        assert set(keys(path)).isdisjoint(before)
    with monkeypatch.context() as patch:
        patch.setattr("ctr.engine.phase_keys._machine", lambda device: ["another"])
        assert set(keys(path)).isdisjoint(before)


def test_the_seed_leaves_the_key_where_neither_weights_nor_order_come_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = "{task: A, name: base, plugins: none, seed: 3}"
    path = write(tmp_path, "seeded", {"a": [base, B], "p": [base, B]}, {"p": CONTROLLER})
    mine = keys(path)
    assert keys(path, arm="p")[0] == mine[0] and keys(path, arm="p")[1] != mine[1]
    assert keys(path, "seeds=[2]")[0] != mine[0]  # the weights that it begins with are others
    monkeypatch.setattr("ctr.engine.phase_keys.base_weights", lambda built: {})
    mine = keys(path)
    assert keys(path, "seeds=[2]")[0] == mine[0] and keys(path, "seeds=[2]")[1] != mine[1]


def test_a_base_has_one_key_whatever_adapter_waits_beside_it() -> None:
    """One base phase for all ranks and draws of a bank, whose factors are views of its parameters."""

    def beside(rank: int) -> Any:
        torch.manual_seed(1)
        base = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))
        bank = LoraBank(dict(base.named_modules()), [Site("0", 4, 3), Site("1", 3, 3)], 2, rank, 1.0)
        BankAdapter(bank).redraw(torch.Generator().manual_seed(rank))
        return SimpleNamespace(module=torch.nn.ModuleDict({"net": base, "bank": bank}), adapter=BankAdapter(bank))

    names = {"net.0.weight", "net.0.bias", "net.1.weight", "net.1.bias"}
    assert set(base_weights(beside(1))) == set(base_weights(beside(2))) == names
