"""What a command says: the answer on stdout, everything else on stderr, whatever plugins print."""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

from .text import printable


@contextlib.contextmanager
def answer_only(wanted: bool = True) -> Iterator[None]:
    """Send to stderr what is printed inside, by Python, by C or by a child process, where `wanted`."""
    if not wanted or sys.stdout is None or sys.stderr is None:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()  # what was written past the redirection lands where the file descriptor leads now
        os.dup2(kept, 1)
        os.close(kept)


def print_json(value: Any) -> None:
    """Print the answer of a command as JSON."""
    say(json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True, default=str))


def show(renderable: Any) -> None:
    """Print tables for a terminal or a file."""
    from rich.console import Console

    console = Console()
    with console.capture() as shown:  # rich answers a closed pipe with an exit code of its own
        console.print(renderable)
    say(shown.get().rstrip("\n"))


def say(text: str) -> None:
    """Print text on stdout; a reader that went away, as in `ctr … | head`, changes nothing else."""
    with contextlib.suppress(BrokenPipeError):
        print(text)
    settle_stdout()


def complain(text: str) -> None:
    """Print text that may come from anywhere on stderr."""
    for line in text.splitlines() if sys.stderr is not None else ():  # print takes no file for stdout
        print(printable(line), file=sys.stderr)


def reader_is_gone() -> bool:
    """Say whether stdout is a pipe that nobody reads any more, as in `ctr … | head`."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def settle_stdout() -> None:
    """Write out what is buffered, or drop it where nobody reads, so that the process ends without an error."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
