"""The source's published numbers, from its loop driven by hand over this model, these data and these terms.

A run of ctr seeds weights and data by position, so that its numbers are others; model, draws and terms are the same.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ctr.engine.tasks.sequence_data import draw
from ctr.plugins.geometry import Geometry
from ctr.plugins.geometry.metrics import branch_metrics, effective_rank, isotropy, spectrum
from tests.engine.tasks.sequences import built, task

torch.set_num_threads(1)
STEPS, MICRO = 80, 32
DENDRITIC = {"compartments": 4, "mode": "dendritic", "top_k": 2}
COMBINED = {
    "diversity": {"weight": 0.03, "layers": [0, 1]},
    "repulsion": {"weight": 0.03},
    "sparsity": {"weight": 0.001},
}


def weighted(repulsion: float, balance: float, inhibition: float) -> dict[str, Any]:
    found = {"branch_repulsion": repulsion, "load_balance": balance, "inhibition": inhibition}
    return {name: {"weight": weight} for name, weight in found.items()}


def trained(module: Any, made: Any, optimizer: Any, terms: dict[str, Any]) -> None:
    """Take the source's 80 updates on the task's consecutive stream."""
    config = Geometry.Config.model_validate({"faithful": True, **terms})
    geometry, needs = Geometry(config, torch.Generator()), Geometry.needs(config)
    for step in range(STEPS):
        batch = made.batch(0, step)
        out = made.forward(module, batch, needs)
        forward: Any = SimpleNamespace(outputs=out, batch=batch, epoch=0, step=step)
        total = out.loss + sum(term.weight * term.value for term in geometry.extra_loss(forward))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def optimizer_of(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)


def single(seed: int, terms: dict[str, Any], model: dict[str, Any]) -> list[float]:
    """Return loss, effective rank, isotropy, and with branches their entropy, least and greatest use, on batch 81."""
    made = task({"stream": "consecutive"}, seed, MICRO, epoch_batches=STEPS + 1)
    module = built(made, seed, faithful=True, **model)
    trained(module, made, optimizer_of(module), terms)
    with torch.no_grad():
        out = made.forward(
            module.eval(), made.batch(0, STEPS), {"hidden": frozenset({-1}), "branches": frozenset({-1})}
        )
    sigma = spectrum(out.hidden[-1].flatten(0, 1))
    found = [out.loss, effective_rank(sigma), isotropy(sigma)]
    if inside := out.extra.get("branches"):
        used = branch_metrics(inside["gates"], inside["scores"], inside["inhibition"])
        found += [used["entropy"], used["usage_min"], used["usage_max"]]
    return [float(number) for number in found]


@pytest.mark.parametrize(
    ("terms", "published"), [({}, [0.7530, 33.2695, 3.9313]), (COMBINED, [0.8243, 33.0884, 4.0198])]
)
def test_seed_0_ends_where_the_source_does(terms: dict[str, Any], published: list[float]) -> None:
    assert single(0, terms, {}) == pytest.approx(published, rel=2e-4)


MEANS = [
    ("dense", {}, {}, 5, [0.6351, 32.30, 3.97]),
    ("dense combined", {}, COMBINED, 5, [0.7013, 32.02, 4.10]),
    ("dendritic", DENDRITIC, weighted(0.01, 0.05, 0.01), 3, [0.7157, 35.53, 3.57, 0.9776, 0.160, 0.321]),
    (
        "dendritic combined",
        DENDRITIC,
        {**COMBINED, **weighted(0.01, 0.05, 0.01)},
        3,
        [0.8149, 35.68, 3.61, 0.9791, 0.164, 0.320],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model", "terms", "seeds", "published"), MEANS, ids=[row[0] for row in MEANS])
def test_means_over_seeds_are_the_published_ones(
    name: str, model: dict[str, Any], terms: dict[str, Any], seeds: int, published: list[float]
) -> None:
    found = np.mean([single(seed, terms, model) for seed in range(seeds)], axis=0)
    assert found.tolist() == pytest.approx(published, rel=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "terms", "published"),
    [
        ({}, {}, [0.0944, 7.1073, 7.1159, 0.1093]),
        (DENDRITIC, weighted(0.01, 0.05, 0.01), [0.0904, 6.3370, 6.3229, 0.1204]),
    ],
    ids=["dense", "dendritic"],
)
def test_accretion_ends_at_the_published_means(
    model: dict[str, Any], terms: dict[str, Any], published: list[float]
) -> None:
    """The loss on A after B; on A, B and C after C; one AdamW through all, 64 sequences per evaluation."""
    rows = []
    for seed in range(3):
        data = [{"marker": 0}, {"marker": 1}, {"marker": 2, "offset": 14}]
        tasks = [
            task({"stream": "consecutive", **one}, seed, MICRO, epoch_batches=STEPS, phase=phase)
            for phase, one in enumerate(data)
        ]
        module = built(tasks[0], seed, faithful=True, **model)
        optimizer, losses = optimizer_of(module), dict[str, list[float]]()
        for label, made in zip("ABC", tasks, strict=True):
            trained(module, made, optimizer, terms)
            losses[label] = [evaluated(module, one, seed + 100_000 + 10_000 * i) for i, one in enumerate(tasks)]
        rows.append([losses["B"][0], *losses["C"]])
    assert np.mean(rows, axis=0).tolist() == pytest.approx(published, rel=2e-3)


@torch.no_grad()
def evaluated(module: Any, made: Any, seed: int) -> float:
    pair = draw(made._data, 64, torch.Generator().manual_seed(seed))
    return float(made.forward(module, made._batch(pair), {}).loss)
