"""The small causal transformer that the tests of `geometry` train has what makes them hard."""

from __future__ import annotations

import torch

from ctr.engine.testing.language import BRANCHES, HEADS, SEQ, WIDTH, WORDS
from ctr.engine.testing.language import TinyText as Text

__all__ = ["BRANCHES", "HEADS", "SEQ", "WIDTH", "WORDS", "Text"]


def test_the_stand_in_has_what_makes_the_laws_hard() -> None:
    """Dropout, ragged rows, a short last batch; and padding at the end has no bearing on real tokens."""
    task = Text(3)
    module = task.build().eval()
    assert any(isinstance(part, torch.nn.Dropout) for part in module.modules())
    assert len({int(n) for n in task.mask.sum(1)}) > 2 and task.batches(0) * task.micro > len(task.x)
    batch = task.rows([0, 1, 2])
    dirty = torch.where(batch.tensors["mask"], batch.tensors["words"], 7)
    logits = [module(words, batch.tensors["mask"])[0] for words in (batch.tensors["words"], dirty)]
    assert torch.equal(logits[0][batch.tensors["mask"]], logits[1][batch.tensors["mask"]])
