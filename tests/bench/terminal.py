"""A program on a pseudo-terminal of its own: keys in, bytes out, CPU time from outside."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType


class Terminal:
    """Runs Python code or a module at 120x40. `begin` and `spent` are the clock and CPU time of its first line."""

    def __init__(self, arguments: Sequence[str], code: str, env: Mapping[str, str]) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        came, go = os.pipe()
        first = f"import os, time; os.write({go}, b'%f %f' % (time.time(), time.process_time())); os.close({go})\n"
        command = [sys.executable, "-c", first + code, *arguments]
        around = {**env, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
        around.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=around, pass_fds=[go], cwd=Path(__file__).parents[2]
        )
        os.close(slave)
        os.close(go)
        self.begin, self.spent = map(float, os.read(came, 100).split())
        os.close(came)
        self._poll = select.poll()
        self._poll.register(self.master, select.POLLIN)

    def press(self, key: bytes) -> float:
        """Send a key; return when."""
        os.write(self.master, key)
        return time.time()

    def until(self, text: str, seconds: float = 30.0) -> float:
        """Read until `text` was sent; return when."""
        out, end = b"", time.time() + seconds
        while text.encode() not in out:
            if time.time() > end or self.process.poll() is not None:
                raise TimeoutError(f"the viewer never sent {text!r}; its last bytes: {out[-300:]!r}")
            out += self.read(0.2)
        return time.time()

    def read(self, seconds: float) -> bytes:
        try:
            return os.read(self.master, 1 << 16) if self._poll.poll(1000 * seconds) else b""
        except OSError:  # the other end is gone
            return b""

    def cpu(self) -> float | None:
        """Return the CPU seconds used since the first line; None where a process cannot be asked from outside."""
        if not sys.platform.startswith("linux"):
            return None
        return time.clock_gettime((~self.process.pid << 3) | 2) - self.spent  # clock_getcpuclockid(3)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
