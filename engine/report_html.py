"""The report as one HTML file: no script, nothing fetched, light or dark as the reader's system is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from html import escape as _escape
from typing import Any

from . import report_panels
from .report_markdown import arm_plugins
from .report_strip import strip
from .report_style import CSS
from .report_tables import Table, contrast_name, settings, tables
from .text import printable

SIGNS = {"improves": "▲", "worse": "▼", "no difference": "●", "identical": "=", "cannot say": "?"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def escape(text: object) -> str:
    return _escape(printable(text), quote=True)


def html(report: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """Return the page; `images` are the PNG files by the path under which `figures` names them."""
    title = escape(report["study"])
    head = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}: report</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
    )
    return head + "\n".join(_body(report, images)) + "\n</main>\n</body>\n</html>\n"


def _body(report: Mapping[str, Any], images: Mapping[str, bytes]) -> Iterator[str]:
    yield f'<header><p class="study">{escape(report["study"])}</p>'
    yield f"<h1>{escape(report['question'] or 'A study without a question')}</h1>{_facts(report)}</header>"
    yield '<section class="cards">' + "".join(map(_card, report["contrasts"])) + "</section>"
    if not report["contrasts"]:
        yield '<p class="note">No contrast is named, so nothing is compared.</p>'
    if report["criteria"]:
        yield (
            '<section><h2>Criteria</h2><div class="cards">'
            + "".join(map(_rule, report["criteria"]))
            + "</div></section>"
        )
    yield from _box("Pairs that were dropped", report["incomplete"], "warn")
    yield from _box("What could not be read", report["problems"], "warn")
    yield from _box("Phases that were taken over", report["cached"])
    every = tables(report)
    first = [table for table in every if table.title.startswith(("Paired", "Criteria"))]
    yield from map(_table, first)
    yield from _figures(report["figures"], images)
    yield from (_table(table) for table in every if table not in first)
    yield from _box("The arms", (f"{arm}: {settings(p)}" for arm, p in arm_plugins(report).items()))
    for title, key in (("What the plugins decided", "decisions"), ("Warnings", "warnings"), ("Errors", "errors")):
        yield from _per_run(title, key, report["runs"])
    told = "".join(
        f"<details><summary>{escape(run['name'])}</summary>{report_panels.html(run)}</details>"
        for run in report["runs"]
        if run["panels"]
    )
    if told:
        yield f"<section><h2>Panels of plugins</h2>{told}</section>"


def _facts(report: Mapping[str, Any]) -> str:
    states = [run["state"] for run in report["runs"]]
    done = states.count("finished")
    said = [found[what]["said"] for found in report["matching"] for what in found if isinstance(found[what], Mapping)]
    matched = "arms matched" if said and all(s in ("matched", "one arm") for s in said) else "arms not proven matched"
    facts = [
        (f"{len(report['arms'])} arms × {len(report['seeds'])} seeds", ""),
        (f"{done} of {len(states)} runs finished", "" if done == len(states) else "warn"),
        (matched, "" if matched == "arms matched" else "warn"),
        (report["exactness"], "" if report["exactness"] == "bit-exact" else "warn"),
    ]
    return '<p class="facts">' + "".join(f'<span class="{kind}">{escape(fact)}</span>' for fact, kind in facts) + "</p>"


def _card(row: Mapping[str, Any]) -> str:
    kind = row["verdict"].replace(" ", "-")
    return (
        f'<article class="card {kind}"><p class="chip">{SIGNS[row["verdict"]]} {escape(row["verdict"])}</p>'
        f"<h2>{escape(contrast_name(row))}<small>{escape(row['metric'])}</small></h2>{strip(row)}"
        f"<p>{escape(row['sentence'])}</p>{_power(row)}</article>"
    )


def _rule(rule: Mapping[str, Any]) -> str:
    """Return a criterion as a card; what is at fault stands in its sentence."""
    verdict = rule["verdict"]
    sign = {"pass": "✓", "fail": "✗"}.get(verdict, "?")
    return (
        f'<article class="card {escape(verdict)}"><p class="chip">{sign} {escape(verdict)}</p>'
        f"<h2>{escape(rule['name'])}<small>{escape(rule['who'])}</small></h2><p>{escape(rule['sentence'])}</p></article>"
    )


def _power(row: Mapping[str, Any]) -> str:
    lines = [line for line in (row["attainable"] and f"Sign flip: {row['attainable']}", row["seeds_note"]) if line]
    return f'<p class="small">{escape("; ".join(lines))}.</p>' if lines and row["verdict"] != "identical" else ""


def _table(table: Table) -> str:
    kinds = [
        " class=n" if table.is_number(i) else " class=w" if i >= table.texts else "" for i in range(len(table.head))
    ]

    def row(cells: Iterable[str], tag: str) -> str:
        marked = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds, strict=True))
        return "<tr>" + "".join(marked) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return (
        f"<section><h2>{escape(table.title)}</h2>"
        f'<div class="wide"><table><thead>{row(table.head, "th")}</thead>\n<tbody>{body}</tbody></table></div>'
        f'<p class="note">{escape(table.note)}</p></section>'
    )


def _figures(figures: Iterable[Mapping[str, str]], images: Mapping[str, bytes]) -> Iterator[str]:
    shown, folded = [], []
    for figure in figures:
        data = base64.b64encode(images[figure["path"]]).decode()
        image = f'<img alt="{escape(figure["alt"])}" src="data:image/png;base64,{data}">'
        if figure["kind"] == "seed":
            folded.append(f"<details><summary>{escape(figure['title'])}</summary><figure>{image}</figure></details>")
        else:
            shown.append(f"<figure>{image}</figure>")
    if shown or folded:
        yield "<section><h2>Figures</h2>" + "\n".join([*shown, *folded]) + "</section>"


def _box(title: str, lines: Iterable[str], kind: str = "") -> Iterator[str]:
    rows = "".join(f"<li>{escape(line)}</li>" for line in lines)
    if rows:
        yield f'<section class="box {kind}"><h2>{escape(title)}</h2><ul>{rows}</ul></section>'


def _per_run(title: str, key: str, runs: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    told = [
        f"<details><summary>{escape(run['name'])} <small>{len(run[key])}</small></summary><ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in run[key])
        + "</ul></details>"
        for run in runs
        if run[key]
    ]
    if told:
        yield f"<section><h2>{title}</h2>{''.join(told)}</section>"
