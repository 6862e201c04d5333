"""What a plugin may look at, and that looking changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.errors import PluginError
from ctr.engine.events_log import read_events
from ctr.engine.hooks import hookimpl
from ctr.engine.probe import weights

from .tiny import bits, finish, make

torch.set_num_threads(1)


class Look:
    """Does in `on_epoch_end` all that a plugin may do, and some things that it should not."""

    def __init__(self) -> None:
        self.losses: list[list[float]] = []

    @hookimpl
    def on_epoch_end(self, epoch: Any) -> None:
        now = {name: p.detach() for name, p in epoch.probe.params.items()}
        halves = {name: p / 2 for name, p in now.items()}
        found = epoch.evaluate([{}, halves, now], "val")
        self.losses.append([one.mean() for one in found])
        batch = epoch.probe.batches[0]
        grads = torch.autograd.grad(epoch.probe.loss(batch), list(epoch.probe.params.values()))
        assert all(torch.isfinite(g).all() for g in grads)
        epoch.probe.loss(batch).backward()
        torch.rand(3)  # a draw from the global stream
        if epoch.kind == "run":
            epoch.evaluate([{}], "test")


def test_looking_changes_no_bit(tmp_path: Path) -> None:
    look = Look()
    assert bits(finish(make(tmp_path / "a"))) == bits(finish(make(tmp_path / "b", {"l": look})))
    assert all(row[0] == row[2] != row[1] for row in look.losses) and len(look.losses) == 6
    reads = [r["by"] for r in read_events(tmp_path / "b") if r["event"] == "evaluation" and r["split"] == "test"]
    assert reads == ["engine", "engine", "plugin"]


def test_the_test_split_is_closed_before_the_end(tmp_path: Path) -> None:
    class Peek:
        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            epoch.evaluate([{}], "test")

    with pytest.raises(PluginError, match="the test split is read at kind run, not at start"):
        make(tmp_path, {"p": Peek()}).run()


@pytest.mark.parametrize(
    ("state", "text"),
    [({"0.wieght": torch.zeros(8, 5)}, "0.wieght, which this model does not have"),
     ({"0.weight": torch.zeros(5, 8)}, r"0.weight of shape \(5, 8\); the model has \(8, 5\)")],
)  # fmt: skip
def test_states_that_do_not_fit_are_refused(tmp_path: Path, state: dict[str, torch.Tensor], text: str) -> None:
    module = make(tmp_path).module
    with pytest.raises(PluginError, match=text), weights(module, state):
        pass


def test_lent_weights_come_back_whatever_happens(tmp_path: Path) -> None:
    module = make(tmp_path).module
    before = module[0].weight.data_ptr()
    with pytest.raises(KeyError), weights(module, {"0.weight": torch.zeros(8, 5), "1.running_mean": torch.ones(8)}):
        assert module[0].weight.abs().sum() == 0 and module[1].running_mean.sum() == 8
        raise KeyError
    assert module[0].weight.data_ptr() == before and module[1].running_mean.sum() == 0
