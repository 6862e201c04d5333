"""The report as Markdown, in which no name can act as markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from . import report_panels
from .report_tables import settings, tables
from .text import printable

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_OPENING = re.compile(r"(\d{1,9})([.)])(?=\s|$)|([-+#=>])")


def escape(text: object) -> str:
    """Return text that Markdown, with tables and raw HTML, shows as it is: no link, no code, no tag, no new cell."""
    clean = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", clean).replace("://", ":&#47;&#47;").replace("www.", "www&#46;")


def opening(text: object) -> str:
    """Return text that may begin a line, or an item of a list, without becoming a list or a heading."""
    safe = escape(text)
    found = _OPENING.match(safe)
    if not found:
        return safe
    at = found.end(1) if found[1] else 0
    return f"{safe[:at]}\\{safe[at:]}"


def markdown(report: Mapping[str, Any]) -> str:
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {escape(report['study'])}\n"
    if report["question"]:
        yield f"> {opening(report['question'])}\n"
    yield from _list(
        "", [f"**{escape(v)}**" for v in report["verdicts"]] or ["No contrast is named, so nothing is compared."]
    )
    yield from _list("## What the criteria say\n", (opening(rule["sentence"]) for rule in report["criteria"]))
    trends = [row["sentence"] for row in (*report["tradeoffs"], *report["doses"])]
    yield from _list("## What treatments did\n", map(opening, trends))
    yield from _list("## Pairs that were dropped\n", map(opening, report["incomplete"]))
    yield from _list("## Phases that were taken over\n", map(opening, report["cached"]))
    for figure in report["figures"]:
        yield f"![{escape(figure['alt'])}]({figure['path']})\n"
    for table in tables(report):
        yield f"## {escape(table.title)}\n"
        yield "| " + " | ".join(map(escape, table.head)) + " |"
        yield "|" + "|".join("---:" if table.is_number(i) else "---" for i in range(len(table.head))) + "|"
        for row in table.rows:
            yield "| " + " | ".join(map(escape, row)) + " |"
        yield f"\n{opening(table.note)}\n"
    yield from _list(
        "## The arms\n", (f"{opening(arm)}: {escape(settings(p))}" for arm, p in arm_plugins(report).items())
    )
    for title, key in (("What the plugins decided", "decisions"), ("Warnings", "warnings"), ("Errors", "errors")):
        told = [(run["name"], run[key]) for run in report["runs"] if run[key]]
        if told:
            yield f"## {title}\n"
        for name, lines in told:
            yield from _list(f"### {escape(name)}\n", map(opening, lines))
    shown = [(run["name"], list(report_panels.lines(run))) for run in report["runs"] if run["panels"]]
    if shown:
        yield "## Panels of plugins\n"
    for name, lines in shown:
        yield from _list(f"### {escape(name)}\n", map(opening, lines))
    yield from _list("## What could not be read\n", map(opening, report["problems"]))


def _list(title: str, lines: Any) -> Iterator[str]:
    rows = [f"- {line}" for line in lines]
    if rows:
        yield from ([title] if title else [])
        yield "\n".join(rows) + "\n"


def arm_plugins(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plugins of each arm as the first run that could be read has them."""
    arms: dict[str, Any] = {}
    for run in report["runs"]:
        if run["plugins"] or run["arm"] not in arms:
            arms.setdefault(run["arm"], run["plugins"])
            arms[run["arm"]] = arms[run["arm"]] or run["plugins"]
    return arms
