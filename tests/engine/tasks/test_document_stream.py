"""The task `document_stream`: what is scored, booked and trained on, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from ctr.engine.errors import SpecError, VerificationError
from ctr.engine.task import Phase
from ctr.engine.tasks.ledger import Ledger

from .streams import LENGTHS, make, refusal, write_documents

ADAPTS = Phase("stream", 0, 1, 4, adapts=True)


def begun(folder: Path, **config: object):  # type: ignore[no-untyped-def]
    task, module = make(folder, **config)  # type: ignore[arg-type]
    task.begin(ADAPTS)
    return task, module


def by_hand(module, text: bytes, chunk: int, window: int) -> list[list[float]]:  # type: ignore[no-untyped-def]
    """Score a document without adapters, a chunk at a time, each from a window of its own."""
    ids, found = torch.tensor(list(text)), []
    for first in range(0, len(ids) - 1, chunk):
        end = min(first + chunk, len(ids) - 1)
        start = max(0, end - window)
        logits = module.causal(input_ids=ids[start:end][None]).logits[0]
        losses = cross_entropy(logits, ids[start + 1 : end + 1], reduction="none")
        found.append(losses[first - start :].tolist())
    return found


@torch.no_grad()
def test_a_silent_bank_scores_what_the_model_scores(tmp_path: Path) -> None:
    task, module = begun(tmp_path)
    texts = (tmp_path / "documents.txt").read_bytes().split()
    seen = {}
    for index in range(task.batches(0)):
        batch = task.batch(0, index)
        outputs = task.forward(module, batch, {})  # B is zero until something is trained
        for place, document in enumerate(task.plan.event(0, index).documents.tolist()):
            size = int(batch.tensors["real"][place].sum())
            seen.setdefault(document, []).append(outputs.scores["losses"][place, :size].tolist())
    for document, text in enumerate(texts):
        wanted = by_hand(module, text, 8, 24)
        assert [len(chunk) for chunk in seen[document]] == [len(chunk) for chunk in wanted]
        assert np.allclose(np.concatenate(seen[document]), np.concatenate(wanted), atol=1e-5)
    booked = task.evaluate(module, "val")
    wanted_sums = [sum(map(sum, by_hand(module, text, 8, 24))) for text in texts]
    assert np.allclose(booked.loss_sum, wanted_sums, atol=1e-4)
    assert booked.count.tolist() == [n - 1 for n in LENGTHS] == booked.per["bits_per_byte"].tolist()
    total = sum(wanted_sums) / np.log(2) / (sum(LENGTHS) - len(LENGTHS))
    assert booked.mean("bits_per_byte") == pytest.approx(total)


def test_before_anything_is_booked_the_model_without_adapters_is_scored(tmp_path: Path) -> None:
    task, module = begun(tmp_path)
    before = task.evaluate(module, "val")
    texts = (tmp_path / "documents.txt").read_bytes().split()
    with torch.no_grad():
        wanted = [sum(map(sum, by_hand(module, text, 8, 24))) for text in texts]
    assert np.allclose(before.loss_sum, wanted, atol=1e-4) and before.ids == [str(i + 1) for i in range(len(texts))]
    assert task.evaluate(module, "test", [2, 0]).loss_sum == pytest.approx(before.loss_sum[[2, 0]])


def test_the_gradient_of_a_document_is_of_its_own_mean_and_of_no_other(tmp_path: Path) -> None:
    task, module = begun(tmp_path)
    torch.manual_seed(0)
    for p in module.bank.lora_B.values():
        p.data.normal_(0, 0.1)
    batch = task.batch(0, 0)
    outputs = task.forward(module, batch, {})
    outputs.loss.backward()
    whole = [p.grad.clone() for p in module.bank.parameters()]
    event = task.plan.event(0, 0)
    assert event.trains.all() and float(outputs.loss.detach()) == pytest.approx(
        float(outputs.scores["nats"].sum() / 24), rel=1e-6
    )
    for place, document in enumerate(event.documents.tolist()):
        module.zero_grad()
        start = int(task.documents.starts[document])
        ids = task.tokens[start : start + 9].long()
        with module.bank.speaking(torch.tensor([place])):
            logits = module.causal(input_ids=ids[None, :8]).logits[0]
        cross_entropy(logits, ids[1:]).backward()
        for p, grad in zip(module.bank.parameters(), whole, strict=True):
            assert torch.allclose(p.grad[:, place], grad[:, place], atol=1e-6)


def test_what_has_no_later_chunk_is_scored_only(tmp_path: Path) -> None:
    task, module = begun(tmp_path)
    counts = [task.batch(0, i).count for i in range(task.batches(0))]
    assert sum(counts) == 8 * sum(max(0, -(-(n - 1) // 8) - 1) for n in LENGTHS)
    last = int(task.plan.steps[0]) - 1
    batch = task.batch(0, last)
    assert batch.count == 0 and not batch.tensors["moves"].any() and batch.alone
    assert not task.forward(module, batch, {}).loss.requires_grad


def test_slots_begin_together_and_only_with_a_group(tmp_path: Path) -> None:
    task, _ = begun(tmp_path)
    starts = [(task.batch(0, i).group, list(task.batch(0, i).starts)) for i in range(task.batches(0))]
    begins = [(group, slots) for group, slots in starts if slots]
    assert begins == [(0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 1, 2]), (3, [0])]


def test_a_chunk_that_is_entered_twice_is_told(tmp_path: Path) -> None:
    task, module = begun(tmp_path)
    with torch.no_grad():
        for index in range(task.batches(0)):
            task.forward(module, task.batch(0, index), {})
        task.forward(module, task.batch(0, 3), {})
    with pytest.raises(VerificationError, match="was scored 2 times; every chunk is scored once"):
        task.evaluate(module, "val")


def test_a_ledger_comes_back_as_it_went() -> None:
    one, other = Ledger(4, torch.device("cpu")), Ledger(4, torch.device("cpu"))
    one.book(torch.tensor([2, 0]), torch.tensor([1.5, 2.5]))
    other.restore(one.state())
    assert torch.equal(other.nats.isnan(), torch.tensor([False, True, False, True])) and other.nats[2] == 1.5
    assert other.entries.tolist() == [1, 0, 1, 0]


def test_weights_train_on_what_was_scored_and_nothing_else(tmp_path: Path) -> None:
    task, module = make(tmp_path, parts=(3,))
    weights = Phase("global", 1, 1, 2, turn=1)
    task.begin(weights)
    assert all(p.requires_grad == (".lora_" not in name) for name, p in module.named_parameters())
    scored = {int(d) for d in task.plan.documents(1)}
    texts = (tmp_path / "documents.txt").read_bytes().split()
    allowed = {texts[d] for d in scored}
    trained = 0
    for index in range(task.batches(0)):
        batch = task.batch(0, index)
        trained += batch.count
        for row in batch.tensors["ids"].tolist():
            words = bytes(token for token in row if token < 256)
            assert any(words[:12] in text or text in words for text in allowed), words
        assert torch.isfinite(task.forward(module, batch, {}).loss)
    assert trained == sum(LENGTHS[d] - 1 for d in scored)


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase("s", 0, 2, 4, adapts=True), "train.epochs: a stream is read once from end to end"),
        (Phase("s", 0, 1, 4, 5, adapts=True), "train.epochs: a stream is read once from end to end"),
        (Phase("s", 0, 1, 4, adapts=True, checkpointing=True), "train.gradient_checkpointing: the bank's adapters"),
        (Phase("s", 0, 1, 4, adapts=True, compile=True), "train.compile: the bank's adapters are hooks"),
        (Phase("s", 1, 1, 4, adapts=True, turn=1), "phases: phase s has no documents left"),
        (Phase("g", 0, 1, 4), "phases: phase g trains on scored documents, and none has been scored"),
    ],
)
def test_phases_that_a_stream_cannot_have(tmp_path: Path, phase: Phase, words: str) -> None:
    task, _ = make(tmp_path)
    with pytest.raises(SpecError, match=words):
        task.begin(phase)


# ---------------------------------------------------------------------------------------------------- bad input
def test_documents_without_a_token_to_predict_are_left_out_and_told(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents.txt", [1, 2, 30, 1])
    task, _ = make(tmp_path)
    assert task.notes == ["2 of 4 documents have no token to predict and were left out"]
    assert task.items("test") == ["2", "3"] and task.documents.lengths.tolist() == [2, 30]


def tokens(folder: Path, array: object) -> dict[str, object]:
    np.save(folder / "t.npy", np.array(array))
    return {"source": "tokens", "path": str(folder / "t.npy"), "begin": 1}


def test_a_token_file_is_cut_where_documents_begin_and_scored_per_token(tmp_path: Path) -> None:
    task, module = begun(tmp_path, data=tokens(tmp_path, [1, 5, 6, 1, 1, 7, 1]))
    assert task.documents.lengths.tolist() == [3, 2] and task.items("val") == ["0", "2"]
    assert task.notes[0] == "2 of 4 documents have no token to predict and were left out"
    assert task.notes[1].endswith("so scores are per token only")
    assert not task.evaluate(module, "val").metrics


@pytest.mark.parametrize(
    ("array", "words"),
    [
        ([[1, 2], [1, 2]], r"holds data of shape \(2, 2\) and type int64; one row of whole numbers is expected"),
        ([1.0, 2.0], "holds data of shape"),
        ([1, -2], r"holds token -2…1; ids are 0 to 2147483647"),
        ([3, 4], "token 1 occurs nowhere, so no document begins"),
        ([3, 1, 4], "1 tokens stand before the first token 1 and are of no document"),
        ([1, 1, 1], "no document has a token after token 1"),
        ([1, 9999], "the documents hold token 9999, which is past the model's vocabulary of 263"),
    ],
)
def test_token_files_that_are_none(tmp_path: Path, array: object, words: str) -> None:
    assert re.search(words, refusal(tmp_path, data=tokens(tmp_path, array)))


def test_a_token_file_is_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([object()], dtype=object), allow_pickle=True)
    data = {"source": "tokens", "path": str(tmp_path / "t.npy"), "begin": 1}
    assert "is no array that numpy saved without pickle" in refusal(tmp_path, data=data)


@pytest.mark.parametrize(
    ("adapter", "config", "words"),
    [
        ({}, {"window": 100}, "task.window: 100 is more than the model's context of 64 tokens"),
        ({}, {"parts": (11,)}, "task.parts: 11 is more than the 10 documents there are"),
        ({}, {"parts": (4, 5)}, "task.parts: two of 4, 5 fall into one group of 3 documents"),
        ({"rank": 40}, {}, "adapter.rank: 40 is larger than a side of"),
        ({"targets": ("q_prij",)}, {}, "Did you mean q_proj?"),
    ],
)
def test_settings_that_do_not_fit(
    tmp_path: Path, adapter: dict[str, object], config: dict[str, object], words: str
) -> None:
    assert words in refusal(tmp_path, adapter, **config)


def test_chats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    text = refusal(tmp_path, data={"source": "jsonl", "path": str(path)})
    assert "chats.jsonl:1: holds messages; a stream scores every token of a text" in text
