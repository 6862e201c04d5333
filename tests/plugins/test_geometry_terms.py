"""Terms against loops a person can read, numbers worked by hand, identities, gradients, and padding."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.plugins.geometry.branches import branch_repulsion, inhibition, load_balance
from ctr.plugins.geometry.rows import pick
from ctr.plugins.geometry.terms import diversity, gossip, gossip_of_source, repulsion, sparsity

torch.set_num_threads(1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """The tensors of the reference's fixtures, drawn in its order."""
    g = seeded()
    att = torch.randn(2, 3, 4, 5, 5, generator=g).softmax(-1)
    hid, bo, bs = (torch.randn(*shape, generator=g) for shape in ((2, 7, 6), (2, 3, 5, 4, 6), (2, 3, 5, 4)))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()
    return {"att": att, "hid": hid, "bo": bo, "bs": bs, "bg": bs.softmax(-1), "mask": mask}


def cos(a: Tensor, b: Tensor, eps: float) -> float:
    return float((a / max(float(a.norm()), eps)) @ (b / max(float(b.norm()), eps)))


# ---------------------------------------------------------------------------------------------- the source's fixtures
FIXTURES: list[tuple[str, float, Callable[[dict[str, Tensor]], Tensor]]] = [
    ("diversity", 0.5982016, lambda d: torch.stack([diversity(d["att"][:, layer]) for layer in range(3)]).mean()),
    ("repulsion", 0.1704196, lambda d: repulsion(d["hid"])),
    ("repulsion of 5", 0.1212815, lambda d: repulsion(d["hid"], sample=5)),
    ("sparse", 0.7654344, lambda d: sparsity(d["hid"])),
    ("gossip", 0.0, lambda d: gossip_of_source(d["hid"], generator=seeded())),
    ("gossip, masked", 0.0471255, lambda d: gossip_of_source(d["hid"], d["mask"], 0.0, 3, 256, seeded())),
    ("gossip of 5", 0.0649969, lambda d: gossip_of_source(d["hid"], d["mask"], 0.0, 3, 5, seeded())),
    ("branch repulsion", -0.0292676, lambda d: branch_repulsion(d["bo"])),
    ("load balance", 0.0051845, lambda d: load_balance(d["bg"])),
    ("inhibition", 0.1643709, lambda d: inhibition(d["bo"], d["bg"], by_coactivity=True)),
]


@pytest.mark.parametrize(("name", "value", "call"), FIXTURES, ids=lambda x: x if isinstance(x, str) else "")
def test_the_fixtures_of_the_source_come_out(
    drawn: dict[str, Tensor], name: str, value: float, call: Callable[[dict[str, Tensor]], Tensor]
) -> None:
    assert call(drawn).item() == pytest.approx(value, abs=6e-8)


# ---------------------------------------------------------------------------------------------- naive loops
def pairs_of(rows: list[Tensor]) -> list[float]:
    return [math.exp(-float((a - b).square().sum())) for a, b in permutations(rows, 2)]


@pytest.mark.parametrize("masked", [False, True])
def test_repulsion_is_the_mean_over_pairs_of_unit_rows(drawn: dict[str, Tensor], masked: bool) -> None:
    mask = drawn["mask"] if masked else torch.ones(2, 7, dtype=torch.bool)
    pairs = pairs_of([row / row.norm() for row in drawn["hid"][mask]])
    assert repulsion(drawn["hid"], mask if masked else None).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_diversity_is_the_mean_cosine_of_head_pairs(drawn: dict[str, Tensor], masked: bool) -> None:
    maps, mask = drawn["att"][:, 1], torch.ones(2, 5, dtype=torch.bool)
    if masked:
        mask[1, 3:] = False
    found = []
    for sample, real in zip(maps, mask, strict=True):
        cut = [head[real][:, real].flatten() for head in sample]
        found.append(sum(cos(a, b, 1e-12) for a, b in permutations(cut, 2)) / 12)
    assert diversity(maps, mask if masked else None).item() == pytest.approx(sum(found) / 2, abs=1e-6)


def test_sparsity_is_the_mean_size_of_real_numbers(drawn: dict[str, Tensor]) -> None:
    assert sparsity(drawn["hid"], drawn["mask"]).item() == pytest.approx(
        drawn["hid"][drawn["mask"]].abs().mean().item(), abs=1e-6
    )


def test_gossip_over_many_draws_is_the_mean_over_all_pairs(drawn: dict[str, Tensor]) -> None:
    """Peers are uniform over the others; 20,000 draws a row leave a standard error below 0.1 % of the mean."""
    rows = list(drawn["hid"][drawn["mask"]])
    every = [max(cos(a, b, 1e-8) - 0.1, 0.0) ** 2 for a, b in permutations(rows, 2)]
    value = gossip(drawn["hid"], drawn["mask"], tau=0.1, peers=20_000, generator=seeded(1))
    assert value.item() == pytest.approx(sum(every) / len(every), rel=0.01)


def test_gossip_never_meets_itself_nor_padding() -> None:
    """Orthogonal rows: any pair of a token with itself would have cosine 1, any with padding too (it copies row 0)."""
    hidden = torch.eye(6)[None].clone()
    hidden[0, 4:] = hidden[0, 0]
    mask = torch.tensor([[True] * 4 + [False] * 2])
    for sample in (256, 3):
        assert gossip(hidden, mask, tau=0.5, peers=200, sample=sample, generator=seeded(2)).item() == 0
        assert gossip_of_source(hidden, mask, 0.5, 200, sample, seeded(2)).item() == 0
    assert gossip(hidden, None, tau=0.5, peers=200, generator=seeded(2)).item() > 0


@pytest.mark.parametrize("coactive", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_branch_terms_are_their_sums(drawn: dict[str, Tensor], masked: bool, coactive: bool) -> None:
    mask = torch.ones(2, 5, dtype=torch.bool)
    if masked:
        mask[1, 2:] = False
    keep = mask[:, None, :] if masked else None
    alike, penalty, together, tokens = 0.0, 0.0, 0.0, 0
    usage = torch.zeros(4)
    for n, layer, t in ((n, k, t) for n in range(2) for k in range(3) for t in range(5) if mask[n, t]):
        tokens += 1
        out, gate = drawn["bo"][n, layer, t], drawn["bg"][n, layer, t]
        usage += gate
        for i, j in permutations(range(4), 2):
            same = cos(out[i], out[j], 1e-8)
            alike += same / 12
            penalty += max(same, 0.0) * float(gate[i] * gate[j])
            together += float(gate[i] * gate[j])
    near = {"abs": 1e-6}
    assert branch_repulsion(drawn["bo"], keep).item() == pytest.approx(alike / tokens, **near)
    assert load_balance(drawn["bg"], keep).item() == pytest.approx(float(((usage / tokens - 0.25) ** 2).sum()), **near)
    by = max(together, 1.0) if coactive else tokens
    assert inhibition(drawn["bo"], drawn["bg"], keep, by_coactivity=coactive).item() == pytest.approx(
        penalty / by, **near
    )


# ---------------------------------------------------------------------------------------------- numbers by hand
def test_two_rows_at_a_right_angle_repel_by_e_to_minus_two() -> None:
    assert repulsion(torch.tensor([[[3.0, 0.0], [0.0, 0.5]]])).item() == pytest.approx(math.exp(-2))
    assert repulsion(torch.tensor([[[1.0, 0.0], [-2.0, 0.0]]])).item() == pytest.approx(math.exp(-4))
    assert repulsion(torch.tensor([[[1.0, 0.0], [5.0, 0.0]]])).item() == pytest.approx(1.0)
    assert repulsion(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])).item() == pytest.approx(math.exp(-1))  # a zero row


def test_two_heads_that_share_one_of_two_keys() -> None:
    heads = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]])
    assert diversity(heads).item() == pytest.approx(0.5)


def test_three_tokens_at_sixty_degrees_gossip() -> None:
    """Cosines 0.5 and -0.5 of neighbours at 0, 60 and 180 degrees: (0.5 - 0.2)² for one of three pairs."""
    angles = torch.tensor([0.0, math.pi / 3, math.pi])
    rows = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    value = gossip(rows, tau=0.2, peers=30_000, generator=seeded(4))
    assert value.item() == pytest.approx(0.09 / 3, rel=0.02)


def test_a_router_that_uses_one_of_four() -> None:
    assert load_balance(torch.tensor([[1.0, 0, 0, 0]] * 3)).item() == pytest.approx(0.75**2 + 3 * 0.25**2)


def test_two_like_branches_half_open_each() -> None:
    out = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
    assert inhibition(out, torch.tensor([[0.5, 0.5]])).item() == pytest.approx(0.5)
    assert inhibition(out, torch.tensor([[0.5, 0.5]]), by_coactivity=True).item() == pytest.approx(0.5)
    assert inhibition(out * torch.tensor([1.0, -1.0])[:, None], torch.tensor([[0.5, 0.5]])).item() == 0


# ---------------------------------------------------------------------------------------------- identities, edges
def test_repulsion_of_unit_rows_is_the_mean_of_exp_2cos_minus_2(drawn: dict[str, Tensor]) -> None:
    x = drawn["hid"].flatten(0, 1)
    x = x / x.norm(dim=-1, keepdim=True)
    apart = ~torch.eye(14, dtype=torch.bool)
    value = repulsion(drawn["hid"]).item()
    assert value == pytest.approx((2 * (x @ x.T) - 2).exp()[apart].mean().item(), abs=1e-6)
    assert math.exp(-4) <= value <= 1


def test_a_gradient_of_top_1_inhibition_does_not_grow_with_the_batch() -> None:
    """Straight-through gates: value 0 in both forms; the source's gradient doubles with the tokens, ours halves a
    token's."""

    def pull(tokens: int, coactive: bool) -> float:
        scores = torch.randn(tokens, 4, generator=seeded(1), dtype=torch.float64).requires_grad_()
        soft = scores.softmax(-1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), 4).double()
        outputs = torch.ones(tokens, 4, 3, dtype=torch.float64)
        value = inhibition(outputs, hard.detach() - soft.detach() + soft, by_coactivity=coactive)
        value.backward()  # type: ignore[no-untyped-call]
        assert value.item() == pytest.approx(0, abs=1e-9) and scores.grad is not None
        return float(scores.grad.abs().sum())

    assert pull(64, True) > 1.5 * pull(32, True) > 0
    assert pull(64, False) == pytest.approx(pull(32, False), rel=0.3) and pull(64, False) > 0


def test_what_cannot_form_a_pair_is_zero_without_a_graph() -> None:
    one = torch.randn(1, 1, 4, requires_grad=True)
    flat = torch.randn(2, 3, 1, 4, requires_grad=True)
    found = [
        repulsion(one), gossip(one), gossip_of_source(one), gossip(torch.randn(1, 5, 4), peers=0),
        diversity(torch.rand(2, 1, 3, 3, requires_grad=True)), branch_repulsion(flat),
        load_balance(torch.rand(2, 3, 1, requires_grad=True)), inhibition(flat, torch.ones(2, 3, 1)),
    ]  # fmt: skip
    assert [(v.item(), v.requires_grad, v.ndim) for v in found] == [(0.0, False, 0)] * len(found)


@pytest.mark.parametrize("real", [0, 1])
def test_masks_that_leave_no_pair_give_zero_and_a_zero_gradient(real: int) -> None:
    hidden = torch.randn(2, 5, 4, generator=seeded(), requires_grad=True)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, :real] = True
    for value in (
        repulsion(hidden, mask), gossip(hidden, mask, tau=-1.0, generator=seeded()),
        gossip(hidden, mask, tau=-1.0, sample=3, generator=seeded()),
    ):  # fmt: skip
        (grad,) = torch.autograd.grad(value, hidden)
        assert value.item() == 0 and not grad.any()
    if not real:
        assert sparsity(hidden, mask).item() == 0
        gates = torch.rand(2, 1, 5, 3, generator=seeded())
        assert load_balance(gates, mask[:, None]).item() == 0
        maps = torch.rand(2, 2, 5, 5, generator=seeded())
        assert diversity(maps, mask).item() == 0


def test_zero_vectors_have_finite_gradients() -> None:
    hidden = torch.zeros(1, 4, 3, requires_grad=True)
    outputs = torch.zeros(1, 4, 2, 3, requires_grad=True)
    for value, of in (
        (repulsion(hidden), hidden),
        (gossip(hidden, tau=-1.0, generator=seeded()), hidden),
        (branch_repulsion(outputs), outputs),
        (inhibition(outputs, torch.ones(1, 4, 2)), outputs),
    ):
        assert torch.autograd.grad(value, of)[0].isfinite().all()


WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: repulsion(torch.zeros(3, 4)), r"repulsion needs .*\(batch, seq, features\), not \(3, 4\)"),
    (lambda: sparsity(torch.zeros(3, 4)), "sparsity needs"),
    (lambda: gossip(torch.zeros(3, 4)), "gossip needs"),
    (lambda: gossip(torch.zeros(2, 3, 4), torch.ones(2, 4)), r"mask of shape \(2, 4\) .* must be \(batch, seq\)"),
    (lambda: diversity(torch.zeros(2, 3, 3)), r"diversity needs .*not \(2, 3, 3\)"),
    (lambda: diversity(torch.zeros(2, 2, 3, 3), torch.ones(3, 3)), "mask of shape"),
    (lambda: branch_repulsion(torch.zeros(3, 4)), "branch_repulsion needs"),
    (lambda: load_balance(torch.zeros(3)), "load_balance needs"),
    (lambda: inhibition(torch.zeros(2, 3, 4), torch.zeros(2, 4)), r"\(2, 3, 4\) and \(2, 4\)"),
]


@pytest.mark.parametrize(("call", "text"), WRONG)
def test_a_wrong_shape_is_named(call: Callable[[], Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


# ---------------------------------------------------------------------------------------------- gradients
def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).requires_grad_()


RAGGED = torch.tensor([[True] * 4, [True, True, False, False]])
CHECKED: list[tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]] = [
    ("diversity", lambda x: diversity(x.softmax(-1)), (double(2, 3, 4, 4),)),
    ("diversity masked", lambda x: diversity(x.softmax(-1), RAGGED), (double(2, 3, 4, 4),)),
    ("repulsion", repulsion, (double(2, 4, 3),)),
    ("repulsion masked", lambda x: repulsion(x, RAGGED, 5, seeded(3)), (double(2, 4, 3),)),
    ("sparsity", lambda x: sparsity(x, RAGGED), (double(2, 4, 3),)),
    ("gossip", lambda x: gossip(x, RAGGED, -0.5, 3, 5, seeded(3)), (double(2, 4, 3),)),
    ("gossip of source", lambda x: gossip_of_source(x, RAGGED, -0.5, 3, 5, seeded(3)), (double(2, 4, 3),)),
    ("branch repulsion", lambda x: branch_repulsion(x, RAGGED[:, None]), (double(2, 1, 4, 3, 2),)),
    ("load balance", lambda x: load_balance(x.softmax(-1), RAGGED[:, None]), (double(2, 1, 4, 3),)),
    (
        "inhibition",
        lambda x, y: inhibition(x, y.softmax(-1), RAGGED[:, None]),
        (double(2, 1, 4, 3, 2), double(2, 1, 4, 3, seed=1)),
    ),
    (
        "inhibition of source",
        lambda x, y: inhibition(x, y.softmax(-1), by_coactivity=True),
        (double(2, 1, 4, 3, 2), double(2, 1, 4, 3, seed=1)),
    ),
]


@pytest.mark.parametrize(("call", "inputs"), [row[1:] for row in CHECKED], ids=[row[0] for row in CHECKED])
def test_gradients_are_those_of_finite_differences(call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert call(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(call, inputs)


# ---------------------------------------------------------------------------------------------- padding
MASKED: list[tuple[str, Callable[[Tensor, Tensor], Tensor]]] = [
    ("repulsion", lambda h, m: repulsion(h, m)),
    ("repulsion sampled", lambda h, m: repulsion(h, m, 5, seeded(6))),
    ("sparsity", sparsity),
    ("gossip", lambda h, m: gossip(h, m, -0.2, 3, 256, seeded(5))),
    ("gossip sampled", lambda h, m: gossip(h, m, -0.2, 3, 5, seeded(5))),
    ("diversity", lambda h, m: diversity((h[:, :, None] + 2 * h[:, None]).permute(0, 3, 1, 2), m)),
    ("branch repulsion", lambda h, m: branch_repulsion(h[:, None].unflatten(-1, (2, 3)), m[:, None])),
    ("load balance", lambda h, m: load_balance(h[:, None], m[:, None])),
    ("inhibition", lambda h, m: inhibition(h[:, None].unflatten(-1, (2, 3)), h[:, None, :, :2], m[:, None])),
]


@pytest.mark.parametrize("call", [row[1] for row in MASKED], ids=[row[0] for row in MASKED])
def test_padding_changes_no_bit_of_value_or_gradient(
    drawn: dict[str, Tensor], call: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Whatever stands there, NaN included; and a batch with two more columns of padding has the same value."""
    mask = drawn["mask"]
    found = []
    for filler in (0.0, 1e30, math.nan, -math.inf):
        hidden = torch.where(mask[..., None], drawn["hid"], filler).requires_grad_()
        value = call(hidden, mask)
        (grad,) = torch.autograd.grad(value, hidden)
        found.append((value.item(), torch.where(mask[..., None], grad, 0)))
        assert value.isfinite() and not grad[~mask].any()
    assert all(value == found[0][0] and torch.equal(grad, found[0][1]) for value, grad in found[1:])
    longer = torch.cat([drawn["hid"], torch.full((2, 2, 6), 7.0)], dim=1)
    wider = torch.cat([mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    assert call(longer, wider).item() == pytest.approx(found[0][0], rel=1e-5, abs=1e-7)
    assert call(drawn["hid"], torch.ones_like(mask)).item() != pytest.approx(found[0][0], rel=1e-3)


def test_a_row_of_padding_alone_does_not_count_as_diverse() -> None:
    maps = torch.rand(3, 2, 4, 4, generator=seeded())
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    assert diversity(maps, mask).item() == pytest.approx(diversity(maps[[0, 2]], mask[[0, 2]]).item(), rel=1e-6)


def test_rows_are_drawn_uniformly_among_real_tokens() -> None:
    mask = torch.tensor([[False, True, True, True], [True, True, False, True]])
    hidden = torch.arange(8.0).view(2, 4, 1)
    g, counts = seeded(), torch.zeros(8)
    for _ in range(3000):
        rows, real = pick(hidden, mask, 2, g)
        assert real is not None and real.all()
        counts[rows.flatten().long()] += 1
    assert not counts[[0, 6]].any()
    assert (counts[mask.flatten()] / 3000 - 1 / 3).abs().max() < 0.03  # sd 0.0086


def test_without_a_generator_the_first_real_rows_are_taken() -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, False, True]])
    hidden = torch.arange(8.0).view(2, 4, 1)
    assert pick(hidden, mask, 3, None)[0].flatten().tolist() == [1, 2, 4]
    rows, real = pick(hidden, mask, 7, None)
    assert rows.flatten().tolist() == [1, 2, 4, 5, 7, 0, 0]
    assert real is not None and real.tolist() == [True] * 5 + [False] * 2
    assert pick(hidden, None, 3, None)[0].flatten().tolist() == [0, 1, 2]


def test_bfloat16_is_worked_out_in_float32(drawn: dict[str, Tensor]) -> None:
    half = drawn["hid"].bfloat16()
    for value, exact in (
        (repulsion(half), repulsion(half.float())),
        (gossip(half, tau=0.0, generator=seeded()), gossip(half.float(), tau=0.0, generator=seeded())),
        (sparsity(half), sparsity(half.float())),
    ):
        assert value.dtype == torch.float32 and value.item() == exact.item()
