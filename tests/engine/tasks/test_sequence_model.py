"""The toy transformer: formulas against loops and torch's own modules, the source's fixtures, and its insides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity, silu

from ctr.engine.errors import SpecError
from ctr.engine.tasks.toy_branches import Branches, likeness, top_gates
from ctr.engine.tasks.toy_transformer import Attention
from tests.engine.tasks.sequences import EVERYTHING, built, task

torch.set_num_threads(1)
DENDRITIC = {"compartments": 4, "mode": "dendritic", "top_k": 2}
KINDS: list[dict[str, Any]] = [{}, {"compartments": 4}, DENDRITIC]


# ---------------------------------------------------------------------------------------------------- fixtures
@pytest.mark.parametrize(
    ("model", "loss", "parameters"),
    [({}, 3.734748, 60_896), ({"compartments": 4}, 3.587515, 61_576), (DENDRITIC, 3.612109, 61_576)],
)
def test_the_sources_first_losses_come_out(model: dict[str, Any], loss: float, parameters: int) -> None:
    made = task({"stream": "consecutive"})
    module = built(made, faithful=True, **model)
    found = made.forward(module, made.batch(0, 0), {}).loss.item()
    assert found == pytest.approx(loss, abs=3e-6)
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


# ---------------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_torchs_own_weights_included(causal: bool) -> None:
    torch.manual_seed(5)
    ours = Attention(12, 3, causal)
    torch.manual_seed(5)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    assert torch.equal(ours.qkv, theirs.in_proj_weight) and torch.equal(ours.out.weight, theirs.out_proj.weight)
    x = torch.randn(2, 7, 12)
    mask = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    expected, maps = theirs(x, x, x, attn_mask=mask, average_attn_weights=False)
    answer, found = ours(x, maps=True)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(found, maps)


def test_a_causal_model_sees_nothing_later_and_a_faithful_one_does() -> None:
    """The evidence for the source's missing mask: another token 10 changes the logits of all 24 positions."""
    made = task()
    tokens = made.batch(0, 0).tensors["inputs"]
    other = tokens.clone()
    other[:, 10] = (other[:, 10] + 1) % 32
    for form, first in (({}, 10), ({"faithful": True}, 0)):
        module = built(made, **form).eval()
        moved = (module(tokens).logits - module(other).logits).abs().amax((0, 2)) > 1e-5
        assert moved.tolist() == [place >= first for place in range(24)]


# ---------------------------------------------------------------------------------------------------- branches
def by_loop(layer: Branches, mode: str, x: torch.Tensor, strength: float) -> dict[str, torch.Tensor]:
    """Answer with one branch after the other, and one pair of them after the other."""
    outputs, raw = [], []
    for k in range(len(layer.up)):
        active = silu(x @ layer.up[k].T + layer.up_bias[k])
        outputs.append(active @ layer.down[k].T + layer.down_bias[k])
        if mode == "dendritic":
            raw.append((active @ layer.spike[k].T + layer.spike_bias[k])[..., 0])
    inhibition = []
    for k, own in enumerate(outputs):
        others = [torch.relu(cosine_similarity(own, one, dim=-1)) for j, one in enumerate(outputs) if j != k]
        inhibition.append(sum(others) / len(others) if mode == "dendritic" else torch.zeros_like(own[..., 0]))
    scores = torch.stack(raw, -1) if mode == "dendritic" else layer.router(x)
    held_back = torch.stack(inhibition, -1)
    return {"outputs": torch.stack(outputs, -2), "scores": scores - strength * held_back, "inhibition": held_back}


@pytest.mark.parametrize("mode", ["router", "dendritic"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_branches_agree_with_a_loop(mode: str, top_k: int) -> None:
    torch.manual_seed(2)
    layer, x = Branches(6, 3, top_k, mode, 0.7), torch.randn(2, 5, 6)
    mixed, found = layer(x)
    expected = by_loop(layer, mode, x, 0.7)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        scores = expected["scores"][tuple(place)]
        best = sorted(range(3), key=lambda k: -scores[k].item())[:top_k]
        gates = torch.zeros(3).index_put((torch.tensor(best),), scores[best].softmax(0))
        torch.testing.assert_close(found["gates"][tuple(place)], gates, msg=str(place))
        answer = sum(gates[k] * expected["outputs"][(*place, k)] for k in range(3))
        torch.testing.assert_close(mixed[tuple(place)], answer)


def test_branches_are_drawn_as_a_list_of_layers_would_be() -> None:
    torch.manual_seed(2)
    layer = Branches(6, 3, 1, "dendritic", 0.5)
    torch.manual_seed(2)
    for k in range(3):
        parts = torch.nn.Linear(6, 8), torch.nn.Linear(8, 1), torch.nn.Linear(8, 6)
        for part, weight, bias in zip(
            parts, (layer.up, layer.spike, layer.down), (layer.up_bias, layer.spike_bias, layer.down_bias), strict=True
        ):
            assert torch.equal(part.weight, weight[k]) and torch.equal(part.bias, bias[k])


def test_likeness_passes_a_gradient_and_ignores_opposites() -> None:
    outputs = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    assert likeness(outputs).tolist() == [0.5, 0.5, 0.0]
    tilted = torch.tensor([[1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    likeness(tilted).sum().backward()
    assert tilted.grad is not None and tilted.grad.abs().sum() > 0


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_gates_go_forward_sparse_and_backward_as_softmax(top_k: int) -> None:
    scores = torch.tensor([[0.3, 1.2, -0.4]], requires_grad=True)
    weights = torch.tensor([[1.0, -2.0, 0.5]])
    gates = top_gates(scores, top_k)
    assert int((gates == 0).sum()) == 3 - top_k and gates.sum().item() == pytest.approx(1)
    straight = torch.autograd.grad((gates * weights).sum(), scores)[0]
    soft = torch.autograd.grad((scores.softmax(-1) * weights).sum(), scores)[0]
    assert torch.equal(straight, soft)


def test_one_branch_and_no_strength_inhibit_nothing() -> None:
    for layer in (Branches(6, 1, 1, "dendritic", 0.5), Branches(6, 3, 1, "dendritic", 0.0)):
        assert not layer(torch.randn(1, 2, 6))[1]["inhibition"].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((0, 1, "router", 0.5), "count of 1 or more"),
        ((4, 0, "router", 0.5), "top_k from 1 to it, not 4 and 0"),
        ((4, 5, "router", 0.5), "top_k from 1 to it, not 4 and 5"),
        ((4, 1, "dendritic", -0.5), "must not be negative, not -0.5"),
        ((4, 1, "spiking", 0.5), "router or dendritic, not 'spiking'"),
    ],
)
def test_branches_that_cannot_be_are_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Branches(6, *wrong)


# ---------------------------------------------------------------------------------------------------- insides
@pytest.mark.parametrize("form", [{}, {"faithful": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_looking_inside_changes_no_bit_of_the_forward_pass(kind: dict[str, Any], form: dict[str, Any]) -> None:
    made = task(micro=8)
    module, batch = built(made, **kind, **form), made.batch(0, 0)
    plain, seen = made.forward(module, batch, {}), made.forward(module, batch, EVERYTHING)
    assert torch.equal(plain.logits, seen.logits) and torch.equal(plain.loss, seen.loss)
    grads = [torch.autograd.grad(one.loss, list(module.parameters())) for one in (plain, seen)]
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    assert not plain.hidden and not plain.attention and not plain.extra
    assert ("branches" in seen.extra) == bool(kind)


def test_only_the_maps_that_are_asked_for_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = task(), list[Any]()
    module, compute = built(made), Attention._maps
    monkeypatch.setattr(Attention, "_maps", lambda self, *parts: calls.append(self) or compute(self, *parts))
    made.forward(module, made.batch(0, 0), {"hidden": frozenset({-1})})
    assert calls == []
    found = made.forward(module, made.batch(0, 0), {"attention": frozenset({-1, 1})}).attention
    assert calls == [module.blocks[1].attention] and found[1] is found[-1]


def test_what_the_numbers_of_layers_mean() -> None:
    made = task()
    module = built(made, **DENDRITIC)
    out = made.forward(module, made.batch(0, 0), EVERYTHING)
    assert torch.equal(module.norm(out.hidden[1]), out.hidden[-1])
    assert torch.equal(module.head(out.hidden[-1]), out.logits)
    first = module.tokens(made.batch(0, 0).tensors["inputs"]) + module.places.weight
    assert torch.equal(module.blocks[0](first, False)[0], out.hidden[0])
    assert {name: tuple(one.shape) for name, one in out.extra["branches"].items()} == {
        "outputs": (4, 2, 24, 4, 48), "gates": (4, 2, 24, 4), "scores": (4, 2, 24, 4), "inhibition": (4, 2, 24, 4)
    }  # fmt: skip
    assert out.attention[0].shape == (4, 4, 24, 24)
    torch.testing.assert_close(out.attention[0].sum(-1), torch.ones(4, 4, 24))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"hidden": frozenset({2})}, "no hidden states of layer 2; it has -1, 0, 1"),
        ({"hidden": frozenset({-2})}, "no hidden states of layer -2; it has -1, 0, 1"),
        ({"attention": frozenset({0, 5})}, "no attention maps of layer 5; it has -2, -1, 0, 1"),
    ],
)
def test_a_layer_that_is_not_there_is_refused_with_those_that_are(needs: Any, message: str) -> None:
    made = task()
    with pytest.raises(SpecError, match=message):
        made.forward(built(made), made.batch(0, 0), needs)


@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_under_autocast(kind: dict[str, Any]) -> None:
    made = task()
    module, batch = built(made, **kind), made.batch(0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = made.forward(module, batch, EVERYTHING)
    out.loss.backward()
    assert out.loss.dtype == torch.float32
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters() if parameter.grad is not None)
