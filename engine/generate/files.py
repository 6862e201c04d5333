"""Generated data as a folder: one file a part, and a manifest that says how to make them again, with their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from ctr.engine.errors import UsageError
from ctr.engine.storage import atomic_write, make_folder, storage_error, write_json
from ctr.engine.text import printable

from . import generate, settled
from .rows import Row, Value

MANIFEST = "manifest.json"
ENDINGS = {"jsonl": ".jsonl", "text": ".txt"}
"""The file ending of each format: rows `{"text", "group"}`, or the texts alone."""


@dataclass(frozen=True)
class Written:
    """One file of a folder: its path, how many rows and bytes it holds, and the mean bytes of a text."""

    path: Path
    rows: int
    bytes: int
    mean: float


def write(
    folder: Path,
    family: str,
    parts: Iterable[str],
    entities: int,
    seed: int,
    knobs: Mapping[str, Value],
    *,
    form: str = "jsonl",
    force: bool = False,
) -> list[Written]:
    """Write parts of a family and the manifest, which comes last: a folder that has one is whole.

    Raises `DataError` as `generate` does, `UsageError` where a file stands already and `force` is not given, and
    `StorageError` where the disk refuses.
    """
    values = settled(family, entities, seed, knobs)
    paths = {part: folder / f"{part}{ENDINGS[form]}" for part in parts}
    rows = {part: generate(family, part, entities, seed, **values) for part in paths}
    _prepare(folder, [*paths.values(), folder / MANIFEST], force)
    written: list[Written] = []
    files: dict[str, Any] = {}
    for part, path in paths.items():
        data = b"".join(_line(row, form) for row in rows[part])
        atomic_write(path, data)
        mean = sum(len(row.text) for row in rows[part]) / len(rows[part])
        written.append(Written(path, len(rows[part]), len(data), mean))
        digest = sha256(data).hexdigest()
        files[path.name] = {"part": part, "rows": len(rows[part]), "bytes": len(data), "sha256": digest}
    about = {"family": family, "entities": entities, "seed": seed, "knobs": dict(values), "format": form}
    write_json(folder / MANIFEST, {**about, "ctr": version("ctr-engine"), "files": files})
    return written


def _line(row: Row, form: str) -> bytes:
    line = orjson.dumps({"text": row.text, "group": row.group}) if form == "jsonl" else row.text.encode()
    return line + b"\n"


def _prepare(folder: Path, paths: list[Path], force: bool) -> None:
    """Make the folder and see that nothing is lost; an old manifest goes first, for it would describe new files."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{printable(folder)}: is not a folder; give one that is, or a name that is free")
    make_folder(folder)
    there = [path.name for path in paths if path.exists() or path.is_symlink()]
    if there and not force:
        text = f"{printable(folder)} holds {', '.join(there)} already"
        raise UsageError(f"{text}; give another folder, or --force to overwrite")
    try:
        (folder / MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(folder / MANIFEST, "cannot be removed", error) from error
