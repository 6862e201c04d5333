"""Rows as tokens: ids, which of them are trained, and the bytes they stand for; numpy only.

A chunk of rows is one flat array of tokens; nothing runs per token in Python.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError

from .text_chat import Chat, check_whole, marks_the_assistant, render, template, written
from .text_reading import TextRow

CHUNK = 2048
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows, one entry per kept row.

    `trained[i][t]` says whether token t of row i is a label, predicted from the tokens before it; never t = 0.
    `bytes[i]` counts the UTF-8 bytes of the text behind the trained tokens, special tokens apart; None where a trained
    token shares a character with one that is not, or stands for a word that the tokenizer does not know. `kept[i]` is
    the row's place among those given; `dropped` rows had no trained token; `cut` rows were longer than allowed.
    """

    ids: list[NDArray[np.int32]]
    trained: list[Bools]
    bytes: list[int | None]
    kept: list[int]
    cut: int
    dropped: int


@dataclass(frozen=True)
class _Flat:
    """The tokens of several rows, end to end; characters are counted through all their texts."""

    row: Ints
    position: Ints
    ids: NDArray[np.int32]
    start: Ints
    end: Ints
    lengths: Ints


def encode(rows: Sequence[TextRow], tokenizer: Any, max_length: int, *, place: str) -> Encoded:
    """Turn rows into at most `max_length` tokens each; `place` stands before `:id` of a row in errors.

    Of a text every token but the first is trained, of a chat what the assistant says. Raises `DataError` where
    messages meet a tokenizer without a chat template, where the template refuses a row, and where no row is left.
    A tokenizer without a pad token pads with its end token from then on.
    """
    check_padding(tokenizer, place)
    assert max_length >= 2, "a row of one token has nothing to predict"
    found = Encoded([], [], [], [], 0, 0)
    dropped = cut = 0
    for wanted, part in ((False, _encode_texts), (True, _encode_chats)):
        index = np.array([i for i, row in enumerate(rows) if (row.text is None) == wanted], np.int64)
        for first in range(0, len(index), CHUNK):
            some = index[first : first + CHUNK]
            flat, trained, counted = part([rows[i] for i in some], tokenizer, max_length, place)
            cut += int((flat.lengths > max_length).sum())
            dropped += len(some) - _keep(found, some, flat, trained, counted, max_length)
    if not found.kept:
        text = f"{place}: none of {len(rows)} rows has a trained token within max_length {max_length}"
        raise DataError(
            f"{text}; raise max_length, or give rows with more than one token (of the assistant, in a chat)"
        )
    order = np.argsort(np.array(found.kept), kind="stable").tolist()
    ids, masks, counts, kept = (
        [part[i] for i in order] for part in (found.ids, found.trained, found.bytes, found.kept)
    )
    return Encoded(ids, masks, counts, kept, cut, dropped)


def check_padding(tokenizer: Any, place: str) -> None:
    """Give a tokenizer without a pad token its end token to pad with; raises `DataError` where it has neither."""
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            text = f"{place}: the tokenizer has neither a pad token nor an end token, so rows cannot be padded"
            raise DataError(f"{text}; name one of them in its tokenizer_config.json")
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked everywhere, so any token will do


def notes(split: str, found: Encoded, most: int) -> list[str]:
    """Say in words what was cut off or left out of a split."""
    whole = len(found.kept) + found.dropped
    said = []
    if found.cut:
        said.append(f"{found.cut} of {whole} rows of {split} are longer than {most} tokens and were cut off")
    if found.dropped:
        said.append(f"{found.dropped} of {whole} rows of {split} have no token to train and were left out")
    return said


def _encode_texts(rows: list[TextRow], tokenizer: Any, most: int, place: str) -> tuple[_Flat, Bools, list[int | None]]:
    texts = [row.text or "" for row in rows]
    if getattr(tokenizer, "one_token_per_byte", False):
        return _encode_bytes(texts, most)
    made = tokenizer(texts, add_special_tokens=True, return_attention_mask=False, verbose=False)
    flat = _flat(made, texts)
    trained = np.ones(len(flat.ids), np.bool_)
    return flat, *_settled(flat, trained, texts, tokenizer, most)


def _encode_bytes(texts: list[str], most: int) -> tuple[_Flat, Bools, list[int | None]]:
    """Answer what a tokenizer of one token per byte would, two hundred times as fast."""
    coded = [text.encode() for text in texts]
    lengths = np.array([len(one) for one in coded], np.int64)
    ids = np.frombuffer(b"".join(coded), np.uint8).astype(np.int32)
    position = _positions(lengths)
    nowhere = np.zeros(0, np.int64)  # where a token stands in the text is not asked: it is its byte
    flat = _Flat(np.repeat(np.arange(len(texts)), lengths), position, ids, nowhere, nowhere, lengths)
    return flat, (position > 0) & (position < most), (np.minimum(lengths, most) - 1).tolist()


def _encode_chats(rows: list[TextRow], tokenizer: Any, most: int, place: str) -> tuple[_Flat, Bools, list[int | None]]:
    if not getattr(tokenizer, "is_fast", False):
        name = type(tokenizer).__name__
        raise DataError(f"{place}: holds messages, and {name} cannot say where a token stands; use a fast tokenizer")
    if marks_the_assistant(template(tokenizer, place)):
        chats = [Chat(written(tokenizer, row.messages, f"{place}:{row.id}")) for row in rows]
        for row, chat in zip(rows, chats, strict=True):
            check_whole(chat.text, row, place)
        made = tokenizer.apply_chat_template(
            [[dict(one) for one in row.messages] for row in rows],
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"verbose": False},
        )
        flat = _flat(made, [chat.text for chat in chats])
        trained = np.fromiter(chain.from_iterable(made["assistant_masks"]), np.bool_, len(flat.ids))
    else:
        chats = [render(tokenizer, row, place) for row in rows]
        made = tokenizer([chat.text for chat in chats], add_special_tokens=False, verbose=False)
        flat = _flat(made, [chat.text for chat in chats])
        trained = _said(flat, chats, _special(flat.ids, tokenizer))
    return flat, *_settled(flat, trained, [chat.text for chat in chats], tokenizer, most)


def _flat(made: Any, texts: list[str]) -> _Flat:
    ids = made["input_ids"]
    lengths = np.array([len(one) for one in ids], np.int64)
    total = int(lengths.sum())
    row = np.repeat(np.arange(len(ids)), lengths)
    spans = np.full((total, 2), -1, np.int64)  # a slow tokenizer does not say where its tokens stand
    if made.encodings is not None:
        numbers: Iterable[int] = chain.from_iterable(chain.from_iterable(one.offsets for one in made.encodings))
        spans = np.fromiter(numbers, np.int64, 2 * total).reshape(-1, 2) + _starts(texts)[row][:, None]
    flat_ids = np.fromiter(chain.from_iterable(ids), np.int32, total)
    return _Flat(row, _positions(lengths), flat_ids, spans[:, 0], spans[:, 1], lengths)


def _positions(lengths: Ints) -> Ints:
    """Return the place of every token in its row."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _starts(texts: Sequence[str]) -> Ints:
    sizes = np.array([len(text) for text in texts], np.int64)
    return np.cumsum(sizes) - sizes


def _said(flat: _Flat, chats: list[Chat], special: Bools) -> Bools:
    """Mark tokens that begin inside a span of the assistant, and special tokens that close one."""
    starts = _starts([chat.text for chat in chats])
    spans = [(s + base, e + base) for chat, base in zip(chats, starts, strict=True) for s, e in chat.spans]
    first, last = np.array(spans, np.int64).reshape(-1, 2).T
    which = np.searchsorted(first, flat.start, side="right") - 1
    inside = (which >= 0) & (flat.end > flat.start)
    inside[inside] = flat.start[inside] < last[which[inside]]
    closed = [end + base for chat, base in zip(chats, starts, strict=True) for end in chat.closed]
    return inside | (special & np.isin(flat.start, np.array(closed, np.int64)))


def _special(ids: NDArray[np.int32], tokenizer: Any) -> Bools:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    known = {*tokenizer.all_special_ids, *(number for number, token in added.items() if token.special)}
    return np.isin(ids, np.array(sorted(known), np.int64))


def _settled(
    flat: _Flat, trained: Bools, texts: list[str], tokenizer: Any, most: int
) -> tuple[Bools, list[int | None]]:
    """Take away what the shift and the length remove; count the bytes behind what is left, row by row."""
    trained = trained & (flat.position > 0) & (flat.position < most)
    if not len(flat.ids) or flat.start[0] < 0:
        return trained, [None] * len(texts)
    text = "".join(texts)
    until = flat.end.copy()
    until[flat.end == flat.start] = 0  # tokens that a tokenizer adds stand nowhere
    behind = np.maximum(np.concatenate([[0], np.maximum.accumulate(until)[:-1]]), _starts(texts)[flat.row])
    counted = trained & ~_special(flat.ids, tokenizer)
    at = _byte_positions(text)
    sizes = np.where(counted & (until > behind), at[until] - at[np.minimum(behind, until)], 0)
    shared = (flat.position > 0) & (flat.start < behind) & (until > 0)
    vague = shared & (counted != np.concatenate([[False], counted[:-1]]))
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        vague |= trained & (flat.ids == unknown)
    per_row = np.bincount(flat.row, weights=sizes, minlength=len(texts))
    inexact = np.bincount(flat.row, weights=vague, minlength=len(texts)) > 0
    return trained, [None if bad else int(size) for bad, size in zip(inexact, per_row, strict=True)]


def _byte_positions(text: str) -> Ints:
    """Return where each character, and the end, stands in UTF-8."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    sizes = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _keep(found: Encoded, index: Ints, flat: _Flat, trained: Bools, counted: list[int | None], most: int) -> int:
    """Append rows that have a trained token, cut to length; return how many."""
    ends = np.cumsum(flat.lengths)
    alive = np.bincount(flat.row, weights=trained, minlength=len(index)) > 0
    for i in np.flatnonzero(alive).tolist():
        start = int(ends[i] - flat.lengths[i])
        stop = min(int(ends[i]), start + most)
        found.ids.append(flat.ids[start:stop].copy())  # a view would keep the whole chunk
        found.trained.append(trained[start:stop].copy())
        found.bytes.append(counted[i])
        found.kept.append(int(index[i]))
    return int(alive.sum())
