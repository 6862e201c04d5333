"""Checkpoints that are complete or invisible: staged beside, hashed, synced, renamed; the newest that verifies wins.

`checkpoints/<n>-<step>/` holds `tensors.safetensors`, `record.json` and, written last, `manifest.json` with the
sha256 and size of both. Nothing in them can run code. Loads torch only inside functions.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from .errors import CheckpointError
from .state_tree import join_state, split_state
from .storage import TEMPORARY, make_folder, read_bytes, remove_quietly, storage_error, sync_folder, write_new
from .tensor_file import FILE, digest, load_extra, load_tensors, move, pack, save_tensors, unpack
from .text import printable

if TYPE_CHECKING:
    from torch import Tensor, device

__all__ = [
    "CheckpointStore",
    "Loaded",
    "digest",
    "join_state",
    "load_extra",
    "load_tensors",
    "save_tensors",
    "split_state",
]

VERSION: Final = 1
_NAME = re.compile(r"(0|[1-9]\d{0,17})-(0|[1-9]\d{0,17})\Z")
_MOST = 1 << 40


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that verified. `skipped` names the newer ones that did not, each with the reason."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class CheckpointStore:
    """The checkpoints of one run; the newest `keep` stay on disk."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        if keep < 1:
            raise CheckpointError(f"{keep} checkpoints to keep; at least 1 is needed to resume from")
        self.folder = folder / "checkpoints"
        self._keep = keep
        self._broken: set[str] = set()

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Path:
        """Commit a checkpoint and drop the oldest; raises `CheckpointError` with the previous one intact."""
        tree, inside = split_state(dict(record))
        if inside:
            raise CheckpointError(f"tensor {min(inside)}: a record holds no tensors; take them out by split_state")
        told = orjson.dumps({"step": step, "record": tree}, option=orjson.OPT_APPEND_NEWLINE)
        files = {FILE: pack(tensors, {}), "record.json": told}
        files["manifest.json"] = _manifest(files)
        new = not self.folder.exists()
        make_folder(self.folder)
        number = max(self._numbers(), default=0) + 1
        path = self.folder / f"{number}-{step}"
        stage = self.folder / f"{TEMPORARY}{number}"
        try:
            self._stage(stage, files)
            os.rename(stage, path)
            sync_folder(self.folder)
            if new:
                sync_folder(self.folder.parent)
        except OSError as error:
            wanted = sum(map(len, files.values()))
            raise storage_error(path, "the checkpoint cannot be written", error, wanted, CheckpointError) from error
        finally:
            remove_quietly(stage)
        self._prune()
        return path

    def _stage(self, stage: Path, files: Mapping[str, bytes]) -> None:
        remove_quietly(stage)
        os.mkdir(stage)
        for name, data in files.items():
            write_new(stage / name, data)
        sync_folder(stage)

    def _prune(self) -> None:
        """Remove all but the newest `keep`; one known to be broken does not count as kept."""
        sound = [path for path in self._committed() if path.name not in self._broken]
        keep = {path.name for path in sound[: self._keep]}
        for path in self._committed():
            if path.name not in keep:
                gone = path.with_name(f"{TEMPORARY}old-{path.name}")
                try:
                    os.rename(path, gone)  # it vanishes as a whole, however far the removal gets
                except OSError as error:
                    raise storage_error(path, "the old checkpoint cannot be removed", error) from error
                remove_quietly(gone)

    def newest(self, device: str | device = "cpu") -> Loaded | None:
        """Return the newest checkpoint that verifies, on `device`; None where none was ever committed.

        Raises `CheckpointError` naming each with its reason where checkpoints exist and none verifies.
        """
        skipped: list[tuple[str, str]] = []
        for path in self._committed():
            try:
                step, tensors, record = _verified(path, device)
            except ValueError as error:
                skipped.append((path.name, str(error)))
                self._broken.add(path.name)
                continue
            return Loaded(path, step, tensors, record, skipped)
        if skipped:
            reasons = "\n".join(f"  {name}: {reason}" for name, reason in skipped)
            way_out = "start the run again with --replace"
            raise CheckpointError(f"{printable(self.folder)}: no checkpoint can be read; {way_out}\n{reasons}")
        return None

    def _committed(self) -> list[Path]:
        """Return the committed checkpoints, newest first."""
        try:
            names = [name for name in os.listdir(self.folder) if _NAME.match(name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(self.folder, "the checkpoints cannot be listed", error, kind=CheckpointError) from error
        paths = [self.folder / name for name in names]
        return sorted((path for path in paths if path.is_dir()), key=_number, reverse=True)

    def _numbers(self) -> list[int]:
        return [_number(path) for path in self._committed()]


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _manifest(files: Mapping[str, bytes]) -> bytes:
    told = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()}
    value = {"version": VERSION, "files": told}
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _verified(path: Path, device: str | device) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Return step, tensors and record of a checkpoint; raises `ValueError` with the reason it cannot be trusted."""
    manifest = _json("manifest.json", _bytes(path, "manifest.json"))
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        found = manifest.get("version") if isinstance(manifest, dict) else manifest
        raise ValueError(f"manifest.json has version {printable(found, 40)}; this ctr reads {VERSION}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError("manifest.json lists no files")
    held = _whole(path, FILE, files.get(FILE)), _whole(path, "record.json", files.get("record.json"))
    told = _json("record.json", held[1])  # hashed, unlike the manifest, so the step is what was saved
    try:
        step, record = told["step"], join_state(told["record"], {})
        tensors = move(unpack(held[0])[0], device)
    except (CheckpointError, KeyError, TypeError) as error:
        raise ValueError(f"record.json cannot be understood: {printable(error, 200)}") from error
    return step, tensors, record


def _whole(path: Path, name: str, told: Any) -> bytes:
    """Return a file's bytes once their number and sha256 are those of the manifest."""
    if not isinstance(told, dict):
        raise ValueError(f"manifest.json does not list {name}")
    data = _bytes(path, name)
    if len(data) != told.get("bytes"):
        raise ValueError(f"{name} holds {len(data):,} bytes, not the {printable(told.get('bytes'), 40)} written")
    if hashlib.sha256(data).hexdigest() != told.get("sha256"):
        raise ValueError(f"{name} does not match its sha256")
    return data


def _bytes(path: Path, name: str) -> bytes:
    try:
        return read_bytes(path / name, _MOST)
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from error


def _json(name: str, data: bytes) -> Any:
    try:
        return orjson.loads(data)
    except ValueError as error:
        raise ValueError(f"{name} is not JSON") from error
