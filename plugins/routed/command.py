"""`ctr routes`: try routes, grids and searches on the adapters of a finished run, without training anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ctr.engine.errors import UsageError
from ctr.engine.output import say
from ctr.engine.text import printable


def routes(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run, such as runs/STUDY/ARM-s1.")],
    route: Annotated[
        list[str] | None, typer.Option("--route", help="A route such as A+0.9B+0.25C; may be given several times.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option("--grid", help="Weights to combine, such as 'B=0.85,0.9 C=0.25,0.3'.")
    ] = None,
    search: Annotated[str | None, typer.Option("--search", help="oracle, coordinate or gradient.")] = None,
    by: Annotated[
        str, typer.Option("--by", help="What a search weighs: phase, factor, band, block, module, tensor.")
    ] = "block",
    vary: Annotated[str | None, typer.Option("--vary", help="Phases that a search varies, such as B,C.")] = None,
    start: Annotated[str | None, typer.Option("--start", help="The route at which grid and search begin.")] = None,
    space: Annotated[str, typer.Option("--space", help="effective or factor.")] = "effective",
    objective: Annotated[str, typer.Option("--objective", help="frontier, mean or a reading.")] = "frontier",
    split: Annotated[str, typer.Option("--split", help="val or calibration.")] = "val",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score compositions of a run's adapters: chosen on one half of the items, reported on the other."""
    methods = _methods(route or [], grid, search, by, vary, start)
    settings = {"methods": methods, "space": space, "objective": objective, "split": split}
    if not methods:
        raise UsageError("nothing to try: give --route, --grid or --search")
    found = try_routes(run, settings)
    if as_json:
        import json

        typer.echo(json.dumps(found, allow_nan=False))
        return
    for line in _lines(found):
        say(line)


def _methods(
    given: Sequence[str], grid: str | None, search: str | None, by: str, vary: str | None, start: str | None
) -> dict[str, Any]:
    """Return the methods that the options name, as a spec would hold them."""
    begin = {} if start is None else {"start": start}
    methods: dict[str, Any] = {f"route-{i + 1}": {"kind": "route", "route": text} for i, text in enumerate(given)}
    if grid is not None:
        methods["grid"] = {"kind": "grid", "weights": _weights(grid), **begin}
    if search is not None:
        kinds = {"oracle": "greedy", "coordinate": "coordinate", "gradient": "gradient"}
        if search not in kinds:
            raise UsageError(f"--search {printable(search, 40)}: there are {', '.join(kinds)}")
        phases = {} if vary is None else {"vary": [name.strip() for name in vary.split(",")]}
        methods[search] = {"kind": kinds[search], "by": by, **phases, **begin}
    return methods


def _weights(text: str) -> dict[str, list[float]]:
    found = {}
    for part in text.split():
        phase, equals, values = part.partition("=")
        if phase in found:
            raise UsageError(f"--grid: phase {printable(phase, 60)} is named twice; give all its weights at once")
        try:
            found[phase] = [float(value) for value in values.split(",")]
        except ValueError:
            equals = ""
        if not equals or not phase:
            shown = printable(part, 60)
            raise UsageError(f"--grid: {shown!r} is no phase with weights; write it as B=0.85,0.9 C=0.25,0.3")
    return found


def try_routes(run: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what methods come to on a finished run, as `settings` of the plugin `routed` name them.

    Raises `UsageError` for a folder or settings that cannot be used.
    """
    from pydantic import ValidationError

    from .settings import RoutedConfig

    try:
        config = RoutedConfig.model_validate(settings)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UsageError(printable(told, 500)) from error
    from .finished import open_run
    from .methods import plain, record

    compared = open_run(run).compared(config)
    layout = compared.snapshots.layout
    results = [compared.sequential(), *(compared.run(name, one) for name, one in config.methods.items())]
    return {
        "run": str(run),
        "tasks": compared.scorer.tasks,
        "phases": list(compared.snapshots.phases),
        "items": {task: {half: len(of) for half, of in both.items()} for task, both in compared.scorer.halves.items()},
        "objective": config.objective,
        "rows": plain(compared.report.matrix.rows),
        "routes": [record(result, layout) for result in results],
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """Return a table of the methods, aligned."""
    tasks = found["tasks"]
    head = ["method", "space", "objective", *(f"gain {task}" for task in tasks), "kept", "passes", "s", "route"]
    rows = [
        [
            one["method"], one["space"], _number(one["objective"]), *(_number(one["gains"][task]) for task in tasks),
            _share(one["kept"]), f"{one['passes']:g}", f"{one['seconds']:.1f}", printable(one["route"] or "", 200),
        ]
        for one in found["routes"]
    ]  # fmt: skip
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip()
             for row in [head, *rows]]  # fmt: skip
    counts = ", ".join(f"{task} {of['selection']} + {of['report']}" for task, of in found["items"].items())
    return [
        f"{printable(found['run'])}: phases {', '.join(found['phases'])}; items that choose + are reported: {counts}",
        *lines,
        "Gains are in loss against the run's last state, on items by which nothing was chosen; positive is better.",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
