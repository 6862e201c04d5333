"""Small streams of documents: what the tests of `document_stream` score and train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from ctr.engine.errors import CtrError
from ctr.engine.task import Context
from ctr.engine.tasks.document_stream import DocumentStream
from ctr.engine.tasks.language_config import AdapterSettings
from ctr.engine.tasks.language_models import LanguageModel

QWEN2 = {"kind": "tiny", "width": 16, "layers": 2, "heads": 4, "kv_heads": 2, "context": 64, "init_seed": 0}
BANK = {"kind": "bank", "slots": 3, "rank": 2, "alpha": 4.0}
STUDY = """\
study: streamed
question: Is this test right?
seeds: [1]
model: {kind: tiny, width: 16, layers: 2, heads: 4, kv_heads: 2, context: 64, init_seed: 0}
adapter: {kind: bank, slots: 3, rank: 2, alpha: 4}
task: {kind: document_stream, data: {source: text, path: FOLDER/documents.txt}, chunk: 8, window: 24}
train:
  epochs: 1
  micro_batch: 4
  threads: 1
  optimizer: {kind: adamw, base_lr: 5e-2, weight_decay: 0.0, betas: [0.0, 0.999], eps: 1e-10}
arms:
  adapted: {}
compare: {on: [test.bits_per_byte]}
"""


def write_documents(path: Path, lengths: list[int], seed: int = 0) -> Path:
    """Write a document a line, of these lengths in bytes."""
    generator = torch.Generator().manual_seed(seed)
    letters = "abcdefgh"
    rows = ["".join(letters[i] for i in torch.randint(8, (n,), generator=generator)) for n in lengths]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


LENGTHS = [40, 9, 25, 31, 2, 60, 17, 26, 33, 10]


def study(folder: Path, replaced: dict[str, str] | None = None) -> Path:
    """Write a small study of a stream, with pieces of its text replaced, and its documents; return its path."""
    text = STUDY
    for old, new in (replaced or {}).items():
        assert old in text, old
        text = text.replace(old, new)
    write_documents(folder / "documents.txt", LENGTHS)
    path = folder / "streamed.yaml"
    path.write_text(text.replace("FOLDER", str(folder)), encoding="utf-8")
    return path


def make(folder: Path, adapter: dict[str, Any] | None = None, **config: Any) -> tuple[DocumentStream, LanguageModel]:
    """Return a task with its model and a bank."""
    path = folder / "documents.txt"
    if not path.exists():
        write_documents(path, LENGTHS)
    settings = {"data": {"source": "text", "path": str(path)}, "chunk": 8, "window": 24, **config}
    task = DocumentStream(DocumentStream.Config.model_validate(settings), Context(1, torch.device("cpu"), folder))
    model: Any = TypeAdapter(DocumentStream.Model).validate_python(QWEN2)
    bank: Any = TypeAdapter(AdapterSettings).validate_python({**BANK, **(adapter or {})})
    torch.default_generator.manual_seed(3)
    module = task.build(model, bank, torch.Generator())
    assert isinstance(module, LanguageModel)
    return task, module


def refusal(folder: Path, adapter: dict[str, Any] | None = None, **config: Any) -> str:
    """Return what a stream with these settings is refused with."""
    try:
        make(folder, adapter, **config)
    except CtrError as error:
        return str(error)
    raise AssertionError("nothing was refused")
