"""The report of a study, computed from its run folders alone: the same folders give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from .figure_data import trace, watched_series
from .report_content import content, epoch_value
from .report_read import Study, read_study, strings
from .report_terminal import render_tables
from .report_treatments import pictures, treatments
from .storage import atomic_write, jsonable, make_folder
from .text import printable, slug_problem

__all__ = ["build_report", "render_tables"]


def build_report(study_dir: Path) -> dict[str, Any]:
    """Write report.html, report.md, report.json and figures/*.png into `study_dir`; return the JSON's content.

    A run folder that is missing or broken is named in the report and stops nothing; `StorageError` is raised where the
    report cannot be written.
    """
    from .report_html import html
    from .report_markdown import markdown

    study = read_study(study_dir)
    drawn = list(_figures(study))  # before the content: what cannot be read while drawing is named there
    report = {**content(study), **treatments(study)}
    drawn += [*_differences(report), *_matrices(report), *_routes(report), *pictures(report)]
    report["figures"] = [about for about, _ in drawn]
    images = {about["path"]: data for about, data in drawn}
    tree = jsonable(report, "report.json")
    _write_images(study_dir, images)
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    atomic_write(study_dir / "report.json", orjson.dumps(tree, option=options))
    atomic_write(study_dir / "report.md", markdown(report).encode())
    atomic_write(study_dir / "report.html", html(report, images).encode())
    return {**tree, "folder": str(study_dir)}


def _write_images(folder: Path, images: Mapping[str, bytes]) -> None:
    """Write the figures and remove those of an earlier report that this one does not have."""
    make_folder(folder / "figures")
    for name, data in images.items():
        atomic_write(folder / name, data)
    ours = "all-seeds* seed-* differences* matrices* routes-* against-loss dose-*".split()
    for kind in (f"{stem}.png" for stem in ours):
        for path in (folder / "figures").glob(kind):
            if f"figures/{path.name}" not in images:
                path.unlink(missing_ok=True)


def _figures(study: Study) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield the figure over all seeds, then one a seed, point by point; none where nothing was trained."""
    from .figures import panels

    watched = watched_series(study.runs)
    metric = _drawn_metric(study)
    traces = [trace(run, metric, watched) for run in study.runs]
    traces = [t for t in traces if t.end > 0]
    names = {"metric": metric, "watched": watched or ""}
    for number, point in enumerate(study.points_of(*study.arms)):
        here = [t for t in traces if t.point in ("", point)]
        tail = f"-{point if not slug_problem(point) else number}" if point else ""
        at = f" at {point}" if point else ""
        seeds = [seed for seed in study.seeds if any(t.seed == seed for t in here)]
        if len(seeds) > 1:
            lanes = ", lanes: share of seeds in a regime" if any(t.spans for t in here) else ""
            title = f"{study.name}{at}: mean over {len(seeds)} seeds, band: 95 % t interval{lanes}"
            yield _about("all", f"all-seeds{tail}", title), panels(here, study.arms, names, title)
        for seed in seeds:
            title = f"{study.name}{at}: seed {seed}"
            one = [t for t in here if t.seed == seed]
            yield _about("seed", f"seed-{seed}{tail}", title), panels(one, study.arms, names, title)


def _drawn_metric(study: Study) -> str:
    """Choose the validation metric of the first panel: that of the first contrast number, as seen on val."""
    on = strings(study.index.get("on"))
    name = f"val.{on[0].partition('.')[2]}" if on else "val.loss"
    known = any(epoch_value(epoch, name) is not None for run in study.runs for epoch in run.epochs[:1])
    return name if known else "val.loss"


def _differences(report: Mapping[str, Any]) -> list[tuple[dict[str, str], bytes]]:
    from .figure_pairs import differences

    rows = [row for row in report["contrasts"] if row["n"]]
    if not rows:
        return []
    title = f"{report['study']}: paired differences, 95 % t interval"
    return [(_about("differences", "differences", title), differences(rows, title))]


def _matrices(report: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield the heat maps of the arms, a figure a point."""
    from .figure_matrix import matrices

    for number, point in enumerate(dict.fromkeys(matrix["point"] for matrix in report["matrices"])):
        found = [matrix for matrix in report["matrices"] if matrix["point"] == point]
        tail = f"-{point if not slug_problem(point) else number}" if point else ""
        title = f"{report['study']}{f' at {point}' if point else ''}: each task after each phase, mean over seeds"
        yield _about("matrices", f"matrices{tail}", title), matrices(found, title)


def _routes(report: Mapping[str, Any]) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield what routes keep and learn, a figure for each arm at each point."""
    from .figure_routes import routes

    for number, cell in enumerate(dict.fromkeys((row["arm"], row["point"]) for row in report["routes"])):
        rows, gains = (
            [row for row in report[part] if (row["arm"], row["point"]) == cell] for part in ("routes", "route_gains")
        )
        where = "".join(f" at {point}" for point in cell[1:] if point)
        title = f"{report['study']}, {cell[0]}{where}: what routes keep and learn, and their weights"
        yield _about("routes", f"routes-{number}", title), routes(rows, gains, title)


def _about(kind: str, name: str, title: str) -> dict[str, str]:
    return {"kind": kind, "path": f"figures/{name}.png", "title": printable(title, 200), "alt": printable(title, 200)}
