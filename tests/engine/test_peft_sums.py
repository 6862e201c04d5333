"""What PEFT's own weighted sum does on the laws that ours obeys: the facts that the card of `routed` tells."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from . import peft_sums as sums

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")
torch.set_num_threads(1)
ROUNDING = 1e-6


def told(fact: str, holds: bool, found: Any) -> None:
    """Fail in a way that says what has to be done about it."""
    import peft

    text = f"PEFT {peft.__version__} no longer does what the card says ({fact}; found {found})"
    assert holds, f"{text}: update the card's table by python -m tests.engine.peft_sums, and this test"


@pytest.fixture(scope="module", params=sums.KINDS)
def adapters(request: Any) -> tuple[str, Any]:
    return request.param, sums.pair_of_adapters(request.param)


def test_a_single_adapter_at_weight_one(adapters: tuple[str, Any]) -> None:
    """PEFT keeps `use_rslora` beside the new alpha = rank, so the sum is √rank times too loud."""
    kind, net = adapters
    for way in ("linear", "cat", "svd"):
        found = sums.theirs(net, "identity", way)
        if kind == "rank-stabilised":
            expected = math.sqrt(sums.RANK) - 1
            told(f"{kind} {way} is off by √rank − 1", math.isclose(found, expected, rel_tol=1e-4), found)
        else:
            told(f"{kind} {way} keeps a single adapter", found < ROUNDING, found)
    assert sums.ours(net, "identity") < ROUNDING


def test_the_weighted_sum_of_two(adapters: tuple[str, Any]) -> None:
    kind, net = adapters
    linear, cat, svd = (sums.theirs(net, "sum", way) for way in ("linear", "cat", "svd"))
    dropped = sums.best(net, sums.RANK)
    told(f"{kind} linear has cross terms of the size of the sum", linear > 0.5, linear)
    if kind == "rank-stabilised":
        told("cat is off by √(2·rank) − 1", math.isclose(cat, math.sqrt(2 * sums.RANK) - 1, rel_tol=1e-4), cat)
        told("svd is off by √rank − 1 and what it drops", svd > math.sqrt(sums.RANK) - 1 - dropped, svd)
    else:
        told(f"{kind} cat is exact", cat < ROUNDING, cat)
        told(f"{kind} svd is the best of its rank", math.isclose(svd, dropped, rel_tol=1e-3), (svd, dropped))
    assert sums.ours(net, "sum") < ROUNDING and 0.05 < dropped < 0.5


def test_its_folder(adapters: tuple[str, Any]) -> None:
    """PEFT empties the patterns of a linear sum, but not the ranks of its factors."""
    kind, net = adapters
    if "identity-linear" not in net.peft_config:
        sums.theirs(net, "identity", "linear")
    loads = sums.comes_back(net, "identity", "linear")
    told(f"the folder of a linear sum of {kind} adapters loads or not", loads == (kind != "patterns"), loads)
