"""What a finished study says on the terminal: verdicts first, then the figures in a table of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .report_routes import sentences
from .report_tables import contrast_name, interval, p_value, plain
from .stats import difference_unit
from .text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

MOST_WARNINGS = 8
MOST_READINGS = 12
SPOKEN = ("learning", "backward transfer", "interference")  # a ratio, and what repeats learning, stay in the report
STYLES = {"improves": "bold green", "worse": "bold red", "identical": "cyan", "cannot say": "yellow"}
RULES = {"pass": ("✓", "bold green"), "fail": ("✗", "bold red"), "undecided": ("?", "yellow")}


def render_tables(report: Mapping[str, Any]) -> RenderableType:
    """Return what `ctr run` and `ctr report` print; no text in it can act as markup or as an escape code."""
    from rich.console import Group

    return Group(*_parts(report), *_places(report))


def render_findings(report: Mapping[str, Any]) -> RenderableType:
    """Return the same without where the report lies, for findings that no report was written of."""
    from rich.console import Group

    return Group(*_parts(report))


def _text(value: object, style: str = "") -> Text:
    from rich.text import Text

    return Text(printable(value), style=style, overflow="fold")


def _parts(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    if report["question"]:
        yield _text(report["question"], "bold")
    for row in report["contrasts"]:
        yield _text(f"• {row['sentence']}", STYLES.get(row["verdict"], ""))
    if not report["contrasts"]:
        yield _text("No contrast is named, so nothing is compared.", "yellow")
    else:
        for metric in dict.fromkeys(row["metric"] for row in report["contrasts"]):
            yield _table([row for row in report["contrasts"] if row["metric"] == metric])
    if rows := [row for row in report["items"] if row["which"] == "all"]:
        yield _items(rows)
    if rows := [row for row in report["transfer_contrasts"] if row["kind"] in SPOKEN]:
        yield _readings(rows)
    for line in sentences(report):
        yield _text(f"~ {line}")
    hints = dict.fromkeys(row["attainable"] for row in report["contrasts"] if "cannot" in row["attainable"])
    for hint in hints:
        yield _text(f"Sign-flip test: {hint} (before Holm).")
    for row in report["contrasts"]:
        if row["verdict"] == "no difference" and row["seeds_note"]:
            yield _text(f"{contrast_name(row)} on {row['metric']}: {row['seeds_note']}.")
    for rule in report["criteria"]:
        sign, style = RULES[rule["verdict"]]
        yield _text(f"{sign} {rule['sentence']}", style)
    for row in report["tradeoffs"]:
        if row["verdict"] in ("improves", "worse"):
            yield _text(f"~ {row['sentence']}")
    for row in report["doses"]:
        if row["weights"] == "selected":
            yield _text(f"~ {row['sentence']}")
    if report["exactness"] != "bit-exact":
        yield _text(f"Arms are {report['exactness']}.", "yellow")
    for line in report["cached"]:
        yield _text(f"{line[0].upper()}{line[1:]}.")
    told = [*_unmatched(report), *report["incomplete"], *report["problems"]]
    for line in told[:MOST_WARNINGS]:
        yield _text(f"! {line}", "yellow")
    if len(told) > MOST_WARNINGS:
        yield _text(f"! and {len(told) - MOST_WARNINGS} more lines of this kind, all in the report", "yellow")


def _unmatched(report: Mapping[str, Any]) -> Iterator[str]:
    for row in report["matching"]:
        for what in ("weights", "data_order", "evaluation_items"):
            if row[what]["said"] == "differs":
                yield f"seed {row['seed']}: the arms are not matched: {what.replace('_', ' ')} differ"


def _table(rows: list[Mapping[str, Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table

    unit = difference_unit(rows[0]["unit"])
    title = _text(rows[0]["metric"] + (f" [{unit}]" if unit else "") + ", positive is better", "bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column("contrast", overflow="fold")
    for name in ("n", "mean", "95 % interval", "p Holm", "p flip", "w/t/l"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            contrast_name(row),
            row["n"],
            plain(row["mean"], "+"),
            interval(row["interval"]),
            p_value(row["holm_p"]),
            p_value(row["sign_p"]),
            f"{row['wins']}/{row['ties']}/{row['losses']}",
        ]
        table.add_row(*(_text(cell, STYLES.get(row["verdict"], "")) for cell in cells))
    return table


def _items(rows: list[Mapping[str, Any]]) -> RenderableType:
    """Return the differences over items; by length they stand in the report."""
    from rich import box
    from rich.table import Table

    title = _text(f"paired by item, the {rows[0]['items']}; positive is better", "bold")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    table.add_column("contrast", overflow="fold")
    for name in ("metric", "n", "mean", "95 % interval", "better/worse"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            contrast_name(row), row["metric"], row["n"], plain(row["mean"], "+"), interval(row["interval"]),
            f"{row['better']}/{row['worse']}",
        ]  # fmt: skip
        table.add_row(*map(_text, cells))
    return table


def _readings(rows: list[Mapping[str, Any]]) -> RenderableType:
    """Return the differences of readings, the most that a screen takes in; the report has all."""
    from rich import box
    from rich.table import Table

    contrasts = list(dict.fromkeys(map(contrast_name, rows)))
    of = f" of {contrasts[0]}" if len(contrasts) == 1 else ""
    title = _text(f"readings{of}, positive is better", "bold")
    more = f"and {len(rows) - MOST_READINGS} more rows in the report" if len(rows) > MOST_READINGS else None
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left", caption=more
    )
    for name in ("reading", "task", *([] if of else ["contrast"])):
        table.add_column(name, overflow="fold")
    for name in ("n", "mean", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:MOST_READINGS]:
        mean = "n/a" if row["mean"] is None else plain(row["mean"], "+")
        where = f"{row['task']} after {row['after']}"
        cells = [row["kind"], where, *([] if of else [contrast_name(row)]), row["n"], mean, interval(row["interval"])]
        table.add_row(*(_text(cell, STYLES.get(row["verdict"], "")) for cell in cells))
    return table


def _places(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    folder = report.get("folder", ".")
    figures = [figure["path"] for figure in report["figures"] if figure["kind"] not in ("seed", "matrices")] or [
        figure["path"] for figure in report["figures"]
    ]
    if figures:
        yield _text(f"Figure  {folder}/{figures[0]}")
    yield _text(f"Report  {folder}/report.html")
