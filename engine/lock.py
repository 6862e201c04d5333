"""One writer per run folder: a lock that names its owner, outlives nobody, and is never taken from the living."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import TracebackType

import orjson

from .errors import FolderOwned
from .status import Status
from .storage import TEMPORARY, make_folder, read_bytes, storage_error, sweep, write_new
from .text import printable

_STAGING = ("checkpoints", "nan", "snapshots", "adapters", "data")
_BY_NAME = ("snapshots", "adapters", "data")  # each holds a folder per slug or phase, and files are staged in those
_PATIENCE = 5.0


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder. `process` is when the process began, so that a recycled pid is not taken for it."""

    pid: int
    host: str
    boot: str
    space: str
    process: str
    started: float

    def __str__(self) -> str:
        return f"pid {self.pid} on host {printable(self.host, 100)}"

    @classmethod
    def me(cls) -> Owner:
        pid = os.getpid()
        return cls(pid, socket.gethostname(), _boot(), _space(), _process(pid)[0], time.time())

    @classmethod
    def read(cls, path: Path) -> Owner | None:
        """Return the owner that a lock file names, or None when it cannot be understood; raises `OSError`."""
        try:
            raw = orjson.loads(read_bytes(path, 1 << 16))
            owner = cls(**{name: raw[name] for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError):
            return None
        texts = (owner.host, owner.boot, owner.space, owner.process)
        right = type(owner.pid) is int and 0 < owner.pid < 2**31 and all(isinstance(text, str) for text in texts)
        return owner if right and isinstance(owner.started, float | int) else None

    def here(self, other: Owner) -> bool:
        """Say whether `other` can judge this owner's pid: same machine, and pids count in the same space."""
        return self.host == other.host and (self.space == other.space or self.boot != other.boot)

    def alive(self, me: Owner) -> bool:
        """Say whether the process still runs; only asked where `here` holds."""
        if self.boot != me.boot:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        began, state = _process(self.pid)
        return not (state in ("Z", "X") or (began and self.process and began != self.process))


@cache
def _boot() -> str:
    return _line(Path("/proc/sys/kernel/random/boot_id"))


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process(pid: int) -> tuple[str, str]:
    """Return when a process began, in clock ticks since boot, and its state; empty texts where /proc is missing."""
    fields = _line(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return (fields[19], fields[0]) if len(fields) > 19 else ("", "")


def _line(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8", "replace").strip()
    except OSError:
        return ""


class Lock:
    """The right to write in a run folder, held until `release` or the end of a `with` block.

    `taken_over` is the owner, dead or displaced by hand, from whom it was taken.
    """

    def __init__(self, path: Path, owner: Owner, taken_over: Owner | None) -> None:
        self.path, self.owner, self.taken_over = path, owner, taken_over

    @classmethod
    def acquire(cls, folder: Path, take_over: bool = False) -> Lock:
        """Take the folder, creating it where needed; raises `FolderOwned` naming who has it and what to do."""
        make_folder(folder)
        me, path, before = Owner.me(), folder / "lock", None
        try:
            with _guard(folder):
                while not _create(path, me):
                    before = _displace(folder, path, me, take_over)
        except OSError as error:
            raise storage_error(path, "the run folder cannot be locked", error) from error
        by_name = [inner for name in _BY_NAME for inner in (folder / name).glob("*/")]
        sweep(folder, *(folder / name for name in _STAGING), *by_name)
        return cls(path, me, before)

    def held(self) -> bool:
        """Say whether the lock is still ours: nobody took it over by hand, and this is no forked child."""
        try:
            return Owner.read(self.path) == self.owner and os.getpid() == self.owner.pid
        except OSError:
            return False

    def release(self) -> None:
        """Give the folder up; a lock that somebody took over by hand is left alone."""
        with suppress(OSError), _guard(self.path.parent):
            if self.held():
                os.unlink(self.path)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


@contextmanager
def _guard(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time judge and replace a lock; two heirs must not both inherit."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        limit = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    text = f"{printable(folder)}: another process has been locking this folder for {_PATIENCE:.0f} s"
                    raise FolderOwned(text + "; try again") from None
                time.sleep(0.01)
            except OSError as error:  # a filesystem that cannot lock folders: creation alone stays atomic
                if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise
                break
        yield
    finally:
        os.close(descriptor)


def _create(path: Path, me: Owner) -> bool:
    """Put a whole lock file in place, or return False where one stands; never is an empty one visible."""
    data = orjson.dumps(asdict(me), option=orjson.OPT_APPEND_NEWLINE)
    temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}")
    try:
        write_new(temporary, data)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP):  # a filesystem without hard links
            raise
        return _create_plain(path, data)
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return True


def _create_plain(path: Path, data: bytes) -> bool:
    try:
        write_new(path, data)
    except FileExistsError:
        return False
    return True


def _displace(folder: Path, path: Path, me: Owner, take_over: bool) -> Owner | None:
    """Remove a lock that may be replaced and return whose it was; raise `FolderOwned` where it may not."""
    try:
        before = Owner.read(path)
        _judge(folder, before, me, take_over)
        os.unlink(path)
    except FileNotFoundError:  # released in this very moment
        return None
    return before


def _judge(folder: Path, before: Owner | None, me: Owner, take_over: bool) -> None:
    """Return where the lock may be replaced; raise `FolderOwned` where it may not."""
    status = Status.from_file(folder / "status.json")
    if before is not None and before.here(me):
        if before.alive(me):
            text = f"{printable(folder)}: owned by {before}, which is running; wait for it, or end it first"
            raise FolderOwned(text)
        # another boot id is a machine that was restarted, or another one of the same name: then the heart beats
        if take_over or before.boot == me.boot or status is None or not _beating(status):
            return
    if not take_over:
        who = "an unreadable lock file" if before is None else str(before)
        way_out = "if that process is gone, take the folder over with --take-over"
        raise FolderOwned(f"{printable(folder)}: owned by {who}, {_heartbeat(status)}; {way_out}")


def _beating(status: Status) -> bool:
    return status.status in ("live", "paused") and not status.stale


def _heartbeat(status: Status | None) -> str:
    return "which left no heartbeat" if status is None else f"whose last heartbeat is {status.age:.0f} s old"
