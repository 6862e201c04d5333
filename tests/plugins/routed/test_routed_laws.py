"""The laws that every built-in keeps, tried on routed composition in whole runs of several phases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.checkpoint import CheckpointStore
from ctr.engine.events_log import read_events
from ctr.engine.hooks import hookimpl
from ctr.plugins.routed.methods import Comparison
from ctr.plugins.routed.plugin import Routed
from tests.engine.tasks.small_text import train
from tests.plugins.test_compose import trained

from .test_routed import PHASES, routed

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own
SHORT = """\
          fixed: {kind: route, route: A+0.9B+0.25C}
          oracle: {kind: greedy, by: block, start: A+0.9B, scales: [0, 1]}
          slope: {kind: gradient, by: module, vary: [A, B, C], steps: 3}
"""
CLOCK = ("time", "seq", "seconds", "resumed")


def bits(run: Path) -> dict[str, Any]:
    """Return every tensor of the last checkpoint, and everything that the log says, clocks apart."""
    loaded = CheckpointStore(run).newest()
    assert loaded is not None
    told = [
        {key: value for key, value in record.items() if key not in CLOCK}
        for record in read_events(run)
        if record["event"] in ("epoch", "evaluation", "boundary", "mark", "record")
    ]
    for record in told:
        if isinstance(record.get("data"), dict):
            record["data"].pop("seconds", None)
    return {"tensors": loaded.tensors, "told": told}


def same(left: dict[str, Any], right: dict[str, Any], without: str = "") -> bool:
    kept = [[r for r in side["told"] if r["event"] != without] for side in (left, right)]
    tensors = left["tensors"].keys() == right["tensors"].keys() and all(
        torch.equal(value, right["tensors"][name]) for name, value in left["tensors"].items()
    )
    return tensors and kept[0] == kept[1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("plain"), *PHASES)


@pytest.fixture(scope="module")
def acting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("acting"), *PHASES, replaced=routed(SHORT))


def test_it_acts_and_changes_no_bit_of_the_run(plain: Path, acting: Path) -> None:
    one, other = bits(plain), bits(acting)
    assert same(one, other, without="record") and not same(one, other)


def test_inert_settings_change_nothing_at_all(plain: Path, tmp_path: Path) -> None:
    nothing = {"  baseline: {}\n": "  baseline: {plugins: {routed: {}}}\n"}
    assert same(bits(plain), bits(trained(tmp_path, *PHASES, replaced=nothing)))


def test_the_same_seed_gives_the_same_bits(acting: Path, tmp_path: Path) -> None:
    assert same(bits(acting), bits(trained(tmp_path, *PHASES, replaced=routed(SHORT))))


def test_killed_while_it_searches_it_ends_as_if_it_were_not(
    acting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Comparison.run

    def die(self: Comparison, name: str, method: Any) -> Any:
        if name == "slope":
            raise KeyboardInterrupt
        return whole(self, name, method)

    monkeypatch.setattr(Comparison, "run", die)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *PHASES, replaced=routed(SHORT))
    monkeypatch.setattr(Comparison, "run", whole)
    run = tmp_path / "runs" / "spoken" / "baseline-s1"
    status = json.loads((run / "status.json").read_text())
    assert status["status"] != "finished"
    shutil.rmtree(run / "lock", ignore_errors=True)
    assert train(tmp_path / "spoken.yaml", run).status == "finished"
    assert same(bits(acting), bits(run))


def test_it_draws_nothing_and_leaves_what_it_looks_at(
    acting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Routed.on_epoch_end
    seen: list[bool] = []

    @hookimpl
    def watched(self: Routed, epoch: Any) -> None:
        def state() -> list[torch.Tensor]:
            held = [t for p in epoch.snapshots.values() for m in p.values() for t in m.values()]
            held += [t for factor in epoch.factors for t in (factor.a, factor.b)]
            return [torch.get_rng_state(), *(t.detach().clone() for t in held)]

        before = state()
        ask(self, epoch)
        seen.append(all(torch.equal(x, y) for x, y in zip(before, state(), strict=True)))

    monkeypatch.setattr(Routed, "on_epoch_end", watched)
    assert same(bits(acting), bits(trained(tmp_path, *PHASES, replaced=routed(SHORT))))
    assert seen == [True]
