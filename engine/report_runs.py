"""How each run of a study went: its state, what its plugins decided, what it was warned of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from .report_panels import sections
from .report_read import Run, Study, mapping, number, sequence, strings, text
from .text import printable

MOST_LINES = 60
MOST_SOURCES = 6
STATES = {
    "failed": "failed",
    "stopped": "was stopped",
    "queued": "has not begun",
    "unknown": "says nothing of its end",
}


def run_row(run: Run) -> dict[str, Any]:
    """Return one line of the runs table with everything that happened in the run."""
    ends = run.of("end")
    epochs = [e for e in run.of("epoch") if number(e.get("seconds")) is not None]
    steps = [s for e in (run.status, run.events[-1] if run.events else {}) if (s := number(e.get("step"))) is not None]
    code = number(run.status.get("code"))
    return {
        "name": run.name,
        "arm": run.arm,
        "seed": run.seed,
        "point": run.point,
        "state": run.state,
        "code": int(code if code is not None else number(ends[-1].get("code")) or 0)
        if code is not None or ends
        else None,
        "error": _error(run),
        "steps": int(max(steps)) if steps else None,
        "epochs": len(run.epochs),
        "seconds": number(epochs[-1].get("seconds")) if epochs else None,
        "device": text(run.provenance.get("device")),
        "plugins": {text(k): mapping(v) for k, v in mapping(run.spec.get("plugins")).items()},
        "resumed": [f"from {text(e.get('checkpoint')) or 'the start'}" + _skipped(e) for e in run.of("resumed")],
        "warnings": _most([f"{text(e.get('owner'))}: {text(e.get('text'))}" for e in run.of("warning")]),
        "errors": _most([_error_line(e) for e in run.of("error")]),
        "decisions": _most(list(_decisions(run))),
        "panels": sections(run),
        "problems": list(run.problems),
    }


def exactness(study: Study) -> str:
    """Say whether the runs compare to the bit; if not, what differs between them, or changed while one was trained."""
    seen: dict[str, list[Any]] = {"threads": [], "device": [], "torch": []}
    for run in study.runs:
        about = {**run.provenance, "torch": mapping(run.provenance.get("versions")).get("torch")}
        changed = [mapping(event.get("differs")) for event in run.of("warning")]
        for what, values in seen.items():
            values += [about.get(what), *(value for change in changed for value in sequence(change.get(what)))]
    used = {
        what: list(dict.fromkeys(printable(v, 40) for v in values if v is not None)) for what, values in seen.items()
    }
    fast = any(text(about.get("determinism")) == "fast" for about in (study.index, *(r.provenance for r in study.runs)))
    why = ["determinism: fast"] * fast + [f"{what}: {', '.join(v)}" for what, v in used.items() if len(v) > 1]
    exact = f"matched, not bit-exact ({'; '.join(why)})" if why else "bit-exact"
    lost = [f"{text(event.get('disabled'))} in {run.name}" for run, event in _disabled(study)]
    return f"not the treatments that they name (disabled: {', '.join(lost)}); otherwise {exact}" if lost else exact


def _disabled(study: Study) -> Iterator[tuple[Run, Mapping[str, Any]]]:
    for run in study.runs:
        yield from ((run, event) for event in run.of("warning") if text(event.get("disabled")))


def disabled(study: Study) -> list[str]:
    """Say of each plugin that failed and was left out from then on, in which run, where and why."""
    return [f"{run.name}: {text(event.get('text'))}" for run, event in _disabled(study)]


def cached(study: Study) -> list[str]:
    """Say which phases were not trained but taken from the end of another run's, and from whose."""
    found: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for run in study.runs:
        for event in run.of("cached")[-1:]:
            names = tuple(printable(name, 80) for name in strings(event.get("phases")))
            found.setdefault(names, []).append((run.name, _source(event)))
    return [_taken(names, told) for names, told in found.items() if names]


def _source(event: Mapping[str, Any]) -> str:
    name, at = printable(text(event.get("run")), 150) or "an unknown run", number(event.get("published"))
    if at is None or not 0 <= at < 1e11:
        return name
    return f"{name} ({datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC)"


def _taken(names: Sequence[str], told: Sequence[tuple[str, str]]) -> str:
    sources = list(dict.fromkeys(source for _, source in told))
    more = f" and {len(sources) - MOST_SOURCES} more" if len(sources) > MOST_SOURCES else ""
    one = len(names) == 1
    runs = f"run {told[0][0]}" if len(told) == 1 else f"{len(told)} runs"
    return (
        f"{'phase' if one else 'phases'} {', '.join(names)} of {runs} {'was' if one else 'were'} taken from "
        f"{', '.join(sources[:MOST_SOURCES])}{more}"
    )


def why_no_value(arm: str, run: Run | None) -> str:
    """Say why a run has no number to compare."""
    if run is None or run.state == "missing":
        return f"{arm} has no run"
    error = _error(run)
    return f"{run.name} {STATES.get(run.state, f'is {run.state}')}" + (f" ({error})" if error else "")


def _error(run: Run) -> str:
    said = text(run.status.get("error"))
    errors = run.of("error")
    return said or (_error_line(errors[-1]) if errors and not run.finished else "")


def _error_line(event: Mapping[str, Any]) -> str:
    where = [f"{what} {text(event.get(what))}" for what in ("plugin", "hook", "phase") if text(event.get(what))]
    return f"{text(event.get('kind'))}: {text(event.get('text'))}" + (f" [{', '.join(where)}]" if where else "")


def _skipped(event: Mapping[str, Any]) -> str:
    names = [f"{text(s[0])} ({text(s[1])})" for s in map(sequence, sequence(event.get("skipped"))) if len(s) == 2]
    return f", skipped {', '.join(names)}" if names else ""


def _most(lines: list[str]) -> list[str]:
    return lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more"]


def _decisions(run: Run) -> Iterator[str]:
    """Tell in order what plugins decided: states, marks, accumulation, snapshots, the end of a phase."""
    epochs = 0
    accum: float | None = None
    for event in run.events:
        kind, owner = event.get("event"), text(event.get("owner"))
        at = f"epoch {epochs}, step {event.get('step')}: "
        if kind == "state":
            yield f"{at}{owner}.{text(event.get('name'))} = {text(event.get('value'))}"
        elif kind == "mark":
            yield f"{at}{owner}: {text(event.get('name'))}: {text(event.get('why'))}"
        elif kind == "snapshot" and text(event.get("by")) not in ("", "engine"):
            yield f"{at}{text(event.get('by'))} saved {text(event.get('slug'))}"
        elif kind == "epoch":
            epochs += event.get("kind") == "epoch"
            advice, now = mapping(event.get("advice")), number(event.get("grad_accum"))
            if accum is not None and now is not None and now != accum:
                yield f"{at}gradient accumulation was {now:g}, before {accum:g}"
            accum = now if now is not None else accum
            for owner in strings(advice.get("stop")):
                yield f"{at}{owner} ended the phase: {text(mapping(advice.get('why')).get(owner))}"
