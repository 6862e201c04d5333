"""Text by source: which reader serves which settings, and the fingerprint of what it reads; without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import orjson

from ctr.engine.errors import DataError
from ctr.engine.text import printable

from .text_config import Data, GeneratedText, HubData, JsonlFile, MarkovText, TextFile
from .text_hub import read_hub
from .text_reading import TextRow, TextSource, open_file, read_jsonl, read_text
from .text_splits import divide

__all__ = ["TextRow", "TextSource", "divide", "fingerprint", "read"]


def read(data: Data) -> TextSource:
    """Read and check a source; raises `DataError` with every problem's place, value and way out (the first 20)."""
    if isinstance(data, TextFile):
        return read_text(data)
    if isinstance(data, JsonlFile):
        return read_jsonl(data)
    if isinstance(data, HubData):
        return read_hub(data)
    if isinstance(data, MarkovText):
        return _read_markov(data)
    assert isinstance(data, GeneratedText)
    return _read_generated(data)


def fingerprint(data: Data) -> dict[str, str]:
    """Return the sha256 of what the rows come from, a file, or else of the rows; raises as `read` does."""
    if isinstance(data, TextFile | JsonlFile):
        with open_file(data.path) as file:
            try:
                return {"data": hashlib.file_digest(file, "sha256").hexdigest()}
            except OSError as error:
                raise DataError(f"{printable(data.path)}: cannot be read: {error.strerror or error}") from error
    return {"data": _hash_rows(read(data).rows)}


def _read_generated(data: GeneratedText) -> TextSource:
    from ctr.engine.generate import generate

    made = generate(data.family, data.part, data.entities, data.seed)[: data.max_rows]
    rows = tuple(TextRow(str(index), row.text, group=row.group) for index, row in enumerate(made))
    return TextSource(f"generated {data.family}.{data.part}", rows)


def _read_markov(data: MarkovText) -> TextSource:
    from ctr.engine.generate.markov import documents

    texts = documents(data.documents, data.spread, data.median, data.seed, data.family_seed)[: data.max_rows]
    return TextSource("markov documents", tuple(TextRow(str(index), text) for index, text in enumerate(texts)))


def _hash_rows(rows: Iterable[TextRow]) -> str:
    sha = hashlib.sha256()
    for row in rows:
        text = orjson.dumps(row.messages).decode() if row.text is None else row.text
        sha.update(f"{row.group}\0{text}\n".encode())
    return sha.hexdigest()
