"""Both sides of the language topic do the same work: same loss, same gradients, same regularisers. No times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ctr.engine.series import series_index
from ctr.plugins.geometry import terms
from ctr.plugins.geometry.metrics import effective_rank, isotropy, spectrum

from . import like_the_source, lora
from .language import FOUR, arms
from .lora import Lora, Texts, source_step
from .peak import peak

SMALL = {"kind": "tiny", "width": 16, "layers": 6, "heads": 2, "init_seed": 0}
LENGTHS = [20, 9, 14, 20, 11, 7, 20, 16]

torch.set_num_threads(1)


def test_the_sources_evaluation_and_ours_find_the_same_loss(tmp_path: Path) -> None:
    task = Texts(tmp_path, LENGTHS, 8, SMALL, most=24)
    module = task.build()
    ours, padded = task.evaluate(module, "val"), task.padded("val")
    theirs = like_the_source.evaluate(module, padded)
    assert padded.ids.shape == (8, 24)
    assert padded.mask.sum() == ours.count.sum() + 8  # nothing predicts the first token of a row
    assert theirs["loss"] == pytest.approx(np.mean(ours.loss_sum / ours.count), rel=1e-5)
    assert module.causal.config._attn_implementation == "ctr_sdpa"


@pytest.mark.parametrize("batch", [8, 4])
def test_a_step_of_the_source_and_ours_have_the_same_gradients(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "ADAPTER", {**lora.ADAPTER, "dropout": 0.0})
    # with equally long rows the mean over micro-batches is the mean over tokens
    task = Texts(tmp_path, LENGTHS if batch == 8 else [12] * 8, 8, SMALL, most=24)
    run = Lora(tmp_path / "run", task)
    theirs = source_step(task, batch, 8 // batch, {})
    run.step()
    theirs.step()
    run.close()
    pairs = list(zip(run.kernel.module.named_parameters(), theirs.module.parameters(), strict=True))
    trained = [(name, one.grad, other.grad) for (name, one), other in pairs if one.grad is not None]
    assert len(trained) == 2 * 4 * 6 and any(grad.abs().max() > 0 for _, grad, _ in trained)
    for name, one, other in trained:
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-7), name


def test_the_sources_regularisers_are_the_plugins_on_rows_without_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 4, 5, 5, generator=draw).softmax(-1)
    hidden, mask = torch.randn(2, 90, 6, generator=draw), torch.ones(2, 90, dtype=torch.long)
    layers = [terms.diversity(maps[:, index]) for index in range(3)]
    assert like_the_source.between_heads(maps.unbind(1)) == pytest.approx(float(torch.stack(layers).mean()), rel=1e-5)
    assert like_the_source.crowding(hidden) == pytest.approx(float(terms.repulsion(hidden)), rel=1e-5)
    torch.manual_seed(3)
    theirs = like_the_source.chance_pairs(hidden, mask, tau=0.2)
    torch.manual_seed(3)
    assert theirs == pytest.approx(float(terms.gossip_of_source(hidden, mask, tau=0.2)), rel=1e-5) and theirs > 0
    sigma = spectrum(hidden.flatten(0, 1))
    ours = float(effective_rank(sigma)), float(isotropy(sigma))
    assert like_the_source.rank_and_isotropy(hidden) == pytest.approx(ours, rel=1e-5)


def test_terms_of_each_arm_reach_the_log(tmp_path: Path) -> None:
    named: dict[str, set[str]] = {"plain": set(), "gossip": {"gossip"}, "repulsion": {"repulsion"}, "four": set(FOUR)}
    for name, settings in arms().items():
        (tmp_path / name).mkdir()
        run = Lora(tmp_path / name / "run", Texts(tmp_path / name, LENGTHS, 8, SMALL), settings)
        run.step()
        run.kernel.log.flush()
        run.close()
        found = {key for key in series_index(tmp_path / name / "run") if key.startswith("geometry.term.")}
        assert found == {f"geometry.term.{term}" for term in named[name]}


def test_peak_memory_is_what_was_alive_at_once() -> None:
    def work() -> None:
        for _ in range(3):  # one after the other: what is freed does not add up
            torch.zeros(2**18).add(1)

    assert peak(work) == pytest.approx(2.0, abs=0.01)
