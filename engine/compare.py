"""`ctr compare`: two runs or two studies held against each other, paired by seed and item where they match.

First minus second, by the same statistics as a study's own contrasts. Data that differ are refused: then there is no
number to compare.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import DataError, UsageError, guess
from .nodes import difference
from .output import answer_only, print_json, show
from .report_content import content
from .report_read import Run, Study, mapping, read_study, strings, text
from .report_terminal import render_findings
from .text import printable

MOST_LINES = 24
NAMES = ("study", "question", "arm", "seed", "point", "log", "checkpoint")  # what decides no number


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="A run's or a study's folder.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_OR_STUDY", help="What it is held against.")],
    arm: Annotated[
        list[str] | None,
        typer.Option("--arm", help="Only this arm; A=B holds A of the first against B of the second. May be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Pair two runs or studies by seed and item, and say what differs, who wins, or that nothing can be claimed."""
    with answer_only(as_json):
        found = compared(first, second, arm or ())
    if as_json:
        print_json(found)
    else:
        show(render(found))


def compared(first: Path, second: Path, arms: Sequence[str] = ()) -> dict[str, Any]:
    """Return a report tree of the two, with `spec_differences` by contrast, `seeds_only` by side and `more_seeds`.

    Raises `UsageError` where a folder is neither, or no arm of one has a partner; `DataError` where data, evaluation
    items or metrics differ.
    """
    sides = _side(first), _side(second)
    labels = _labels(sides, (first, second))
    pairs = _partners(sides, arms)
    _refuse_other_data(sides, labels, pairs)
    merged = _merged(sides, labels, pairs)
    report = {**content(merged), "criteria": [], "tradeoffs": [], "doses": []}
    seeds = [{run.seed for run in side.runs if run.arm in {p[i] for p in pairs}} for i, side in enumerate(sides)]
    report["seeds_only"] = {
        label: sorted(own - other) for label, own, other in zip(labels, seeds, reversed(seeds), strict=True)
    }
    report["spec_differences"] = [
        {"a": f"{labels[0]}/{a}", "b": f"{labels[1]}/{b}", "lines": _spec_lines(sides, (a, b))} for a, b in pairs
    ]
    report["more_seeds"] = [line for row in report["contrasts"] if (line := _more_seeds(row))]
    return report


def _side(folder: Path) -> Study:
    """Return a study, or the study of one run with that run alone."""
    if (folder / "study.json").is_file():
        return read_study(folder)
    if not (folder / "status.json").is_file() and not (folder / "spec.yaml").is_file():
        raise UsageError(f"{printable(folder)}: neither a run's folder nor a study's, such as runs/quickstart")
    folder = folder.resolve()
    whole = read_study(folder.parent)
    runs = [run for run in whole.runs if run.name == folder.name]
    if not runs:
        raise UsageError(f"{printable(folder)}: is no run of the study that it lies in")
    return replace(whole, runs=runs, problems=[])


def _labels(sides: Sequence[Study], folders: Sequence[Path]) -> tuple[str, str]:
    names = [side.name for side in sides]
    if names[0] == names[1]:
        names = [f"{name}({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    return printable(names[0], 80), printable(names[1], 80)


def _partners(sides: Sequence[Study], asked: Sequence[str]) -> list[tuple[str, str]]:
    """Return which arm of the first is held against which of the second."""
    there = [list(dict.fromkeys(run.arm for run in side.runs)) for side in sides]
    if asked:
        pairs = [tuple((*one.split("=", 1), one)[:2]) if "=" in one else (one, one) for one in asked]
        for pair in pairs:
            for name, known, place in zip(pair, there, ("first", "second"), strict=True):
                if name not in known:
                    text = f"--arm: the {place} has no arm {printable(name, 80)}; it has {', '.join(known)}"
                    raise UsageError(f"{text}.{guess(name, known)}")
        return [(pair[0], pair[1]) for pair in pairs]
    if len(there[0]) == len(there[1]) == 1:
        return [(there[0][0], there[1][0])]
    common = [name for name in there[0] if name in there[1]]
    if not common:
        text = f"no arm is in both: {', '.join(there[0])}, and {', '.join(there[1])}"
        raise UsageError(f"{text}; say which, such as --arm {there[0][0]}={there[1][0]}")
    return [(name, name) for name in common]


def _refuse_other_data(sides: Sequence[Study], labels: Sequence[str], pairs: Iterable[tuple[str, str]]) -> None:
    """Refuse to hold numbers against each other that were measured on other data."""
    chosen = [[run for run in side.runs if run.arm in {p[i] for p in pairs}] for i, side in enumerate(sides)]
    for what, read in (
        ("data", lambda run: mapping(run.provenance.get("fingerprints"))),
        ("evaluation items", lambda run: {"": text(mapping(run.provenance.get("hashes")).get("evaluation_items"))}),
    ):
        seen = [{key: text(value) for run in runs for key, value in read(run).items() if value} for runs in chosen]
        for key in sorted({*seen[0], *seen[1]}):
            one, other = (found.get(key, "") for found in seen)
            if one != other and seen[0] and seen[1]:
                shown = f"{labels[0]} has {one[:12] or 'none'}, {labels[1]} has {other[:12] or 'none'}"
                raise DataError(f"the {what} differ{f' in {key}' if key else ''}: {shown}; what was measured on other "
                                "data cannot be compared")  # fmt: skip


def _merged(sides: Sequence[Study], labels: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Study:
    """Return both as one study, whose arms are `<study>/<arm>` and whose contrasts are the pairs."""
    metrics = [strings(side.index.get("on")) for side in sides]
    common = [name for name in metrics[0] if name in metrics[1]]
    if not common:
        shown = f"{', '.join(metrics[0]) or 'nothing'}, and {', '.join(metrics[1]) or 'nothing'}"
        raise DataError(f"the two compare on different metrics: {shown}; add one to compare.on of both specs")
    runs: list[Run] = []
    for number, (side, label) in enumerate(zip(sides, labels, strict=True)):
        named = {pair[number] for pair in pairs}
        runs += [
            replace(run, arm=f"{label}/{run.arm}", name=f"{label}/{run.name}") for run in side.runs if run.arm in named
        ]
    contrasts = [[f"{labels[0]}/{a}", f"{labels[1]}/{b}"] for a, b in pairs]
    first = sides[0].index
    name = f"{labels[0]} - {labels[1]}"
    index = {
        "study": name,
        "question": "",
        "arms": list(dict.fromkeys(arm for pair in contrasts for arm in pair)),
        "contrasts": contrasts,
        "on": common,
        "metrics": first.get("metrics"),
        "select": first.get("select"),
        "points": first.get("points"),
        "determinism": first.get("determinism"),
    }
    problems = [f"{label}: {line}" for side, label in zip(sides, labels, strict=True) for line in side.problems]
    if (chosen := [mapping(side.index.get("select")) for side in sides])[0] != chosen[1]:
        problems.append("the two select their weights by different metrics; each number is that of its own selection")
    return Study(sides[0].folder, name, index, runs, problems)


def _spec_lines(sides: Sequence[Study], arms: tuple[str, str]) -> list[str]:
    specs: list[Mapping[str, Any]] = []
    for side, arm in zip(sides, arms, strict=True):
        run = next((run for run in side.runs if run.arm == arm and run.spec), None)
        specs.append({k: v for k, v in run.spec.items() if k not in NAMES} if run else {})
    return [printable(line, 300) for line in difference(*specs)]


def _more_seeds(row: Mapping[str, Any]) -> str:
    """Say how many more seeds a difference that cannot be claimed would need, were it as large as measured."""
    if row["verdict"] not in ("no difference", "cannot say"):
        return ""
    names = f"{row['a']} − {row['b']}" + (f" at {row['point']}" if row["point"] else "") + f" on {row['metric']}"
    if row["seeds_needed"] is None:
        why = row["seeds_note"] or row["reason"]
        return f"{names}: no difference can be claimed; how many more seeds would be needed: {why or 'unknown'}"
    more = max(row["seeds_needed"] - row["n"], 1)
    text = f"{names}: no difference can be claimed; {more} more seed{'s' * (more > 1)} would be needed"
    return f"{text} for 80 % power, if the true effect is the measured one"


def render(found: Mapping[str, Any]) -> Any:
    """Return what `ctr compare` prints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for row in found["spec_differences"]:
        parts.append(Text(f"{row['a']} → {row['b']}" + ("" if row["lines"] else ": the resolved specs are equal")))
        parts += [Text(f"  {line}") for line in row["lines"][:MOST_LINES]]
        left = len(row["lines"]) - MOST_LINES
        parts += [Text(f"  and {left} more")] if left > 0 else []
    for label, seeds in found["seeds_only"].items():
        if seeds:
            shown = ", ".join(map(str, seeds))
            parts.append(Text(f"! seeds only in {label}, which have no partner: {shown}", style="yellow"))
    parts.append(render_findings(found))
    parts += [Text(line) for line in found["more_seeds"]]
    return Group(*parts)
