"""`ctr check-plugin`: the laws on any plugin, installed or in a folder, each with its verdict, reason and line.

The plugin runs in a process of its own: one that hangs, kills its process or prints harms nobody.
"""

from __future__ import annotations

import json
import queue
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import IO, Annotated, Any

import typer

from .candidates import Candidate, candidates
from .errors import UsageError, VerificationError
from .output import print_json, say
from .text import printable
from .yaml_reader import read_text

SHOWN = {"kept": "kept  ", "broken": "BROKEN", "not tried": "-     "}
START = 120.0  # seconds in which a process must have loaded torch


def check_plugin(
    plugin: Annotated[str, typer.Argument(metavar="NAME|PATH", help="An installed plugin, or a project's folder.")],
    active: Annotated[
        str | None, typer.Option("--active", help="Settings under which it acts, such as '{weight: 0.5}'.")
    ] = None,
    inert: Annotated[
        str | None, typer.Option("--inert", help="Settings under which it must change nothing, such as '{weight: 0}'.")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="images, language or documents.")] = None,
    limit: Annotated[float, typer.Option("--limit", min=1, max=3600, help="Most seconds for one law.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Try every law on a plugin, and say of each whether it is kept, or which line breaks it; exit 6 if one is broken.

    Settings, and the task, are taken from the `trial` of the plugin's class where they are not given.
    """
    over = {"active": _settings("--active", active), "inert": _settings("--inert", inert), "task": task}
    every: list[dict[str, Any]] = []
    for candidate in candidates(plugin):
        if not as_json:
            say(f"{printable(candidate.name, 80)}  {candidate.source}  {printable(candidate.target, 200)}")
        for row in verdicts(candidate, over, limit):
            every.append({"plugin": printable(candidate.name, 80), **row})
            if not as_json:
                _show(row)
    counts = {verdict: sum(row["verdict"] == verdict for row in every) for verdict in SHOWN}
    if as_json:
        print_json(every)
    else:
        say(f"{counts['kept']} kept, {counts['broken']} broken, {counts['not tried']} not tried")
    if counts["broken"]:
        names = ", ".join(dict.fromkeys(row["law"] for row in every if row["verdict"] == "broken"))
        raise VerificationError(f"plugin {printable(plugin, 200)} breaks {names}")


def _settings(option: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    found = read_text(text, option).data
    if not isinstance(found, dict):
        raise UsageError(f"{option} must be settings, such as '{{weight: 0.5}}', not {printable(text, 80)}")
    return found


def _show(row: Mapping[str, Any]) -> None:
    say(f"  {SHOWN[row['verdict']]}  {row['law']:<15} {row['claim']}")
    remark = f"not tried: {row['text']}" if row["verdict"] == "not tried" else row["text"]
    if remark:
        say(f"{'':26}{printable(remark, 1200)}")
    if row["place"] and row["verdict"] == "broken":
        say(f"{'':26}look at {row['place']}")


def verdicts(candidate: Candidate, over: Mapping[str, Any], limit: float) -> Iterator[dict[str, Any]]:
    """Yield the verdict of each law as it is reached: law, claim, verdict, text and place."""
    if candidate.problem:
        yield _row("hosted", candidate.problem, candidate.place)
        return
    asked = json.dumps({"candidate": candidate.document(), "over": over, "limit": limit})
    with tempfile.TemporaryFile() as errors, _child(asked, errors) as child:
        assert child.stdout is not None
        lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
        doing: dict[str, Any] = {"law": "hosted", "claim": "the host takes it, and its settings are strict", "home": []}
        patience = START + limit
        try:
            while (line := lines.get(timeout=patience)) is not None:
                said = json.loads(line)
                if "verdict" in said:
                    yield said
                    doing["law"] = ""
                else:
                    doing |= said
                    patience = 3 * limit + 5  # an alarm in the process itself comes first, and knows the line
            code = child.wait(10)
            if code:
                yield _row(doing["law"], f"its process ended with {_ending(code)}", _last_line(errors, doing), doing)
        except queue.Empty:
            child.kill()
            child.wait()
            text = f"it did not end within {limit:g} s, nor where it was interrupted"
            yield _row(doing["law"], text, _last_line(errors, doing), doing)


def _child(asked: str, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "ctr.engine.testing.child", asked]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)


def _pump(stream: IO[bytes], into: queue.Queue[bytes | None]) -> None:
    for line in stream:
        into.put(line)
    into.put(None)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _row(law: str, text: str, place: str | None, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    claim = (about or {}).get("claim", "the host takes it, and its settings are strict")
    return {"law": law or "ends", "claim": claim, "verdict": "broken", "text": text, "place": place}


def _last_line(errors: IO[bytes], about: Mapping[str, Any]) -> str | None:
    """Return the plugin's own innermost line in what a process wrote of its stack before it died."""
    errors.seek(0)
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', errors.read().decode(errors="replace"))
    own = [f for f in frames if any(f[0] == home or f[0].startswith(home + "/") for home in about["home"])]
    return f"{printable(own[0][0], 300)}:{own[0][1]} in {printable(own[0][2], 80)}" if own else None
