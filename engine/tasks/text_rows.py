"""Rows as tokens, and which of them are trained: all of a text, the assistant's turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError
from ctr.engine.text import printable

from .text_sources import TextRow


@dataclass(frozen=True)
class Encoded:
    """Rows of token ids and flags of those that are trained. `kept` says which rows these are.

    `cut` counts rows that were longer than allowed, `dropped` those left without a token to train.
    """

    ids: list[NDArray[np.int32]]
    trained: list[NDArray[np.bool_]]
    kept: list[int]
    cut: int
    dropped: int


def encode(rows: Sequence[TextRow], tokenizer: Any, max_length: int, *, place: str) -> Encoded:
    """Return rows of at most `max_length` tokens; raises `DataError` naming place, row and way out.

    A row without a token to train (the first one of a row is never predicted) is dropped; all of them is an error.
    """
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise DataError(f"{place}: the tokenizer has neither a pad nor an end token, so rows cannot be padded")
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token will do
    ids: list[Any] = [None] * len(rows)
    trained: list[Any] = [None] * len(rows)
    texts = [index for index, row in enumerate(rows) if row.text is not None]
    if texts:
        for index, row in zip(texts, _plain([str(rows[index].text) for index in texts], tokenizer), strict=True):
            ids[index] = np.asarray(row, np.int32)
            trained[index] = np.ones(len(row), bool)
    for index, row in enumerate(rows):
        if row.text is None:
            ids[index], trained[index] = _conversation(row, tokenizer, f"{place}, row {row.id}")
    return _fitted(ids, trained, max_length, place)


def _plain(texts: list[str], tokenizer: Any) -> Iterable[Any]:
    if getattr(tokenizer, "one_token_per_byte", False):  # what it would answer, two hundred times as fast
        return (np.frombuffer(text.encode(), np.uint8) for text in texts)
    found: Iterable[Any] = tokenizer(texts, return_attention_mask=False)["input_ids"]
    return found


def _fitted(ids: list[Any], trained: list[Any], most: int, place: str) -> Encoded:
    cut = sum(len(row) > most for row in ids)
    short = [(row[:most], flags[:most]) for row, flags in zip(ids, trained, strict=True)]
    kept = [index for index, (_, flags) in enumerate(short) if flags[1:].any()]
    if not kept:
        text = f"{place}: none of its {len(ids)} rows has a token to train within max_length {most}"
        raise DataError(f"{text}; raise max_length, or check that conversations have turns of the assistant")
    return Encoded([short[i][0] for i in kept], [short[i][1] for i in kept], kept, cut, len(ids) - len(kept))


def _conversation(row: TextRow, tokenizer: Any, place: str) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return a conversation as the template writes it; the assistant's turns are trained, with their end."""
    if getattr(tokenizer, "chat_template", None) is None:
        text = f"{place}: is a conversation, but the model's tokenizer has no chat template"
        raise DataError(f'{text}; take a model made for conversations, or turn the rows into {{"text": …}}')
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{place}: is a conversation, and this tokenizer cannot say where its tokens stand in the text")
    turns = [dict(turn) for turn in row.messages]
    whole = _written(tokenizer, turns, place)
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before = _written(tokenizer, turns[:index], place, opening=True)
            after = _written(tokenizer, turns[: index + 1], place)
            if not (whole.startswith(before) and whole.startswith(after)):
                text = f"{place}: the tokenizer's template rewrites earlier turns, so turn {index} cannot be told apart"
                raise DataError(f"{text}; split the conversation after that turn, or take another template")
            spans.append((len(before), len(after)))
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts = np.array([start for start, _ in found["offset_mapping"]], np.int64)
    flags = np.zeros(len(starts), bool)
    for start, stop in spans:
        flags |= (starts >= start) & (starts < stop)
    return np.asarray(found["input_ids"], np.int32), flags


def _written(tokenizer: Any, turns: list[dict[str, str]], place: str, opening: bool = False) -> str:
    if not turns:
        return ""
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=opening)
    except Exception as error:  # a template may raise anything, most often about the order of roles
        raise DataError(f"{place}: the tokenizer's chat template refuses it: {printable(error, 300)}") from error
    return text


def notes(split: str, found: Encoded, most: int) -> list[str]:
    """Say in words what was cut off or left out of a split."""
    whole = len(found.kept) + found.dropped
    said = []
    if found.cut:
        said.append(f"{found.cut} of {whole} rows of {split} are longer than {most} tokens and were cut off")
    if found.dropped:
        said.append(f"{found.dropped} of {whole} rows of {split} have no token to train and were left out")
    return said
