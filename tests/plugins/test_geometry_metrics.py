"""Metrics against a plain singular value decomposition and numbers by hand; schedules; shares of gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.plugins.geometry.gradients import added, cosine, gradient, norm, shares
from ctr.plugins.geometry.metrics import active_fraction, branch_metrics, effective_rank, isotropy, spectrum
from ctr.plugins.geometry.schedules import factor

torch.set_num_threads(1)


def drawn() -> tuple[Tensor, Tensor]:
    """The hidden states and branch scores of the reference's fixtures, drawn in its order."""
    g = torch.Generator().manual_seed(0)
    torch.randn(2, 3, 4, 5, 5, generator=g)
    hidden = torch.randn(2, 7, 6, generator=g)
    torch.randn(2, 3, 5, 4, 6, generator=g)
    return hidden.flatten(0, 1), torch.randn(2, 3, 5, 4, generator=g)


def test_the_fixtures_of_the_source_come_out() -> None:
    rows, scores = drawn()
    sigma = spectrum(rows)
    found = [effective_rank(sigma), isotropy(sigma), active_fraction(rows)]
    assert [float(v) for v in found] == pytest.approx([5.6228495, 1.5728513, 0.9761904], abs=3e-7)
    branch = {name: float(v) for name, v in branch_metrics(scores.softmax(-1), scores, scores.abs()).items()}
    expected = {
        "entropy": 0.9923512, "active_fraction": 1.0, "usage_min": 0.1980999, "usage_max": 0.2863549,
        "usage_std": 0.0360018, "score_entropy": 0.8075700, "inhibition_mean": 0.7947865,
    }  # fmt: skip
    assert branch == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("shape", [(3, 40), (40, 3), (20, 20), (300, 64), (64, 300), (1, 5)])
def test_one_decomposition_of_the_smaller_gram_matrix_gives_the_singular_values(shape: tuple[int, int]) -> None:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -5, shape[1])
    plain = torch.linalg.svdvals(rows.double() - rows.double().mean(0))
    sigma = spectrum(rows)
    assert len(sigma) == min(shape) and sigma.dtype == torch.float64
    torch.testing.assert_close(sigma, plain, rtol=1e-7, atol=float(plain[0]) * 1e-7 + 1e-12)
    p = plain / plain.sum().clamp(min=1e-8)
    expected = math.exp(-float((p * p.clamp(min=1e-8).log()).sum()))
    assert float(effective_rank(sigma)) == pytest.approx(expected, rel=1e-5)
    assert float(isotropy(sigma)) == pytest.approx(float(plain[0] / plain.mean().clamp(min=1e-8)), rel=1e-5)


def test_ranks_a_person_can_count() -> None:
    cross = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    sigma = spectrum(cross)
    assert float(effective_rank(sigma)) == pytest.approx(2.0, rel=1e-6)
    assert float(isotropy(sigma)) == pytest.approx(1.5)
    still = spectrum(torch.full((4, 3), 2.5))
    assert float(effective_rank(still)) == 1 and float(isotropy(still)) == 0
    assert float(active_fraction(torch.tensor([[0.05, -0.051, 1.0, 0.0]]), 0.05)) == 0.5


def test_no_row_is_named() -> None:
    with pytest.raises(ValueError, match=r"at least one, not \(0, 3\)"):
        spectrum(torch.zeros(0, 3))


def test_one_branch_has_no_entropy() -> None:
    found = branch_metrics(torch.ones(5, 1), torch.zeros(5, 1), None)
    assert float(found["entropy"]) == 0 == float(found["score_entropy"]) and "inhibition_mean" not in found


# ---------------------------------------------------------------------------------------------- schedules
def test_a_warm_up_rises_by_equal_steps_and_stays() -> None:
    assert [factor("warmup", at, warmup=4) for at in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [factor("constant", at) for at in (0, 99)] == [1.0, 1.0]


def test_a_cosine_falls_to_its_floor() -> None:
    found = [factor("cosine", at, warmup=2, until=6, floor=0.2) for at in range(8)]
    half = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    assert found == pytest.approx([0.5, 1.0, 1.0, half, 0.6, 1.2 - half, 0.2, 0.2])
    assert factor("cosine", 5, until=5) == 0 == factor("cosine", 50, until=5)


# ---------------------------------------------------------------------------------------------- shares
def test_shares_are_norms_over_their_sum() -> None:
    w, other = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    task = gradient(w.square().sum() / 2, [w, other])  # the gradient is w: norm 5
    term = gradient(w.sum() * 0 + 12 * other.sum(), [w, other])  # norm 12
    twice = added(added([None, None], task, 0.5), task, 0.5)
    found: dict[str, Any] = {"task": norm(twice), "term": norm(term)}
    assert {k: float(v) for k, v in shares(found).items()} == pytest.approx({"task": 5 / 17, "term": 12 / 17})


def test_what_has_no_gradient_has_no_share() -> None:
    w = torch.ones(2, requires_grad=True)
    assert norm(gradient(torch.ones(()), [w])) is None
    nothing = {"task": torch.zeros(()), "term": torch.zeros(())}
    assert [float(v) for v in shares(nothing).values()] == [0, 0]


# ---------------------------------------------------------------------------------------------- angles
def test_the_cosine_is_that_of_the_whole_vectors() -> None:
    x, y = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([3.0, 4.0]), None]
    found = cosine(x, y)
    assert found is not None and float(found) == pytest.approx(9 / 25)
    assert float(cosine(x, [None, torch.tensor([-2.0])])) == pytest.approx(-4 / 5)  # type: ignore[arg-type]
    assert cosine(x, [None, None]) is None and cosine([torch.zeros(2), None], x) is None
