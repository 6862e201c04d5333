"""What is known of one run at one moment, and small readers that trust no file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ctr.engine.errors import CtrError
from ctr.engine.status import Status
from ctr.engine.storage import number, read_json

from .clean import plain

FINAL = {"finished", "failed", "stopped"}
ORDER = ("live", "paused", "stale", "failed", "stopped", "queued", "finished", "gone", "unknown")
BIGGEST = 1 << 20  # bytes; an index larger than this is not one

__all__ = ["FINAL", "ORDER", "Facts", "document", "mapping", "number", "numbers", "text", "whole"]


def whole(value: object) -> int | None:
    found = number(value) if not isinstance(value, int) or abs(value) < 2**63 else None
    return int(found) if found is not None and math.isfinite(found) else None


def text(value: object, longest: int = 200) -> str:
    """Return a name from a file as one printable line; what is not a string or a number becomes nothing."""
    return plain(value, longest) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


def mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def numbers(value: object) -> dict[str, float]:
    """Return the entries of a mapping that are numbers, names cleaned."""
    found = {plain(k, 80): number(v) for k, v in mapping(value).items()}
    return {k: v for k, v in found.items() if v is not None}


def document(path: Path) -> Any:
    """Return a JSON file's content, or None when it is missing, damaged, or not of a size that makes sense."""
    try:
        return read_json(path) if path.stat().st_size <= BIGGEST else None
    except (OSError, CtrError, ValueError):
        return None


@dataclass(frozen=True)
class Facts(Status):
    """One row of the list of runs: who it is, and its status as the run wrote it. All strings are printable."""

    study: str = ""
    name: str = ""
    arm: str = ""
    seed: int | None = None
    point: str = ""

    @property
    def progress(self) -> float | None:
        if self.status == "finished":
            return 1.0
        if not self.total or self.step is None:
            return None
        return min(self.step / self.total, 1.0)

    def metric(self, prefer: str = "") -> tuple[str, float] | None:
        """Return the validation metric to show: the one asked for, else any that is not the loss, else the loss."""
        names = [prefer, *(n for n in self.val if n not in ("loss", "items", "se")), "loss"]
        return next(((n, self.val[n]) for n in names if n in self.val), None)

    def as_json(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        found |= {"status": self.label, "progress": self.progress, "val": dict(self.val)}
        return {k: _json(v) for k, v in found.items()}


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return {k: _json(v) for k, v in value.items()} if isinstance(value, dict) else value


def facts(status: Status | None, study: str, name: str, planned: Mapping[str, Any] | None = None) -> Facts:
    """Join what the folder's name or the study's index says with what the run says of itself."""
    arm, seed, point = _who(name, planned or {})
    who: dict[str, Any] = {
        "study": plain(study, 120),
        "name": plain(name, 120),
        "arm": plain(arm, 80),
        "point": plain(point, 80),
    }
    if status is None:
        return Facts(status="queued" if planned is not None else "unknown", seed=seed, **who)
    return Facts(**{f.name: getattr(status, f.name) for f in fields(Status)}, seed=seed, **who)


def gone(of: Facts) -> Facts:
    return replace(of, status="gone")


def _who(name: str, planned: Mapping[str, Any]) -> tuple[str, int | None, str]:
    """Return arm, seed and point of a run, as the study's index says or the folder's name does."""
    arm, seed, point = planned.get("arm"), whole(planned.get("seed")), planned.get("point")
    if isinstance(arm, str) and seed is not None:
        return arm, seed, point if isinstance(point, str) else ""
    pieces = name.split("-")
    for k in range(len(pieces) - 1, 0, -1):
        digits = pieces[k][1:]
        if pieces[k].startswith("s") and digits.isascii() and digits.isdigit() and len(digits) < 12:
            return "-".join(pieces[:k]), int(digits), "-".join(pieces[k + 1 :])
    return name, None, ""
