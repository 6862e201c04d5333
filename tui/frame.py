"""What the viewer knows, printed once: as plain text or as JSON. Needs no terminal and no Textual."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from . import colours, ticks
from .catalog import Catalog, RunEntry, StudyEntry
from .clean import plain
from .facts import FINAL, ORDER, mapping
from .rows import build, cells, counts, fitting, name_cell, summary

AT_WORK = ("live", "paused", "stale")


def look(root: Path) -> Catalog:
    """Look at everything below `root` once."""
    catalog = Catalog(root)
    catalog.scan(time.time(), time.monotonic(), seconds=600.0)
    return catalog


def full(root: Path, width: int = 120) -> str:
    """Return the list of runs as lines of text, and the verdicts so far."""
    catalog = look(root)
    width = max(width, 60)
    columns = fitting(width)
    name = max(width - sum(c.width + 2 for c in columns) - 1, 8)
    lines = [f" {'study · arm · seed':<{name}}" + "".join("  " + _pad(c.head, c.width, c.right) for c in columns)]
    for row in build(catalog, "", "", False, set()):
        left = " " + name_cell(row, name, True, False).plain + "  "
        if row.run is None:
            lines.append(left + summary(row, max(width - name - 3, 0), True).plain)
        else:
            lines.append(left + "  ".join(c.plain for c in cells(row, columns, True)))
            if row.run.facts.error:
                lines.append(f"        {row.run.facts.error}")
    for study in catalog.studies.values():
        lines += ["", *_verdicts(study)]
    lines = [line.rstrip() for line in lines]
    return "\n".join(lines).rstrip() if catalog.studies else f"{plain(root)}: no study and no run here"


def short(root: Path) -> str:
    """Return one line for each study, and one for each run at work."""
    catalog = look(root)
    lines = []
    for study in catalog.studies.values():
        if not study.runs and not study.index:
            continue
        lines.append(f"{study.name}  {counts(study.runs.values()).plain.strip()}")
        lines += [_at_work(run) for run in study.runs.values() if run.facts.label in AT_WORK]
        failed = [run for run in study.runs.values() if run.facts.label == "failed"]
        lines += [f"  ✖ {run.facts.name}  {run.facts.error}".rstrip() for run in failed]
    return "\n".join(lines) or f"{plain(root)}: no study and no run here"


def _at_work(run: RunEntry) -> str:
    f = run.facts
    sign, _ = colours.status(f.label)
    parts = [f"  {sign} {f.name} {f.label}"]
    if f.label == "stale":
        parts.append(f"silent for {ticks.span(f.age)}")
    if f.epoch is not None:
        parts.append(f"epoch {f.epoch}/{f.epochs if f.epochs is not None else '–'}")
    if f.progress is not None:
        parts.append(f"{f.progress:.0%}")
    if f.label == "live":
        parts.append(f"ETA {ticks.span(f.eta_seconds)}")
    if f.train_loss is not None:
        parts.append(f"loss {ticks.number(f.train_loss)}")
    return "  ".join(parts)


def as_json(root: Path) -> str:
    """Return everything as JSON; numbers that are not finite are strings."""
    catalog = look(root)
    studies = [_study(study) for study in catalog.studies.values() if study.runs or study.index]
    return orjson.dumps({"root": plain(root, 4000), "studies": studies}, option=orjson.OPT_INDENT_2).decode()


def _study(study: StudyEntry) -> dict[str, Any]:
    return {
        "name": study.name,
        "question": study.question,
        "arms": study.arms(),
        "counts": {label: n for label in ORDER if (n := sum(r.facts.label == label for r in study.runs.values()))},
        "runs": [run.facts.as_json() for run in study.runs.values()],
        "contrasts": [_contrast(c) for c in _contrasts(study)],
    }


def _contrasts(study: StudyEntry) -> list[Any]:
    """Read the logs of a study that names contrasts, and pair its arms; nothing is read for any other."""
    if not isinstance(study.index.get("contrasts"), list) or not mapping(study.index):
        return []
    from . import groups

    arms = [
        groups.group(a, k, [r for r in study.runs.values() if r.facts.arm == a]) for k, a in enumerate(study.arms())
    ]
    for member in (m for arm in arms for m in arm.members if m.run.facts.status in FINAL):
        member.store.catch_up()
    metric = next(iter(groups.metrics(study)), "")
    return [c for c in groups.contrasts(study, arms, metric) if c.result.n] if metric else []


def _contrast(c: Any) -> dict[str, Any]:
    found = c.result.as_dict()
    return {
        "a": c.a,
        "b": c.b,
        "point": c.point,
        "metric": c.metric,
        "unit": c.unit,
        "waiting": c.waiting,
        **_plain(found),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return plain(value, 1000) if isinstance(value, str) else value


def _verdicts(study: StudyEntry) -> list[str]:
    from ctr.engine.stats import sentence

    return [
        f"{study.name}{' at ' + c.point if c.point else ''}: "
        + plain(sentence(c.result, c.a, c.b, c.metric, c.unit), 600)
        for c in _contrasts(study)
    ]


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)
