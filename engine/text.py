"""Names that are safe as files, and text that cannot drive a terminal."""

from __future__ import annotations

import re
import unicodedata

_SLUG = re.compile(r"[a-z0-9][a-z0-9_.-]*\Z", re.IGNORECASE)
_RESERVED = {"con", "prn", "aux", "nul", *(f"com{i}" for i in range(1, 10)), *(f"lpt{i}" for i in range(1, 10))}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def slug_problem(name: str, longest: int = 64) -> str | None:
    """Say why `name` cannot be the name of a run, an arm, a metric or a plugin; None when it can."""
    if len(name) > longest:
        return f"is {len(name)} characters long, at most {longest} are allowed"
    if not _SLUG.match(name):
        return "must be letters, digits, '_', '-' and '.', and begin with a letter or a digit"
    if ".." in name or name.endswith("."):
        return "must not hold '..' or end with '.'"
    if name.split(".")[0].lower() in _RESERVED:
        return "is reserved by some operating systems"
    return None


def printable(text: object, longest: int = 2000) -> str:
    """Return `text` on one line without anything a terminal would obey: controls, escapes, bidi marks.

    Each such character becomes `\\xNN` or `\\uNNNN`, so that what was hidden can be seen. Runs of combining
    marks are cut at four, and the whole at `longest` characters.
    """
    out: list[str] = []
    marks = 0
    source = str(text)
    for character in source[:longest]:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks > 4:
            continue
        if category in _HIDDEN:
            code = ord(character)
            out.append(f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
        else:
            out.append(character)
    return "".join(out) + ("…" if len(source) > longest else "")
