"""The process in which `ctr check-plugin` tries a plugin; it says what it finds on stdout, a line of JSON each."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ctr.engine.candidates import Candidate
from ctr.engine.errors import UsageError
from ctr.engine.text import printable

from .laws import LAWS, Broken, Law, NotTried
from .plugin_laws import try_law
from .runs import finish, make
from .subject import Subject, Trial
from .watch import TimeUp, place_of_error, time_limit

ALONE = ("hosted", "no-torch")  # laws that need no run


def main(asked: str) -> None:
    """Try every law on the candidate that `asked`, a JSON text, describes."""
    about = json.loads(asked)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a plugin prints is no verdict
    torch.set_num_threads(1)
    candidate = Candidate.from_document(about["candidate"])

    def say(**said: Any) -> None:
        print(json.dumps(said), file=answers, flush=True)

    def verdict(law: Law, found: str, text: str | None, place: str | None = None) -> None:
        say(law=law.name, claim=law.claim, verdict=found, text=text or "", place=place)

    first, limit = LAWS[0], about["limit"]
    try:
        with time_limit(limit):
            kind = candidate.load()
        subject = Subject(candidate.name, kind, Trial.of(kind, **about["over"]))
        say(home=subject.home)
    except (Exception, SystemExit, TimeUp) as error:
        text = printable(error, 500) if isinstance(error, UsageError | TimeUp) else _raised(error)
        verdict(first, "broken", text, place_of_error(error, _anywhere_else) or candidate.place)
        return
    broken = ""
    with tempfile.TemporaryDirectory(prefix="ctr-check-") as folder:
        finish(make(Path(folder) / "warm", {}, epochs=1))  # what torch does at first counts against nobody's limit
        for law in LAWS:
            if broken == "hosted" or (broken and law.name not in ALONE):
                verdict(law, "not tried", f"law {broken} must be kept first")
                continue
            say(law=law.name, claim=law.claim)
            faulthandler.dump_traceback_later(2 * limit, exit=True)  # where an alarm finds no line of Python to end
            place = Path(folder) / law.name
            place.mkdir()
            try:
                verdict(law, "kept", try_law(law, subject, place, limit))
            except NotTried as reason:
                verdict(law, "not tried", str(reason))
            except Broken as error:
                verdict(law, "broken", error.text, error.place)
                broken = broken or (law.name if law.name in ("hosted", "three-steps") else "")
                broken = broken or (law.name if isinstance(error.__cause__, TimeUp) else "")
            finally:
                faulthandler.cancel_dump_traceback_later()


def _raised(error: BaseException) -> str:
    return f"cannot be loaded: {type(error).__name__}: {printable(error, 500)}"


def _anywhere_else(file: str) -> bool:
    """Say whether a file is neither this process's own nor Python's importing machinery."""
    return (
        not file.startswith("<") and "importlib" not in file and Path(file).parent.parent != Path(__file__).parents[1]
    )


if __name__ == "__main__":
    main(sys.argv[1])
