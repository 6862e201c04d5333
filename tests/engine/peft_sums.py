"""What PEFT's `add_weighted_adapter` is off by: `python -m tests.engine.peft_sums` prints the table of the card.

Two laws, on a tiny Qwen2 with random factors: a single adapter at weight 1 is that adapter, and 0.7·X + 0.4·Y is the
sum of the effective weights. Errors are Frobenius norms over all targets, relative to what the law says. Beside them
stands ours: the sum of what was read from the two folders, written, and loaded by PEFT.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctr.engine.adapter_files import read_adapter
from ctr.engine.adapter_writing import write_adapter
from ctr.engine.deltas import added, scaled, truncated

from . import peft_bases as bases

RANK, WIDTH = 8, 32
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2, "mlp.*": 3}, "alpha_pattern": {"q_proj": 12, "up_proj": 5}},
}
WAYS = ("linear", "cat", "svd", "ours")
LAWS: dict[str, tuple[float, ...]] = {"identity": (1.0,), "sum": (0.7, 0.4)}


def pair_of_adapters(kind: str) -> Any:
    """Return a PEFT model with adapters `default` and `other` of a kind."""
    from peft import LoraConfig

    settings = {"r": RANK, "lora_alpha": 2 * RANK, **KINDS[kind]}
    net = bases.trained("qwen2", 1, WIDTH, **settings)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=net.peft_config["default"].target_modules, **settings)
    net.add_adapter("other", config)
    bases.fill(net, 2, "other")
    return net


def wanted(net: Any, law: str) -> dict[str, Tensor]:
    """Return the effective weights that a law asks for, by target."""
    found = [bases.change(net, name) for name in ("default", "other")]
    return {name: sum(w * one[name] for w, one in zip(LAWS[law], found, strict=False)) for name in found[0]}  # type: ignore[misc]


def off(found: Mapping[str, Tensor], law: Mapping[str, Tensor]) -> float:
    """Return the norm of the difference by that of what the law says."""
    squares = [((found[name] - law[name]).norm() ** 2, law[name].norm() ** 2) for name in law]
    return float(sum(a for a, _ in squares) ** 0.5 / sum(b for _, b in squares) ** 0.5)


def theirs(net: Any, law: str, way: str) -> float:
    """Return what PEFT's own sum is off by."""
    names, weights = ["default", "other"][: len(LAWS[law])], list(LAWS[law])
    net.add_weighted_adapter(names, weights, f"{law}-{way}", combination_type=way)
    return off(bases.change(net, f"{law}-{way}"), wanted(net, law))


def ours(net: Any, law: str) -> float:
    """Return what PEFT finds in a sum of ours to be off by."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        net.save_pretrained(folder)
        read = [read_adapter(folder), read_adapter(folder / "other")]
        parts = [scaled(saved.delta, w) for saved, w in zip(read, LAWS[law], strict=False)]
        write_adapter(folder / "ours", added(parts), {})
        loaded = PeftModel.from_pretrained(bases.base("qwen2", WIDTH), str(folder / "ours"))
        return off(bases.change(loaded), wanted(net, law))


def best(net: Any, rank: int) -> float:
    """Return what the best sum of a rank is off by: what is dropped by our truncation."""
    with tempfile.TemporaryDirectory() as place:
        net.save_pretrained(place)
        read = [read_adapter(Path(place)), read_adapter(Path(place) / "other")]
    cut, _ = truncated(added([scaled(saved.delta, w) for saved, w in zip(read, LAWS["sum"], strict=True)]), rank)
    return off({name: pair.dense() for name, pair in cut.items()}, wanted(net, "sum"))


def comes_back(net: Any, law: str, way: str) -> bool:
    """Say whether PEFT loads its own sum from the folder that it saves it to."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as place:
        net.save_pretrained(place, selected_adapters=[f"{law}-{way}"])
        try:
            PeftModel.from_pretrained(bases.base("qwen2", WIDTH), str(Path(place) / f"{law}-{way}"))
        except RuntimeError as error:
            assert "size mismatch" in str(error)
            return False
        return True


def main() -> None:
    import warnings

    import peft

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"PEFT {peft.__version__}, rank {RANK}, alpha {2 * RANK}, width {WIDTH}\n")
    print("| Adapters | Combination | 1·X, % | 0.7·X + 0.4·Y, % | its folder loads |\n|---|---|---|---|---|")
    for kind in KINDS:
        net = pair_of_adapters(kind)
        for way in WAYS:
            found = [100 * (ours(net, law) if way == "ours" else theirs(net, law, way)) for law in LAWS]
            loads = way == "ours" or comes_back(net, "sum", way)
            print(f"| {kind} | {way} | {found[0]:.2g} | {found[1]:.3g} | {'yes' if loads else 'no'} |")


if __name__ == "__main__":
    main()
