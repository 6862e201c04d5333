"""Compositions stand in for a run's own adapter, for as long as they are looked at."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ctr.engine.compositions import Composition, StandIn
from ctr.engine.deltas import Pair
from ctr.engine.errors import PluginError
from ctr.engine.hooks import hookimpl
from ctr.engine.probe import Evaluator
from ctr.engine.task import Context, Enough
from ctr.engine.tasks.language_config import LoraSettings, TinyModel
from ctr.engine.tasks.language_models import LanguageModel, assemble, pairs

from .tiny import Tiny, bits, finish, make, train_spec

torch.set_num_threads(1)
IDS = torch.arange(48).view(4, 12) % 200


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def model(request: Any, tmp_path_factory: Any) -> LanguageModel:
    tiny = TinyModel(kind="tiny", family=request.param, width=32, layers=4, heads=2)
    lora = LoraSettings(kind="lora", rank=4, alpha=8, dropout=0.1)
    made = assemble(tiny, lora, Context(0, torch.device("cpu"), tmp_path_factory.mktemp("m")))
    made.train_what(adapter=True)
    generator = torch.Generator().manual_seed(1)
    for factor in (pairs(made) or pytest.fail()).factors:
        factor.b.data.normal_(generator=generator)
    return made.eval()


def own(model: LanguageModel, *weights: float) -> Composition:
    """Return the model's adapter, once for each weight, side by side."""
    factors = (pairs(model) or pytest.fail()).factors
    return Composition({
        f.name: Pair(torch.cat([f.a.data] * len(weights)), torch.cat([w * f.b.data for w in weights], 1), f.scaling)
        for f in factors
    })  # fmt: skip


@torch.no_grad()
def test_its_own_factors_give_what_it_gives_and_none_the_base(model: LanguageModel) -> None:
    stand, plain = StandIn(model, pairs(model)), model.hidden(IDS, None)
    names = {name: id(p) for name, p in model.named_parameters()}
    with stand.lent(own(model, 1.0)):
        assert torch.equal(model.hidden(IDS, None), plain)
    with model.without_adapter():
        base = model.hidden(IDS, None)
    with stand.lent(Composition({})):
        assert torch.equal(model.hidden(IDS, None), base) and not torch.equal(base, plain)
    with stand.lent(own(model, 0.75, 0.25)):  # of twice the rank
        torch.testing.assert_close(model.hidden(IDS, None), plain, rtol=1e-5, atol=1e-5)
    assert {name: id(p) for name, p in model.named_parameters()} == names


def test_another_scaling_is_folded_into_b(model: LanguageModel) -> None:
    stand, plain = StandIn(model, pairs(model)), model.hidden(IDS, None)
    pairs_ = {n: Pair(p.a, p.b * 4, p.scaling / 4) for n, p in own(model, 1.0).pairs.items()}
    with stand.lent(Composition(pairs_)):
        assert torch.equal(model.hidden(IDS, None), plain)  # by a power of two, which moves no bit


def test_what_does_not_fit_is_refused_and_nothing_stays_lent(model: LanguageModel) -> None:
    stand = StandIn(model, pairs(model))
    (name, pair), *_ = own(model, 1.0).pairs.items()
    wrong = [
        ({"layer.of.nobody": pair}, "layer.of.nobody, which has no adapter"),
        ({name: Pair(pair.a[:, 1:], pair.b, 2.0)}, "are expected"),
        ({name: Pair(pair.a[1:], pair.b, 2.0)}, "are expected"),
    ]
    before = [id(p) for p in model.parameters()]
    for state, text in wrong:
        with pytest.raises(PluginError, match=text), stand.lent(Composition(state)):
            pass
    with pytest.raises(KeyError), stand.lent(Composition({})):
        raise KeyError
    assert [id(p) for p in model.parameters()] == before
    with pytest.raises(PluginError, match="trains no adapter"), StandIn(model, None).lent(Composition({})):
        pass


@torch.no_grad()
def test_passes_begin_above_a_trunk_bit_for_bit(model: LanguageModel) -> None:
    stand = StandIn(model, pairs(model))
    whole, half = own(model, 1.0), own(model, 0.5)
    below = {name: pair for name, pair in whole.pairs.items() if ".0." in name or ".1." in name}
    mixed = Composition({**half.pairs, **below})  # agrees with `whole` in the two lowest blocks
    rows = [IDS, IDS[:2, :5]]
    with stand.lent(whole), model.trunk(None, 2) as trunk:
        for ids in rows:
            with suppress(Enough):
                model.hidden(ids, None)
    assert trunk is not None and len(trunk.outputs) == 2
    with stand.lent(mixed):
        straight = [model.hidden(ids, None) for ids in rows]
        with model.trunk(trunk, None):
            assert all(torch.equal(model.hidden(ids, None), x) for ids, x in zip(rows, straight, strict=True))
        with model.trunk(trunk, 3) as higher:
            for ids in rows:
                with suppress(Enough):
                    model.hidden(ids, None)
        assert higher is not None and higher.height == 3
        with model.trunk(higher, None):
            assert all(torch.equal(model.hidden(ids, None), x) for ids, x in zip(rows, straight, strict=True))
        calls = []
        handle = model.blocks()[0].get_submodule("mlp").register_forward_hook(lambda *_: calls.append(1))
        with model.trunk(trunk, None):
            model.hidden(IDS, None)
        assert not calls, "the lower blocks are not computed again"
        model.hidden(IDS, None)
        handle.remove()
        assert calls, "and are, once nothing is lent"


def test_gradients_by_factor_are_those_of_the_effective_weights() -> None:
    task = Tiny(lora=True, dropout=0.0)
    task.batches_of = lambda split, items: [task.batch(0, 0), task.batch(0, 1)]  # type: ignore[attr-defined]
    module = task.build()
    from ctr.engine.adapters import Adapter, Factor

    part = task.pair(module)
    adapter = Adapter([Factor("hidden", part.a, part.b, 2.0, part.base)], lambda a, g: a)
    wide = Pair(torch.randn(3, 5), torch.randn(8, 3), 2.0)
    evaluate = Evaluator(task, module, "run", None, StandIn(module, adapter))  # type: ignore[arg-type]
    loss, found = evaluate.gradient(Composition({"hidden": wide}), "val", [0])
    eps = 1e-3
    nudged = Pair(wide.a, wide.b + eps * torch.sign(found["hidden"][1]), 2.0)
    more, _ = evaluate.gradient(Composition({"hidden": nudged}), "val", [0])
    assert (more - loss) / eps == pytest.approx(float(found["hidden"][1].abs().sum()), rel=0.05)
    assert found["hidden"][0].shape == (3, 5) and part.a.grad is None


def test_a_hook_may_score_compositions_of_its_phases_and_changes_no_bit(tmp_path: Path) -> None:
    seen: list[list[float]] = []

    class Compose:
        @hookimpl
        def on_epoch_end(self, epoch: Any) -> None:
            if epoch.kind == "run":
                ends = [moments["end"] for moments in epoch.snapshots.values()]
                states = [Composition({"hidden": Pair(e["hidden.a"], e["hidden.b"], 2.0)}) for e in ends]
                by_task = epoch.evaluate.by_task["main"]
                seen.append([one.mean() for one in by_task([*states, {}])])
                epoch.log.record("route", weights=[1.0, 0.5])

    def one(folder: Path, plugins: Any) -> Any:
        specs = [train_spec(name="A", epochs=2), train_spec(name="B", epochs=2)]
        return finish(make(folder, plugins, task=Tiny(3, lora=True), phases=specs))

    assert bits(one(tmp_path / "a", {"c": Compose()})) == bits(one(tmp_path / "b", {}))
    first, last, now = seen[0]
    assert last == now != first
    from ctr.engine.events_log import read_events

    (kept,) = [r for r in read_events(tmp_path / "a") if r["event"] == "record"]
    assert (kept["owner"], kept["name"], kept["data"]) == ("c", "route", {"weights": [1.0, 0.5]})
