"""Attention maps and hidden states are transformers' own, and to ask for them changes no bit of the forward pass."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.engine.errors import SpecError
from ctr.engine.task import Batch, Phase
from ctr.engine.tasks.language_models import LanguageModel

from .small_text import FAMILIES, GPT2, LORA, QWEN2, begun, gradients

LAYERS = (0, 1, -1)
STATES = (-3, -2, -1, 0, 1, 2)
NEEDS = {"attention": frozenset(LAYERS), "hidden": frozenset(STATES)}


def eager(module: LanguageModel, batch: Batch, **more: Any) -> Any:
    """Run transformers' own eager attention, which returns its maps."""
    module.causal.set_attn_implementation("eager")
    try:
        return module.causal(
            input_ids=batch.tensors["ids"], position_ids=batch.tensors.get("positions"),
            output_attentions=True, output_hidden_states=True, **more,
        )  # fmt: skip
    finally:
        module.causal.set_attn_implementation("ctr_sdpa")


@pytest.mark.parametrize("rows", ["bucket", "pack"])
@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_maps_and_states_are_those_of_eager_attention(
    model: dict[str, Any], adapter: Any, rows: str, tmp_path: Path
) -> None:
    task, module = begun(tmp_path, model, adapter, rows=rows)
    batch = task.batch(0, 1)
    assert ("positions" in batch.tensors) == (rows == "pack")
    got, theirs = task.forward(module, batch, NEEDS), eager(module, batch)
    assert sorted(got.attention) == sorted(LAYERS) and sorted(got.hidden) == sorted(STATES)
    heads = module.causal.config.num_attention_heads
    for layer in LAYERS:
        shape = (len(batch.tensors["ids"]), heads, *[batch.tensors["ids"].shape[1]] * 2)
        assert got.attention[layer].shape == shape
        torch.testing.assert_close(got.attention[layer], theirs.attentions[layer], rtol=1e-5, atol=1e-6)
    for state in STATES:
        torch.testing.assert_close(got.hidden[state], theirs.hidden_states[state], rtol=1e-5, atol=1e-5)


def test_maps_of_packed_rows_look_at_no_other_row(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2, rows="pack", micro=8)
    batch = task.batch(0, 0)
    seen = task.forward(module, batch, NEEDS).attention[0]
    starts = (batch.tensors["positions"] == 0).cumsum(1)
    apart = starts[:, :, None] != starts[:, None, :]
    assert len(batch.ids) > len(starts), "some line holds several rows"
    assert not seen[apart[:, None].expand_as(seen)].any()
    torch.testing.assert_close(seen.sum(-1), torch.ones(seen.shape[:-1]))


@pytest.mark.parametrize("rows", ["bucket", "pack"])
@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
def test_asking_changes_no_bit(model: dict[str, Any], rows: str, tmp_path: Path) -> None:
    task, module = begun(tmp_path, {**model, "dropout": 0.2}, {**LORA, "dropout": 0.3}, rows=rows)

    def run(needs: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        torch.manual_seed(4)
        out = task.forward(module, task.batch(0, 0), needs)
        assert out.logits is not None
        out.loss.backward()
        return out.loss.detach(), out.logits.detach(), gradients(module)

    plain = run({})
    for needs in (NEEDS, {"attention": frozenset({0})}, {"hidden": frozenset({0, -1})}):
        loss, logits, grads = run(needs)
        assert torch.equal(loss, plain[0]) and torch.equal(logits, plain[1])
        assert all(torch.equal(grads[name], plain[2][name]) for name in plain[2])
    assert not torch.equal(task.forward(module, task.batch(0, 0), {}).loss, plain[0]), "dropout is at work"


def test_a_term_on_maps_and_states_reaches_the_weights(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2, LORA)
    out = task.forward(module, task.batch(0, 0), NEEDS)
    (out.attention[1].square().sum() + out.hidden[1].square().mean()).backward()
    found = gradients(module)
    assert any(grad.abs().max() > 0 for name, grad in found.items() if ".layers.1." in name)


@pytest.mark.parametrize(
    ("needs", "text"),
    [
        ({"hidden": frozenset({3})}, "no hidden state 3; it has -3 to 2"),
        ({"hidden": frozenset({-4})}, "no hidden state -4; it has -3 to 2"),
        ({"attention": frozenset({2})}, "no attention map 2; it has -2 to 1"),
        ({"attention": frozenset({-3})}, "no attention map -3; it has -2 to 1"),
    ],
)
def test_a_layer_that_is_not_there_is_named(needs: Any, text: str, tmp_path: Path) -> None:
    task, module = begun(tmp_path, GPT2)
    with pytest.raises(SpecError, match=f"plugins: this model has {text}"):
        task.forward(module, task.batch(0, 0), needs)


def test_a_layer_past_transformers_own_interface_is_named(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2)
    module.causal.set_attn_implementation("eager")
    with pytest.raises(SpecError, match=r"attention layer 0 does not go through .*; turn off what needs attention"):
        task.forward(module, task.batch(0, 0), NEEDS)


@pytest.mark.parametrize("model", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_recomputed_activations_give_the_same_gradients(model: dict[str, Any], adapter: Any, tmp_path: Path) -> None:
    task, module = begun(tmp_path, {**model, "dropout": 0.2}, adapter)

    def run(on: bool) -> tuple[int, dict[str, Tensor]]:
        task.begin(Phase("main", 0, 2, 5, adapts=adapter is not None, checkpointing=on))
        torch.manual_seed(4)
        saved: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = task.forward(module, task.batch(0, 0), {"hidden": frozenset({1})})
        (out.loss + out.hidden[1].square().mean()).backward()
        return sum(saved), gradients(module)

    (more, plain), (less, again), (_, back) = run(False), run(True), run(False)
    assert less < more / 2, "activations are not kept"
    for name in plain:
        assert torch.equal(plain[name], again[name]) and torch.equal(plain[name], back[name])
    assert plain


def test_maps_while_activations_are_recomputed_are_refused(tmp_path: Path) -> None:
    task, module = begun(tmp_path, QWEN2, LORA)
    task.begin(Phase("main", 0, 2, 5, adapts=True, checkpointing=True))
    with pytest.raises(SpecError, match=r"train.gradient_checkpointing: attention maps cannot be had.*turn it off"):
        task.forward(module, task.batch(0, 0), NEEDS)


def test_a_compiled_pass_is_the_same_and_steps_aside_where_insides_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    task, module = begun(tmp_path, QWEN2, LORA)
    plain = task.forward(module, task.batch(0, 0), {})
    names = list(module.state_dict())
    task.begin(Phase("main", 0, 2, 5, adapts=True, compile=True))
    assert list(module.state_dict()) == names, "no second copy of the weights"
    shown = task.forward(module, task.batch(0, 0), NEEDS)
    assert not compiled and sorted(shown.attention) == sorted(LAYERS)
    loss = task.forward(module, task.batch(0, 0), {}).loss
    assert compiled and module.decoder is not None
    torch.testing.assert_close(loss, plain.loss)
    task.begin(Phase("main", 0, 2, 5, adapts=True))
    assert module.decoder is None
