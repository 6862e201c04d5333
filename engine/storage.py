"""Files that are whole or absent: atomic writes, folders that survive a power cut, JSON that keeps every float.

Every call that changes the disk goes through `os`, so that a test can make the n-th of them fail.
"""

from __future__ import annotations

import errno
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

import orjson

from .errors import DataError, StorageError
from .text import printable

TEMPORARY = ".tmp-"
"""What the name of everything unfinished begins with; `sweep` removes it at the next start."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_DEEPEST = 64
_LARGEST = 64 << 20
_NOT_FINITE = ("nan", "inf", "-inf")
E = TypeVar("E", bound=StorageError)


def storage_error(path: Path, what: str, error: OSError, wanted: int | None = None, kind: type[E] | None = None) -> E:
    """Build the error that names the path, the system's reason, and how many bytes were wanted and are free."""
    reason = error.strerror or type(error).__name__
    if wanted is not None:
        reason += f" ({wanted:,} bytes wanted, {_free(path)})"
    return (kind or StorageError)(f"{printable(path)}: {what}: {reason}")  # type: ignore[return-value]


def _free(path: Path) -> str:
    for folder in (path, *path.parents):
        try:
            room = os.statvfs(folder)
        except OSError:
            continue
        return f"{room.f_bavail * room.f_frsize:,} free"
    return "free space unknown"


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of `data`; the system may take it in several bites."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def write_new(path: Path, data: bytes, sync: bool = True) -> None:
    """Write a file that must not exist yet; raises `OSError`."""
    descriptor = os.open(path, _NEW, 0o666)
    try:
        write_all(descriptor, data)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, data: bytes, sync: bool = True) -> None:
    """Replace the file at `path` as a whole; a reader, or a crash, sees the old content or the new one.

    `sync=False` leaves out both fsyncs, for files that only matter while the machine is up.
    """
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
    try:
        write_new(temporary, data, sync)
        os.replace(temporary, path)
        if sync:
            sync_folder(path.parent)
    except OSError as error:
        remove_quietly(temporary)
        raise storage_error(path, "cannot be written", error, len(data)) from error
    except BaseException:
        remove_quietly(temporary)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut; raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network filesystems cannot sync a folder, and say so like this
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents where they are missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, "cannot be created", error) from error


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Lend an empty folder that takes the place of `folder` as a whole at the end; an error leaves what stood there."""
    make_folder(folder.parent)
    stage, gone = (folder.with_name(f"{TEMPORARY}{mark}{folder.name}") for mark in ("new-", "old-"))
    remove_quietly(stage)
    try:
        stage.mkdir()
        yield stage
        sync_folder(stage)
        remove_quietly(gone)
        if folder.exists():
            folder.rename(gone)
        stage.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise storage_error(folder, "cannot be written", error) from error
    finally:
        remove_quietly(stage)
        remove_quietly(gone)


def remove_quietly(path: Path) -> None:
    """Remove a leftover, file or folder, as far as the disk allows; what stays, `sweep` meets again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def sweep(*folders: Path) -> None:
    """Remove what a killed writer left unfinished. Only the owner of the run folder may call this."""
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.startswith(TEMPORARY):
                remove_quietly(folder / name)


def read_bytes(path: Path, most: int = _LARGEST) -> bytes:
    """Read a regular file of at most `most` bytes; raises `OSError`, also for a pipe, a device and a giant."""
    # O_NONBLOCK: opening a pipe that somebody put there must not wait for its other end
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        if about.st_size > most:
            raise OSError(errno.EFBIG, f"holds {about.st_size:,} bytes, at most {most:,} are read", str(path))
        blocks = []
        while block := os.read(descriptor, max(about.st_size + 1, 1 << 16)):  # /proc files say 0 and hold something
            blocks.append(block)
    finally:
        os.close(descriptor)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def jsonable(value: Any, place: str = "value", depth: int = 0) -> Any:
    """Return `value` as JSON can hold it: a float that is not finite becomes "nan", "inf" or "-inf".

    Raises `DataError` naming the place of anything that JSON cannot hold; nothing is turned into text by guessing.
    """
    if depth > _DEEPEST:
        raise DataError(f"{place[:200]}: nested deeper than {_DEEPEST} levels, which no record needs")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise DataError(f"{place}: an integer beyond 64 bits cannot be written as JSON")
        return int(value)
    if isinstance(value, Mapping):
        return {_key(key, place): jsonable(item, f"{place}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item, f"{place}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return _text(str(value))
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        return jsonable(value.item(), place, depth + 1)
    raise DataError(f"{place}: a {type(value).__name__} cannot be written as JSON; give a number, a text or a list")


def _key(key: Any, place: str) -> str:
    if not isinstance(key, str):
        raise DataError(f"{place}: the key {key!r} is not a text; write str(key)")
    return _text(key)


def _text(text: str) -> str:
    # a lone surrogate (an undecodable file name) has no UTF-8 form; show it instead of failing
    return str(text) if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def number(value: Any) -> float | None:
    """Read back what `jsonable` wrote: a number, or "nan", "inf", "-inf"; anything else is None."""
    if isinstance(value, float | int) and not isinstance(value, bool):
        return float(value)
    return float(value) if isinstance(value, str) and value in _NOT_FINITE else None


def write_json(path: Path, value: Any, sync: bool = True) -> None:
    """Write JSON that is the same bytes for the same value: sorted keys, two spaces, a last newline."""
    options = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    atomic_write(path, orjson.dumps(jsonable(value, path.name), option=options), sync)


def read_json(path: Path) -> Any | None:
    """Return the value in a JSON file, or None where there is no file; raises `DataError` for a malformed one."""
    try:
        return orjson.loads(read_bytes(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{printable(path)}: is not JSON: {printable(error, 200)}") from error
