"""Adapting while scoring: a bank of adapters against a loop that takes one document after another, by PEFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ctr.engine.host import discover
from ctr.engine.stream_walks import Stage
from ctr.engine.tasks.document_scoring import forward
from ctr.engine.verify import order_of

from .bench import Bench
from .clock import block, interleave, ratio
from .peak import peak
from .table import Row, Section

SLOTS, RANK, CHUNK, RATE = 16, 16, 16, 1e-2
BETAS, EPS = (0.0, 0.999), 1e-10
SPEC = """\
study: bench
question: How many documents a second?
seeds: [1]
model: {kind: tiny, width: 64, layers: 2, heads: 4, context: 512, init_seed: 0}
adapter: {kind: bank, slots: SLOTS, rank: 16, alpha: 16, scaling: alpha_over_rank, head: false}
task: {kind: document_stream, data: {source: text, path: FOLDER/documents.txt}, chunk: 16, window: WINDOW}
train:
  epochs: 1
  micro_batch: 16
  threads: 1
  optimizer: {kind: adamw, base_lr: 1e-2, weight_decay: 0.0, betas: [0.0, 0.999], eps: 1e-10}
arms: {cold: {}}
"""


def measure(bench: Bench) -> Section:
    rows: list[Row] = []
    for window, median, bar in ((64, 150, 2.0), (256, 500, 1.0)):
        rows += _against(bench, window, median, bar)
    method = (
        "Qwen2, 64 wide, 2 layers, one token a byte; LoRA of rank 16 at every linear map, AdamW, chunks of 16 tokens, "
    )
    method += (
        "one group of 16 documents of log-normal length, through the kernel. One at a time: transformers and PEFT, "
    )
    method += (
        "a document after another, windows without padding, torch's fused AdamW. CPU time of whole groups in turn."
    )
    return Section("Adapting while scoring: a bank against one document at a time", method, rows)


def stage(folder: Path, window: int, lengths: list[int], slots: int = SLOTS) -> Stage:
    """Return a run over documents of these lengths, one group of them."""
    random = np.random.default_rng(0)
    letters = [bytes(random.integers(ord("a"), ord("z") + 1, size, dtype=np.uint8)) for size in lengths]
    (folder / "documents.txt").write_bytes(b"\n".join(letters) + b"\n")
    spec = folder / "spec.yaml"
    text = SPEC.replace("FOLDER", str(folder)).replace("WINDOW", str(window)).replace("SLOTS", str(slots))
    spec.write_text(text, encoding="utf-8")
    return Stage(order_of(spec, (), None, folder / "run"), discover(), groups=1)


class Singles:
    """The straightforward way: PEFT's adapter, reset for each document, and a window a step."""

    def __init__(self, one: Stage) -> None:
        from copy import deepcopy

        from peft import LoraConfig, get_peft_model

        self.plan, self.tokens, self.starts = one.task.plan, one.tokens.long(), one.task.documents.starts
        names = [site.name for site in one.model.bank.sites]
        net = deepcopy(one.model.causal)
        for part in net.modules():
            part._forward_hooks.clear()  # the bank's, which came along
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, lora_dropout=0.0)
        with catch_warnings():
            simplefilter("ignore")  # PEFT asks for what transformers renamed
            self.net: Any = get_peft_model(net, config).eval()
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.nats: dict[int, float] = {}

    def reset(self, a: Mapping[str, torch.Tensor] | None = None) -> None:
        for name, p in self.net.named_parameters():
            if ".lora_A." in name:
                bound = 1 / p.shape[1] ** 0.5
                p.data.uniform_(-bound, bound) if a is None else p.data.copy_(a[name])
            elif ".lora_B." in name:
                p.data.zero_()
        self.optimizer = torch.optim.AdamW(self.trained, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def document(self, number: int, a: Mapping[str, torch.Tensor] | None = None) -> None:
        """Score a document chunk by chunk, training on each but the last."""
        self.reset(a)
        begin, count, chunk = int(self.starts[number]), int(self.plan.targets[number]), self.plan.chunk
        total = torch.zeros((), dtype=torch.float64)
        for first in range(0, count, chunk):
            end = min(first + chunk, count)
            start = max(0, end - self.plan.window)
            last = end == count
            with torch.set_grad_enabled(not last):
                ids = self.tokens[begin + start : begin + end][None]
                logits = self.net(input_ids=ids, use_cache=False, logits_to_keep=end - first).logits[0]
                losses = cross_entropy(logits, self.tokens[begin + first + 1 : begin + end + 1], reduction="none")
            total += losses.detach().double().sum()
            if not last:
                self.optimizer.zero_grad(set_to_none=True)
                losses.mean().backward()
                self.optimizer.step()
        self.nats[number] = float(total)

    def group(self) -> None:
        for number in self.plan.groups[0].tolist():
            self.document(number)


def bank(one: Stage) -> Callable[[], None]:
    def work() -> None:
        kernel = one.kernel()
        for _ in range(one.steps):
            one.step(kernel)

    return work


def windows(one: Stage) -> Callable[[], None]:
    """Return the forward passes alone over the very same windows, without adapters: what no way can do without."""
    batches = [one.task.batch(0, step) for step in range(one.steps)]

    @torch.no_grad()
    def work() -> None:
        for batch in batches:
            forward(one.model, batch, {}, adapted=False)

    return work


def _against(bench: Bench, window: int, median: int, bar: float) -> list[Row]:
    lengths = np.random.default_rng(1).lognormal(np.log(median), 0.6, SLOTS * 8).clip(24, 1000).round().astype(int)
    lengths = np.sort(lengths)[SLOTS * 4 : SLOTS * 5]  # neighbours in a sorted queue of eight groups
    one = stage(bench.folder(f"stream-{window}"), window, lengths.tolist())
    singles = Singles(one)
    contestants = {
        "bank": block(bank(one), SLOTS),
        "singles": block(singles.group, SLOTS),
        "windows": block(windows(one), SLOTS),
    }
    times = interleave(contestants, bench.rounds(5 if window <= 64 else 3), warm_up=1)
    held = peak(bank(one)) / SLOTS
    own = sum(p.numel() for p in one.model.bank.parameters()) * 4 / SLOTS / 2**20
    least = {name: min(values) for name, values in times.items()}
    what = f"documents of {lengths.min()} to {lengths.max()} tokens, window {window}"
    note = f"{1 / least['bank']:.1f} documents a second over {1 / least['singles']:.1f}"
    return [
        Row(f"one at a time over the bank, {what}", *_over(times, "singles", "bank"), bar, True, note),
        Row(
            f"the bank over its windows forward alone, window {window}", *_over(times, "bank", "windows"),
            note="3 would be free adapters",
        ),
        Row(
            f"memory a slot, window {window}", held, "MiB",
            note=f"factors {own:.2f}, a gradient and a moment as much each, the rest activations",
        ),
    ]  # fmt: skip


def _over(times: Any, what: str, over: str) -> tuple[float, str, float]:
    least, typical = ratio(times, what, over)
    return least, "×", typical
