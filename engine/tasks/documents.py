"""Documents as tokens, end to end, with the bytes each stands for where they can be counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctr.engine.errors import DataError
from ctr.engine.text import printable

from .document_config import DocumentStreamConfig, TokenFile
from .text_reading import open_file
from .text_sources import divide, read

LONGEST = 1 << 26  # tokens of one document; no row is cut


@dataclass(frozen=True)
class Documents:
    """Documents in the order of their source. `flat[starts[i] : starts[i] + lengths[i]]` are the tokens of document i.

    `bytes[i]` counts the UTF-8 bytes of its text; None where a document's cannot be counted exactly, for then bits
    per byte mean nothing. `notes` say what was left out.
    """

    ids: Sequence[str]
    flat: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    bytes: NDArray[np.int64] | None
    notes: Sequence[str]


def load(config: DocumentStreamConfig) -> Any:
    """Read and check the source; raises `DataError`. Tokens are made once a tokenizer is known."""
    return _token_file(config.data) if isinstance(config.data, TokenFile) else read(config.data)


def encode(config: DocumentStreamConfig, source: Any, tokenizer: Any) -> Documents:
    """Return the documents that are streamed. Raises `DataError` where none has a token to predict."""
    from .text_rows import encode as encode_rows

    if isinstance(config.data, TokenFile):
        return _split_tokens(config.data, source)
    rows = source.rows
    if config.split != "all":
        rows = [rows[i] for i in divide(source, config.data)[config.split]]
    chats = [row for row in rows if row.text is None]
    if chats:
        text = f"{source.place}:{chats[0].id}: holds messages; a stream scores every token of a text"
        raise DataError(f"{text}; give rows of text")
    if not rows:
        raise DataError(f"{source.place}: the split {config.split} is empty")
    found = encode_rows(rows, tokenizer, LONGEST, place=source.place)
    notes = []
    if found.dropped:
        notes.append(f"{found.dropped} of {len(rows)} documents have no token to predict and were left out")
    counted = [count for count in found.bytes if count is not None]
    exact = len(counted) == len(found.bytes)
    if not exact:
        first = rows[found.kept[next(i for i, count in enumerate(found.bytes) if count is None)]].id
        text = f"bytes cannot be counted exactly (first at {source.place}:{first}), so scores are per token only"
        notes.append(f"{text}; the tokenizer has a token for what it does not know, or does not say where tokens stand")
    ids = [rows[i].id for i in found.kept]
    return _joined(ids, found.ids, np.array(counted, np.int64) if exact else None, notes)


def _joined(
    ids: Sequence[str], rows: Sequence[NDArray[np.int32]], counted: NDArray[np.int64] | None, notes: Sequence[str]
) -> Documents:
    lengths = np.array([len(row) for row in rows], np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return Documents(ids, np.concatenate(rows).astype(np.int32), starts, lengths, counted, notes)


def _token_file(data: TokenFile) -> NDArray[np.int64]:
    shown = printable(data.path)
    with open_file(data.path) as file:
        try:
            found: Any = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            text = f"{shown}: is no array that numpy saved without pickle: {printable(error, 200)}"
            raise DataError(text) from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in "iu":
        kind = (
            f"of shape {found.shape} and type {found.dtype}" if isinstance(found, np.ndarray) else "of several arrays"
        )
        raise DataError(f"{shown}: holds data {kind}; one row of whole numbers is expected")
    if len(found) and (int(found.min()) < 0 or int(found.max()) >= 2**31):
        raise DataError(f"{shown}: holds token {int(found.min())}…{int(found.max())}; ids are 0 to 2147483647")
    return found.astype(np.int64)


def _split_tokens(data: TokenFile, tokens: NDArray[np.int64]) -> Documents:
    """Cut a token file where documents begin; each ends before the next one's first token."""
    shown = printable(data.path)
    at = np.flatnonzero(tokens == data.begin)
    if not len(at):
        raise DataError(f"{shown}: token {data.begin} occurs nowhere, so no document begins; see data.begin")
    if at[0] != 0:
        text = f"{shown}: {int(at[0])} tokens stand before the first token {data.begin} and are of no document"
        raise DataError(f"{text}; begin the file with it")
    ends = np.append(at[1:], len(tokens))
    kept = np.flatnonzero(ends - at > 1)
    notes = ["a token file does not say what bytes its tokens stand for, so scores are per token only"]
    if len(kept) < len(at):
        notes.insert(0, f"{len(at) - len(kept)} of {len(at)} documents have no token to predict and were left out")
    if not len(kept):
        raise DataError(f"{shown}: no document has a token after token {data.begin}, so there is nothing to predict")
    rows = [tokens[at[i] : ends[i]].astype(np.int32) for i in kept]
    return _joined([str(i) for i in kept.tolist()], rows, None, notes)


def fingerprint(config: DocumentStreamConfig) -> Mapping[str, str]:
    """Return the sha256 of the source's data; raises as `load` does."""
    import hashlib

    from .text_sources import fingerprint as of_text

    if not isinstance(config.data, TokenFile):
        return of_text(config.data)
    with open_file(config.data.path) as file:
        return {"data": hashlib.file_digest(file, "sha256").hexdigest()}
