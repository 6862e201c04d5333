"""Both sides of the routes topic score the same routes alike, and a difference is not passed over. No times."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ctr.engine.compositions import StandIn
from ctr.plugins.routed.finished import FinishedRun
from ctr.plugins.routed.route import parse

from . import routes
from .routes import (
    Shape,
    Way,
    Written,
    candidates,
    objective,
    peft_of,
    same,
    scorer,
    searches,
    trained,
    until,
    weighted,
)

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return trained(tmp_path_factory.mktemp("bench"), Shape("small", layers=2, width=16, base=4, steps=6, entities=64))


@pytest.mark.parametrize(
    ("ours", "theirs", "passes"),
    [
        (routes.grid_ours, routes.grid_written, (3 * 20 + 3, 3 * 2 * 20)),
        # the start, four scales from the bottom, four above one block of two whose output one of those left; the report
        (routes.greedy_ours, routes.greedy_written, (3 * (1 + 4 + 4 * 0.5) + 3, 3 * 2 * 5 + 3)),
    ],
)
def test_both_ways_find_the_same(ours: Way, theirs: Way, passes: tuple[float, float], run: FinishedRun) -> None:
    judge = objective(run)
    one, other = ours(run, judge), theirs(run, judge)
    same(one, other)
    assert (one.passes, other.passes) == pytest.approx(passes)
    assert len({tuple(losses.values()) for losses in one.losses.values()}) == len(one.losses), "no two score alike"
    name = next(iter(one.losses))
    for wrong in (
        replace(one, losses={**one.losses, name: {**one.losses[name], "A": one.losses[name]["A"] + 1e-15}}),
        replace(one, losses={**one.losses, "A+7B": one.losses[name]}),
        replace(one, losses={}),
        replace(one, report={**one.report, "C": 0.0}),
        replace(one, chosen="A"),
    ):
        with pytest.raises(RuntimeError, match="the two ways differ"):
            same(wrong, other)


def test_what_is_written_is_the_route(run: FinishedRun) -> None:
    route = candidates()[0]
    Written(run, scorer(run).halves).write(route, "factor")
    pairs = run.snapshots.compose(route, "factor").pairs
    assert all(torch.equal(f.a, pairs[f.name].a) and torch.equal(f.b, pairs[f.name].b) for f in run.adapter.factors)


def test_searches_begin_from_nothing_known(run: FinishedRun) -> None:
    first, again = (searches(run, "block") for _ in range(2))
    assert list(first) == ["greedy", "gradient"]
    for kind, one in first.items():
        assert one.passes == again[kind].passes > 20 and one.chosen_by == again[kind].chosen_by
        assert one.objective == one.objective and one.route is not None
    assert first["gradient"].candidates == 24
    assert until(run, "block", float("-inf")) == 9 and until(run, "block", float("inf")) == float("inf")
    assert 9 <= until(run, "block", first["gradient"].chosen_by) <= 9 * 24


def test_pefts_adapters_are_the_phases_own(run: FinishedRun) -> None:
    net = peft_of(run)
    own = run.snapshots.compose(parse("A+B"), "effective").pairs
    for target, pair in own.items():
        layer = net.base_model.model.get_submodule(target)
        assert torch.equal(layer.lora_A["B"].weight, pair.a) and torch.equal(layer.lora_B["B"].weight, pair.b)
    weighted(net, candidates()[0])
    assert "route" not in net.peft_config
    with StandIn(run.model, run.adapter).lent(run.snapshots.compose(candidates()[0], "factor")) as lent:
        assert lent.keys() == own.keys()
