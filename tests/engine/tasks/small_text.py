"""Small texts and small language models: what the tests of `causal_lm` train."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from ctr.engine.checkpoint import CheckpointStore
from ctr.engine.execute import execute
from ctr.engine.host import discover
from ctr.engine.order import Order, Outcome
from ctr.engine.planning import plan
from ctr.engine.spec import load_study
from ctr.engine.task import Context, Phase
from ctr.engine.tasks.causal_lm import CausalLm
from ctr.engine.tasks.language_config import LoraSettings
from ctr.engine.tasks.language_models import LanguageModel

torch.set_num_threads(1)
WORDS = "ash birch cedar elm fir hazel larch maple oak pine rowan spruce willow yew".split()
QWEN2 = {"kind": "tiny", "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64, "init_seed": 0}
GPT2 = {"kind": "tiny", "family": "gpt2", "width": 16, "layers": 2, "heads": 4, "context": 64, "init_seed": 0}
FAMILIES = {"qwen2": QWEN2, "gpt2": GPT2}
LORA = {"kind": "lora", "rank": 3, "alpha": 9.0}
STUDY = """\
study: spoken
question: Is this test right?
seeds: [1]
model: {kind: tiny, width: 16, layers: 2, heads: 4, kv_heads: 2, context: 64, dropout: 0.1}
adapter: {kind: lora, rank: 2, alpha: 4, dropout: 0.1}
tasks:
  base: {kind: causal_lm, max_length: 48, data: {source: text, path: FOLDER/base.txt}}
  A: {kind: causal_lm, max_length: 48, data: {source: text, path: FOLDER/a.txt}}
phases:
  - {task: base, trains: all}
  - {task: A}
train:
  epochs: 2
  epoch_batches: 3
  micro_batch: 4
  threads: 1
  optimizer: {kind: adamw, base_lr: 2e-2}
arms:
  baseline: {}
compare: {on: [test.loss]}
"""


def write_rows(path: Path, rows: int = 40, seed: int = 0) -> Path:
    """Write lines of one to nine words, of ever other lengths."""
    random = np.random.RandomState(seed)
    lines = [" ".join(random.choice(WORDS, 1 + random.randint(9))) for _ in range(rows)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def study(folder: Path, replaced: dict[str, str] | None = None) -> Path:
    """Write a small study of language, with pieces of its text replaced, and its texts; return its path."""
    text = STUDY
    for old, new in (replaced or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    write_rows(folder / "base.txt", seed=1)
    write_rows(folder / "a.txt", seed=2)
    path = folder / "spoken.yaml"
    path.write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return path


def make(folder: Path, seed: int = 1, **config: Any) -> CausalLm:
    """Return a task on forty short lines, that has no model yet."""
    path = folder / "rows.txt"
    if not path.exists():
        write_rows(path)
    settings = {"data": {"source": "text", "path": str(path)}, "max_length": 48, **config}
    return CausalLm(CausalLm.Config.model_validate(settings), Context(seed, torch.device("cpu"), folder))


def build(task: CausalLm, model: dict[str, Any], adapter: dict[str, Any] | None = None) -> LanguageModel:
    """Give a task its model, with an adapter whose B is not zero."""
    made: Any = TypeAdapter(CausalLm.Model).validate_python(model)
    lora = None if adapter is None else LoraSettings.model_validate(adapter)
    module = task.build(made, lora, torch.Generator())
    assert isinstance(module, LanguageModel)
    generator = torch.Generator().manual_seed(5)
    for name, p in module.named_parameters():
        if ".lora_B." in name and (adapter or {}).get("load") is None:
            p.data.copy_(torch.randn(p.shape, generator=generator) / 4)
    return module


def begun(
    folder: Path, model: dict[str, Any], adapter: dict[str, Any] | None = None, micro: int = 5, **config: Any
) -> tuple[CausalLm, LanguageModel]:
    """Return a task and its model, in a phase that trains the adapter if there is one."""
    task = make(folder, **config)
    module = build(task, model, adapter)
    task.begin(Phase("main", 0, 2, micro, adapts=adapter is not None))
    return task, module


def gradients(module: LanguageModel) -> dict[str, torch.Tensor]:
    """Return a copy of every gradient by name, and forget them."""
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return found


def train(
    path: Path, folder: Path, *sets: str, arm: str = "baseline", seed: int = 1, dies_at: int | None = None
) -> Outcome:
    """Train one run of a study in `folder`; killed after so many updates where `dies_at` says so."""
    registry = discover()
    rows, threads = plan(load_study(path, sets, registry), folder, registry)
    row = next(row for row in rows if (row.run.arm, row.run.seed) == (arm, seed))

    def die(step: int) -> None:
        if step == dies_at:
            raise RuntimeError("killed")

    order = Order(row.run, folder, row.identity, row.fingerprints, threads, row.sources)
    return execute(order, registry, threading.Event(), die)


def bits(folder: Path) -> dict[str, bytes]:
    """Return what a finished run holds: weights, moments and memories to the byte, and its series."""
    loaded = CheckpointStore(folder).newest()
    assert loaded is not None
    found = {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in flat(loaded.tensors)}
    series = {path.name: path.read_bytes() for path in (folder / "series").iterdir() if "clock" not in path.name}
    return {**found, **series}


def flat(tensors: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(name, tensor.reshape(-1)) for name, tensor in tensors.items()]
