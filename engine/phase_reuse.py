"""How a run begins from the end of phases that another one trained, and leaves its own ends for others.

A run locks the keys of what it is about to train, all or none, and publishes under a lock that it holds; who finds one
of them locked by a living run waits without any, so nobody waits in a circle. Nothing that goes wrong with the cache
ends a run: it is told as a warning, and the phase is trained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .checkpoint import Loaded
from .errors import CtrError, DataError, FolderOwned
from .events_log import EventLog, read_events
from .lock import Lock, Owner
from .phase_cache import Entry, cache_of, lay, locks_of, publish, read_entry, shared
from .phase_keys import silent, whole
from .status import Status
from .storage import read_json, write_json
from .text import printable

WHO = "who.json"
_UNNAMED = 5.0  # seconds in which the owner of a lock should have said who it is


class Reuse:
    """The cache as one run sees it: `keys[i]` stands for its first i + 1 phases."""

    def __init__(self, folder: Path, run: Any, identity: str, keys: Sequence[str], events: EventLog) -> None:
        self.keys = list(keys)
        self._folder, self._run, self._identity, self._events = folder, run, identity, events
        self._root = folder.parent.parent
        self._name = f"{folder.parent.name}/{folder.name}"
        self._select = {"on": run.select.on, "better": run.select.better}
        self._locks: dict[int, Lock] = {}
        self._known: dict[int, Entry | None] = {}  # what was read, with None for what cannot be used
        self._broken: set[int] = set()
        self._step = 0

    def _warn(self, text: str) -> None:
        with suppress(CtrError):  # the disk that refuses this line is told of by whoever needs it
            self._events.write("warning", self._step, owner="engine", text=printable(text, 500))

    # ------------------------------------------------------------------------------------------- beginning
    def take(self, wait: Callable[[str], None]) -> Entry | None:
        """Lay the longest cached beginning of the run into its folder; None where there is none.

        `wait` is called with what is waited for, again and again; it may raise to end the waiting.
        """
        unnamed = time.monotonic()
        while True:
            entry = self._longest()
            have = len(entry.phases) if entry else 0
            busy = self._lock(have)
            if busy is None and self._longest() is not entry:
                continue  # published between our look and our lock
            owner = None if busy is None else self._owner(busy)
            if owner:
                unnamed = time.monotonic()
            if busy is None or (owner is None and time.monotonic() - unnamed > _UNNAMED) or owner == "":
                if entry is None or self._laid(entry):
                    return entry
                continue
            wait(f"waiting for phase {self._run.phases[busy].name} trained by run {owner or 'that just began'}")

    def go_on(self, phase: int) -> None:
        """Claim what is still to be trained by a run that is resumed in phase `phase`; what is taken stays so."""
        self._lock(phase, resumed=True)

    def _longest(self) -> Entry | None:
        for count in range(len(self.keys), 0, -1):
            path = cache_of(self._root) / self.keys[count - 1]
            if count not in self._known and path.is_dir():
                self._known[count] = self._read(count, path)
            if self._known.get(count) is not None:
                return self._known[count]
        return None

    def _read(self, count: int, path: Path) -> Entry | None:
        try:
            entry = read_entry(path)
        except ValueError as error:
            self._broken.add(count)
            self._warn(f"the cached end of phase {self._run.phases[count - 1].name} is not used: {path}: {error}")
            return None
        final = count == len(self.keys)
        return None if final and (entry.about["select"] != self._select or entry.best is None) else entry

    def _laid(self, entry: Entry) -> bool:
        try:
            lay(entry, self._folder, self._select)
            self._records = entry.records(self._select)
        except (OSError, CtrError) as error:
            self._known[len(entry.phases)] = None
            self._warn(f"the cached end of phase {entry.phases[-1]} is not used: {error}")
            return False
        return True

    # ------------------------------------------------------------------------------------------- locks
    def _lock(self, have: int, resumed: bool = False) -> int | None:
        """Lock all that is to be trained, or nothing; return the last phase that a living run trains for us."""
        for index in range(have, len(self.keys)):
            if index in self._locks:
                continue
            folder = locks_of(self._root) / self.keys[index]
            try:
                self._locks[index] = Lock.acquire(folder)
                about = {"run": self._name, "phase": self._run.phases[index].name}
                write_json(folder / WHO, about, sync=False)
            except FolderOwned:
                if not resumed:
                    self.close()
                    return max(i for i in range(index, len(self.keys)) if i == index or self._held(i))
            except CtrError as error:
                self._warn(f"the cache of phases cannot be written, so they are trained without it: {error}")
                return None
        for index in [index for index in self._locks if index < have]:
            self._release(index)
        return None

    def _held(self, index: int) -> bool:
        try:
            owner = Owner.read(locks_of(self._root) / self.keys[index] / "lock")
        except OSError:
            return False
        me = Owner.me()
        return owner is not None and (not owner.here(me) or owner.alive(me))

    def _owner(self, index: int) -> str | None:
        """Name the run that trains a phase; empty where that run no longer lives, None where nobody is named yet."""
        try:
            told = read_json(locks_of(self._root) / self.keys[index] / WHO)
        except DataError:
            return None
        name = told.get("run") if isinstance(told, dict) else None
        if not isinstance(name, str) or len(parts := name.split("/")) != 2 or any(part[:1] == "." for part in parts):
            return None
        status = Status.from_file(self._root / name / "status.json")
        lives = status is not None and status.status == "live" and not status.stale
        return printable(name, 150) if lives else ""

    def _release(self, index: int) -> None:
        lock = self._locks.pop(index)
        with suppress(OSError):
            (lock.path.parent / WHO).unlink(missing_ok=True)
        lock.release()

    def close(self) -> None:
        """Give up every lock."""
        for index in list(self._locks):
            self._release(index)

    # ------------------------------------------------------------------------------------------- from an entry
    def begin(self, kernel: Any, entry: Entry) -> tuple[Loaded, frozenset[str]]:
        """Write what an entry's run logged into the log of this one, and return the checkpoint to go on from.

        The second value names what of the checkpoint is another run's business: plugins and adapter that had no part.
        """
        count, record = len(entry.phases), dict(entry.loaded.record)
        about = {name: entry.about[name] for name in ("run", "phases", "key", "published")}
        self._events.write("cached", 0, **about)
        for one in self._records:
            more = {name: value for name, value in one.items() if name not in ("seq", "time", "event", "step")}
            self._events.write(one["event"], one["step"], **more)
        final = count == len(self.keys)
        record["position"] = {**record["position"], "stage": "run" if final else "phase"}
        record["best"] = entry.best if final else None
        if kernel.matrix is not None:
            record["matrix"] = {**record["matrix"], "phases": dict(kernel.matrix.phases)}
        own = {"plugins": silent(self._run, count), "adapter_start": whole(self._run, count)}
        loaded = Loaded(entry.path, entry.loaded.step, entry.loaded.tensors, record)
        return loaded, frozenset(name for name, apart in own.items() if apart)

    # ------------------------------------------------------------------------------------------- publishing
    def publish(self, kernel: Any, checkpoint: Path, record: Mapping[str, Any], best: float | None) -> None:
        """Leave the end of the phase before `kernel.position` to others; `best` is what was selected in it."""
        self._step, index = kernel.position.step, kernel.position.phase - 1
        if index not in self._locks:
            return
        target = cache_of(self._root) / self.keys[index]
        try:
            if not target.is_dir() or index + 1 in self._broken:
                self._publish(target, index, checkpoint, record, best)
        except (OSError, CtrError) as error:
            reason = error.strerror or error if isinstance(error, OSError) else error
            self._warn(f"the end of phase {self._run.phases[index].name} is not cached: {target}: {reason}")
        finally:
            self._release(index)

    def _publish(
        self, target: Path, index: int, checkpoint: Path, record: Mapping[str, Any], best: float | None
    ) -> None:
        records = [one for one in read_events(self._folder) if one["seq"] < record["events"]]
        if any("differs" in one for one in records if one["event"] == "warning"):
            return  # trained with other arithmetic than the key says
        about = {
            "key": self.keys[index],
            "run": self._name,
            "identity": self._identity,
            "phases": [phase.name for phase in self._run.phases[: index + 1]],
            "published": time.time(),
            "step": self._step,
            "checkpoint": checkpoint.name,
            "select": self._select,
            "best": best,
        }
        staging = self._locks[index].path.parent
        publish(target, staging, self._folder, checkpoint, record["series"], shared(records), about)
