"""No name, reason, error or file drives the terminal: the bytes of a pseudo-terminal are captured and compared.

A session over harmless names tells which control sequences the viewer itself sends. The same keys over hostile names
may send no other kind, and must show the hostile text in its harmless spelling, which proves that it was on the screen.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson

from .fake_runs import FakeRun, index

SEQUENCE = re.compile(
    rb"\x1b\[(?P<csi>[0-?]*[ -/]*[@-~])|\x1b(?P<string>[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?)"
    rb"|\x1b(?P<short>.)|(?P<c0>[\x00-\x08\x0b-\x1f\x7f])"
)
HIDDEN = re.compile("[\u0080-\u009f\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
HOSTILE = (
    "\x1b]0;{}\x07 \x1b]52;c;UFdORUQ=\x07 \x1b]8;;http://x\x1b\\ \x1b[2J\x1b[3J \x1bP1$r\x1b\\ \x9b2J\x9d0;x\x9c "
    "\u202eevil\u202c \u200b\u2066 [/] [@click=app.quit]x[/] [red]{}[/red] \r\n\x08\x7f \x00"
)
# each key, and what its answer puts on the screen: a tag, or words of the viewer's own; the next key waits for it
KEYS = [
    (b"jjjj", ""),
    (b"\r", "OWNER"),
    (b"2", "LABEL"),
    (b"3", "WARNING"),
    (b"4", "FIELD"),
    (b"5", "ROW"),
    (b"6", "SPEC"),
    (b"7", "VALUE"),
    (b"8", ""),
    (b"1", "MARK"),
    (b"\x1b[D\x1b[D", "LABEL"),
    (b"ay", "LABEL"),
    (b"e", "SERIES"),
    (b"\x1b", "LABEL"),
    (b"X", "Yes (y)"),
    (b"n", "LABEL"),
    (b"v", "Metric"),
    (b"o", "QUESTION"),
    (b"e", "SERIES"),
    (b"\x1b", "Metric"),
    (b"c", "Specs"),
    (b"d", ""),
    (b"e", "SERIES"),
    (b"\x1b", "Specs"),
    (b"?", "Show this help"),
    (b"\x1b", "Specs"),
    (b"\x1b", "Metric"),
    (b"\x1b", "OWNER"),
    (b"\x1b", "Filter"),
    (b"/s1\r", ""),
    (b"q", ""),
]
LONGEST = 60.0  # seconds until a text must be there; a machine at work may need them


def nasty(tag: str) -> str:
    return HOSTILE.replace("{}", tag)


def capture(root: Path, hostile: bool) -> bytes:
    """Run the viewer on a pseudo-terminal, press every key once the one before is answered; return all bytes sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
    code = f"from pathlib import Path; from ctr.tui.app import Viewer; Viewer(Path({str(root)!r})).run()"
    env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):  # pytest-xdist's workers set the last two, which outrank the terminal
        env.pop(name, None)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    try:
        out = _answer(master, spelling("DOING", hostile))  # the list is read, and the run that is live is looked at
        for key, tag in KEYS:
            os.write(master, key)
            out += _answer(master, spelling(tag, hostile))
        return out + _read(master, 5.0, process=process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def spelling(tag: str, hostile: bool) -> str:
    """Return how a text must look on the screen; only tags are spelled in capitals."""
    if not tag.isupper():
        return tag
    return f"\\x1b]0;{tag}" if hostile else f"harmless {tag}"


def visible(out: bytes) -> str:
    return SEQUENCE.sub(b"", out).decode("utf-8", errors="replace")


def _answer(master: int, text: str) -> bytes:
    """Read until `text` was written, then until nothing comes for a moment.

    Raises:
        AssertionError: it was not written in time; the rest of the session would wait for texts as vain.
    """
    out, end = b"", time.monotonic() + LONGEST
    while text not in visible(out):
        assert time.monotonic() < end, f"never on the screen: {text!r}; last sent: {visible(out)[-2000:]!r}"
        out += _read(master, 0.1)
    return out + _read(master, 2.0)


def _read(
    master: int, seconds: float, until: bytes = b"", process: subprocess.Popen[bytes] | None = None, still: int = 3
) -> bytes:
    """Read for `seconds`, or until the bytes come, or the process ends, or nothing has come for a moment."""
    out, end, quiet = b"", time.monotonic() + seconds, 0
    poll = select.poll()  # select takes no descriptor above 1023, and a large session has some
    poll.register(master, select.POLLIN)
    while time.monotonic() < end:
        ready = poll.poll(100)
        quiet = 0 if ready else quiet + 1
        if ready:
            try:
                out += os.read(master, 1 << 16)
            except OSError:
                return out
        elif process is not None and process.poll() is not None:
            return out
        elif not until and process is None and quiet >= still:
            return out
        if until and until in out:
            until = b""
            end = min(end, time.monotonic() + 0.7)
    return out


def kinds(out: bytes) -> set[str]:
    """Return which control sequences occur, numbers left out."""
    found = set()
    for match in SEQUENCE.finditer(out):
        for name, value in match.groupdict().items():
            if value is not None:
                text = value.decode("latin-1")
                found.add(f"{name} " + (re.sub(r"[\d;]+", "#", text) if name != "c0" else repr(text)))
    return found


def folder(root: Path, hostile: bool) -> Path:
    """Make a study whose every text is hostile, or the same one with harmless texts."""
    say = nasty if hostile else (lambda tag: f"harmless {tag}")
    study = root / ("runs-" + say("STUDY").replace("/", "|").replace("\0", "")[:60])
    arm = "arm-" + say("ARM").replace("/", "|").replace("\0", "")[:80]
    study.mkdir(parents=True)
    run = FakeRun(study, "controller", 1, epochs=3, per_epoch=8, interval=3600.0)
    run.advance(16)
    _records(run, say)
    run.write_status(
        "live", doing=say("DOING"), phase=say("PHASE"), host=say("HOST"), error=say("ERROR"), val={say("METRIC"): 1.0}
    )
    path = run.path
    run.close()
    _files(path, say)
    os.rename(path, study / f"{arm}-s1")
    FakeRun(study, "baseline", 1, epochs=3, per_epoch=8).finish()
    arms = ["baseline", arm]
    runs = [{"name": f"{a}-s1", "arm": a, "seed": 1, "point": ""} for a in arms]
    index(
        study, arms, [1], question=say("QUESTION"), contrasts=[[arm, "baseline"]], on=[say("ON"), "val.loss"], runs=runs
    )
    return root


def _records(run: FakeRun, say: object) -> None:
    assert callable(say)
    run.log.write("state", 16, owner=say("OWNER"), name="regime", value=say("REGIME"))
    run.log.write("mark", 15, owner=say("OWNER"), name=say("MARK"), why=say("WHY"), epoch=1)
    run.log.write("level", 16, owner=say("OWNER"), series="train.loss", value=1.0, name=say("LEVEL"))
    run.log.write("warning", 16, owner=say("OWNER"), text=say("WARNING"))
    run.log.write("error", 16, kind=say("KIND"), text=say("TEXT"), plugin=say("PLUGIN"), hook="", phase="main")
    run.log.write("control", 16, request=say("REQUEST"), who=say("WHO"))
    run.log.write(say("EVENT"), 16, **{say("FIELD"): {say("DEEP"): [say("LIST")]}})


def _files(path: Path, say: object) -> None:
    assert callable(say)
    spec = (path / "spec.yaml").read_text() + f"comment: '{say('SPEC')}'  # {say('REMARK')}\n"
    (path / "spec.yaml").write_text(spec, encoding="utf-8")
    (path / "provenance.json").write_bytes(orjson.dumps({say("KEY"): say("VALUE"), "hashes": {say("HASH"): 1}}))
    known = json.loads((path / "series.json").read_text())
    known["train.loss"]["unit"] = say("UNIT")
    known["phase_controller.why"]["labels"] = [say("LABEL")] * 4
    known[say("SERIES")] = {"kind": "point"}
    (path / "series.json").write_text(json.dumps(known))
    rows = [{"label": say("ROW"), "values": {say("TASK"): 1.0}}]
    matrix = {"tasks": [say("TASK")], "metric": say("MATRIX"), "better": "lower", "rows": rows}
    (path / "matrix.json").write_bytes(orjson.dumps(matrix))


# what must have been on the screen
SHOWN = "STUDY ARM QUESTION DOING OWNER REGIME MARK WHY WARNING KIND TEXT WHO SPEC KEY VALUE LABEL SERIES ROW".split()


def test_hostile_texts_send_no_control_sequence_of_their_own(tmp_path: Path) -> None:
    hostile = [False, True]
    roots = [folder(tmp_path / ("bad" if each else "good"), each) for each in hostile]
    with ThreadPoolExecutor(2) as both:
        good, out = both.map(capture, roots, hostile)
    for captured in (good, out):
        assert b"Traceback" not in captured, captured[-3000:].decode(errors="replace")
    text, allowed = visible(out), kinds(good)
    assert not HIDDEN.search(text), HIDDEN.findall(text)[:5]
    assert kinds(out) <= allowed, sorted(kinds(out) - allowed)
    missing = [tag for tag in SHOWN if spelling(tag, True) not in text]
    assert not missing, f"never on the screen, so nothing was shown about them: {missing}"


def test_the_capture_would_see_an_escape_that_got_through() -> None:
    assert kinds(b"\x1b[31mred") < kinds(b"\x1b[31mred \x1b]0;title\x07") | kinds(b"\x1b[2J")
    assert HIDDEN.search("a\u202eb") and HIDDEN.search("\x9b")


def test_a_viewer_whose_terminal_is_gone_ends(tmp_path: Path) -> None:
    """A dropped connection: without a word from the terminal's owner, and without a signal."""
    master, slave = pty.openpty()
    code = f"from pathlib import Path; from ctr.tui.app import Viewer; Viewer(Path({str(tmp_path)!r})).run()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    assert b"Quit" in _read(master, 15.0, until=b"Quit")
    os.close(master)
    try:
        process.wait(timeout=15)
    finally:
        process.kill()
