"""Language models with LoRA: what terms add to a step, and steps and evaluations against those of the terms' source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from ctr.plugins.geometry.metrics import effective_rank, isotropy, spectrum

from . import like_the_source
from .bench import Bench
from .clock import Contestant, Times, block, interleave, ratio
from .lora import GPT2, HALF_A_BILLION, QWEN2, VAL, Lora, Texts, source_step, steps
from .peak import peak
from .table import Row, Section

PASS = 4  # steps of a pass over 32 rows: every block trains the same rows, in another order
GOSSIP: Mapping[str, Any] = {"weight": 5.0, "tau": 0.5}
FOUR: Mapping[str, Any] = {
    "diversity": {"weight": 0.02, "layers": list(range(6))}, "repulsion": {"weight": 2.0},
    "sparsity": {"weight": 5e-4}, "gossip": GOSSIP,
}  # fmt: skip
REAL, LENGTH = 50, 128  # tokens of a row that is mostly padding to the source, and what it is padded to


def measure(bench: Bench) -> Section:
    from transformers.utils import logging

    logging.set_verbosity_error()  # it advises on a loss that the source asks the model for
    rows = [*_terms(bench)]
    rows += _against(bench, "full rows of 128", [LENGTH] * 32, LENGTH, bench.rounds(12), 1.0)
    rows += _against(bench, "rows of 50 in 128", [REAL] * 32, LENGTH, bench.rounds(12), 2.0)
    rows += _against(bench, "full rows of 512", [512] * 16, 512, bench.rounds(4), 1.4)
    rows += _evaluation(bench, "tiny gpt2", GPT2, bench.rounds(10), 10.0)
    rows += _evaluation(bench, "tiny qwen2", QWEN2, bench.rounds(10), 10.0)
    if bench.scale >= 0.5:
        rows += _evaluation(bench, "qwen2 of 0.5B", HALF_A_BILLION, bench.rounds(3), 3.0)
    rows += [_decomposition(bench, features) for features in (64, 256, 896)]
    method = "Qwen2, 64 wide, 6 layers, 0.43 M weights, LoRA of rank 8 on attention, fused AdamW, one thread, through "
    method += "the kernel with its log, terms by the plugin. The source's way: every row padded, eager attention with "
    method += "all maps and hidden states kept, all four terms always computed (gossip twice where it has weight). CPU "
    method += (
        "time of interleaved blocks, smallest and median of the ratios within a round; MiB: the most that torch held "
    )
    method += "beyond what it held before."
    return Section("Language models with LoRA, and the source's way of training and scoring them", method, rows)


# --------------------------------------------------------------------------------------------------------- terms
def arms() -> dict[str, Mapping[str, Any] | None]:
    """Return the plugin's settings of each contestant; None is a run without it."""
    return {"plain": None, "gossip": {"gossip": GOSSIP}, "repulsion": {"repulsion": FOUR["repulsion"]}, "four": FOUR}


def _terms(bench: Bench) -> Sequence[Row]:
    lengths = np.random.default_rng(0).integers(64, 129, 8 * PASS).tolist()
    runs = {name: _run(bench, name, lengths, 8, LENGTH, settings) for name, settings in arms().items()}
    times = interleave({name: steps(run.step, PASS) for name, run in runs.items()}, bench.rounds(40), warm_up=2)
    held = {name: peak(run.step) for name, run in runs.items()}
    for run in runs.values():
        run.close()
    shown = {"gossip": ("with gossip", 1.03), "repulsion": ("with repulsion", 1.03), "four": ("with all four", None)}
    return [
        Row(
            "a plain step, 8 rows of 64 to 128 tokens",
            *_milliseconds(times["plain"]),
            note=f"{held['plain']:.1f} MiB",
        ),
        *(
            Row(f"{text}, over the plain step", *_over(times, name, "plain"), bar, note=f"{held[name]:.1f} MiB")
            for name, (text, bar) in shown.items()
        ),
    ]


# ------------------------------------------------------------------------------------------------- the source's step
def _against(bench: Bench, what: str, lengths: Sequence[int], most: int, rounds: int, bar: float) -> list[Row]:
    """Return how long the source's step takes over ours, both with gossip, at equally many rows a step."""
    found = []
    for ours, batch, accum in ((1, 1, 1), (8, 8, 1), (8, 1, 8)):
        run = _run(bench, "ours", lengths, ours, most, {"gossip": GOSSIP})
        task: Any = run.plan.task
        theirs = source_step(task, batch, accum, {"gossip": GOSSIP["weight"]})
        number = len(lengths) // ours if ours > 1 else 8
        times = interleave({"ours": steps(run.step, number), "theirs": steps(theirs.step, number)}, rounds, warm_up=1)
        note = f"{1e3 * min(times['theirs']):.1f} ms over {1e3 * min(times['ours']):.1f}; "
        note += f"{peak(theirs.step):.1f} MiB over {peak(run.step):.1f}"
        way = {(1, 1): "1 row", (8, 1): "8 rows", (1, 8): "8 rows, one at a time over 8 at once"}[batch, accum]
        run.close()
        found.append(Row(f"the source's step, {what}, {way}", *_over(times, "theirs", "ours"), bar, True, note))
    return found


# -------------------------------------------------------------------------------------------------------- evaluation
def _evaluation(bench: Bench, what: str, model: Mapping[str, Any], rounds: int, bar: float) -> list[Row]:
    bench.tell(f"evaluating {what}")
    task = Texts(bench.folder("evaluation"), [REAL] * VAL, 8, model, most=LENGTH)
    module = task.build()
    padded = task.padded("val")

    def ours() -> None:
        task.evaluate(module, "val")

    def theirs() -> None:
        like_the_source.evaluate(module, padded)

    times = interleave({"ours": block(ours, 1), "theirs": block(theirs, 1)}, rounds, warm_up=1)
    note = f"{1e3 * min(times['theirs']):.1f} ms over {1e3 * min(times['ours']):.1f}; "
    note += f"{peak(theirs):.1f} MiB over {peak(ours):.1f}"
    text = f"the source's evaluation, {what}, {VAL} rows of {REAL} in {LENGTH}"
    return [Row(text, *_over(times, "theirs", "ours"), bar, True, note)]


def _decomposition(bench: Bench, features: int) -> Row:
    hidden = torch.randn(1, LENGTH, features, generator=torch.Generator().manual_seed(0))

    def ours() -> tuple[float, float]:
        sigma = spectrum(hidden.flatten(0, 1))
        return float(effective_rank(sigma)), float(isotropy(sigma))

    def theirs() -> tuple[float, float]:
        return like_the_source.rank_and_isotropy(hidden)

    times = interleave({"ours": _several(ours), "theirs": _several(theirs)}, bench.rounds(20), warm_up=1)
    apart = max(abs(one / other - 1) for one, other in zip(ours(), theirs(), strict=True))
    note = f"{1e3 * min(times['theirs']):.2f} ms over {1e3 * min(times['ours']):.2f}; "
    note += f"{peak(theirs):.2f} MiB over {peak(ours):.2f}; apart by {apart:.0e}"
    text = f"two SVDs over one Gram matrix, {LENGTH} tokens of {features}"
    return Row(text, *_over(times, "theirs", "ours"), note=note)


# ------------------------------------------------------------------------------------------------------------- shared
def _run(
    bench: Bench, name: str, lengths: Sequence[int], micro: int, most: int, settings: Mapping[str, Any] | None
) -> Lora:
    folder = bench.folder(name)
    return Lora(folder / "run", Texts(folder, lengths, micro, QWEN2, most), settings)


def _several(work: Any) -> Contestant:
    return steps(work, 10)


def _over(times: Times, what: str, over: str) -> tuple[float, str, float]:
    smallest, paired = ratio(times, what, over)
    return smallest, "×", paired


def _milliseconds(times: Sequence[float]) -> tuple[float, str, float]:
    return 1e3 * min(times), "ms", 1e3 * median(times)
