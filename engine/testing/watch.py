"""Finding the line at fault: where a plugin changes what it must not change, draws where it must not, or never ends."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import torch

from ctr.engine.hooks import hookimpl
from ctr.engine.host import NAMED, implementations
from ctr.engine.text import printable

Around = Callable[[str, Callable[[], Any], Any], Any]


class TimeUp(BaseException):
    """A law took too long. No `Exception`, so that a plugin that catches everything does not catch it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` on whatever line runs after so many seconds; only in the main thread, and where alarms exist."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeUp(f"it did not end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ------------------------------------------------------------------------------------------------- what is watched
def global_streams() -> tuple[Any, ...]:
    """Return where the random streams stand that belong to the whole process: Python's, numpy's, torch's."""
    numbers = np.random.get_state(legacy=False)
    assert isinstance(numbers, dict)
    inside = numbers["state"]
    devices = tuple(map(_bytes, torch.cuda.get_rng_state_all())) if torch.cuda._initialized else ()
    return (
        random.getstate(),
        inside["key"].tobytes(),
        inside["pos"],
        _bytes(torch.default_generator.get_state()),
        devices,
    )


def fingerprint(*values: Any) -> str:
    """Return a hash of tensors, arrays and plain values, however nested; what else there is counts by its type."""
    found = hashlib.blake2b(digest_size=16)
    seen: set[int] = set()
    for value in values:
        _feed(found.update, value, seen)
    return found.hexdigest()


def _feed(add: Callable[[bytes], None], value: Any, seen: set[int]) -> None:
    if isinstance(value, torch.Tensor):
        add(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        add(_bytes(value))
        return
    if isinstance(value, np.ndarray):
        add(f"array {value.dtype} {value.shape}".encode())
        add(repr(value.tolist()).encode() if value.dtype == object else value.tobytes())
        return
    if isinstance(value, str | bytes | int | float | complex | bool | None):
        add(f"{type(value).__name__} {value!r}".encode())
        return
    if id(value) in seen:
        add(b"again")
        return
    seen.add(id(value))
    add(type(value).__name__.encode())
    if isinstance(value, Mapping):
        for key in value:
            _feed(add, key, seen)
            _feed(add, value[key], seen)
    elif isinstance(value, list | tuple):
        for one in value:
            _feed(add, one, seen)
    elif isinstance(value, set | frozenset):
        add(repr(sorted(map(repr, value))).encode())
    elif isinstance(value, torch.Generator):
        add(_bytes(value.get_state()))
    elif is_dataclass(value):
        for one in fields(value):
            if one.name not in ("sink", "owner"):
                _feed(add, getattr(value, one.name), seen)


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def shared_values(kind: type) -> dict[str, str]:
    """Return fingerprints of what all instances of a plugin share: globals of its module, attributes of its class."""
    module = sys.modules.get(kind.__module__)
    held: dict[str, Any] = {f"global {k}": v for k, v in vars(module).items()} if module else {}
    for base in kind.__mro__[:-1]:
        held |= {f"{base.__name__}.{k}": v for k, v in vars(base).items()}
    return {
        name: fingerprint(value)
        for name, value in held.items()
        if "__" not in name and not isinstance(value, ModuleType | type) and not inspect.isroutine(value)
    }


# ------------------------------------------------------------------------------------------------- spying on hooks
def spied(kind: Any, around: Around) -> Any:
    """Return a subclass of a plugin whose hooks go through `around(hook, call, event)`."""
    members: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__}
    for hook, declared in implementations(kind).items():
        members[hook] = _spy(hook, getattr(kind, hook), bool(declared), around)
    return type(kind.__name__, (kind,), members)


def _spy(hook: str, method: Any, wants: bool, around: Around) -> Any:
    def called(event: Any, own: Any) -> Any:
        return around(hook, (lambda: method(own, event)) if wants else (lambda: method(own)), event)

    shapes: Mapping[str, Callable[..., Any]] = {
        "extra_loss": lambda self, forward: called(forward, self),
        "schedule_lr": lambda self, step: called(step, self),
        "adapter_reset": lambda self, boundary: called(boundary, self),
        "on_epoch_end": lambda self, epoch: called(epoch, self),
    }
    assert set(shapes) == set(NAMED)
    return hookimpl(shapes[hook])


# ------------------------------------------------------------------------------------------------- the line at fault
class LineWatch:
    """Watches a value while a plugin's own lines run; `found` is the first line after which it was another one."""

    def __init__(self, owns: Callable[[str], bool], watch: Callable[[], Any]) -> None:
        self._owns, self._watch = owns, watch
        self._last: tuple[str, int, str] | None = None
        self._before: Any = None
        self._depth = 0
        self.found: str | None = None

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: Any) -> Any:
        if self.found or not self._owns(frame.f_code.co_filename):
            return None
        if self._depth == 0:  # what changed between two calls was none of the plugin's doing
            self._before = self._watch()
        self._depth += 1
        self._last = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        return self._line

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event in ("line", "return") and not self.found:
            now = self._watch()
            if now != self._before and self._last is not None:
                self.found = place(*self._last)
            self._before = now
            self._last = (frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)
        if event == "return":
            self._depth -= 1
        return self._line


def place(file: str, line: int, name: str = "") -> str:
    """Return `file:line`, and in which function, as one prints it."""
    return f"{printable(file, 300)}:{line}" + (f" in {name}" if name else "")


def place_of_error(error: BaseException | None, owns: Callable[[str], bool]) -> str | None:
    """Return the last line of a plugin's own code that an error, or what it came from, went through."""
    while error is not None:
        trace, found = error.__traceback__, None
        while trace is not None:
            code = trace.tb_frame.f_code
            if owns(code.co_filename):
                found = place(code.co_filename, trace.tb_lineno, code.co_name)
            trace = trace.tb_next
        if found:
            return found
        error = error.__cause__ or error.__context__
    return None


def place_of(thing: Any) -> str | None:
    """Return where a class or a function is written; None where it has no source."""
    try:
        thing = inspect.unwrap(thing) if callable(thing) else thing
        file = inspect.getsourcefile(thing)
        line = thing.__code__.co_firstlineno if hasattr(thing, "__code__") else inspect.getsourcelines(thing)[1]
    except (OSError, TypeError):
        return None
    return place(file, line, getattr(thing, "__qualname__", "")) if file else None


def place_of_attribute(kind: type, name: str) -> str | None:
    """Return the first line of a plugin's methods, the making and the putting back apart, that sets `self.name`."""
    for base in kind.__mro__[:-1]:
        module = sys.modules.get(base.__module__)
        file = getattr(module, "__file__", None)
        if not file:
            continue
        with contextlib.suppress(OSError, SyntaxError):
            for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and node.name == base.__name__:
                    for method in node.body:
                        if isinstance(method, ast.FunctionDef) and method.name not in ("__init__", "restore"):
                            for part in ast.walk(method):
                                if (
                                    isinstance(part, ast.Attribute)
                                    and part.attr == name
                                    and isinstance(part.ctx, ast.Store)
                                ):
                                    return place(file, part.lineno, f"{node.name}.{method.name}")
    return None
