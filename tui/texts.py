"""The panels as text: rate, loss, matrix, decisions, events, spec. Pure: numbers in, styled lines out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from ctr.engine.matrix import Matrix

from . import colours, ticks
from .clean import clean, fit, plain
from .history import Decision, Record, line
from .readings import Loss, Rate

DIM = "dim"


def rate_panel(rates: Sequence[Rate], names: Mapping[str, int], dark: bool, mono: bool = False) -> Text:
    """Write how the rate came about: base, each factor, product, ceilings with the one that binds, rate used."""
    out = Text(end="", no_wrap=True)
    for k, rate in enumerate(rates[:8]):
        out.append("\n\n" if k else "")
        if rate.group:
            out.append_text(clean(f"group {rate.group}\n", "italic", 60))
        _row(out, "base rate", rate.base)
        for factor in rate.factors:
            _named(out, "×", factor.plugin, factor.value, names, dark)
            _why(out, factor.why)
        if rate.factors:
            _row(out, "= product", rate.product)
        binding = rate.binding
        for ceiling in rate.ceilings:
            binds = binding is not None and ceiling == binding
            _named(out, "≤", ceiling.plugin, ceiling.value, names, dark)
            if binds:
                out.append("  binding", "bold " + colours.series(5, dark))
            _why(out, "" if any(f.plugin == ceiling.plugin for f in rate.factors) else ceiling.why)
        _row(out, "rate used", rate.used, "bold")
    return out


def _row(out: Text, name: str, value: float | None, style: str = "") -> None:
    if len(out) and not out.plain.endswith("\n"):
        out.append("\n")
    out.append(f"{name:<20}", DIM)
    out.append(f"{ticks.number(value, 5):>10}", style)


def _named(out: Text, sign: str, plugin: str, value: float, names: Mapping[str, int], dark: bool) -> None:
    if len(out) and not out.plain.endswith("\n"):
        out.append("\n")
    out.append(f"{sign} ")
    out.append(fit(plain(plugin, 80), 18), colours.series(names.get(plugin, 6), dark))
    out.append(f"{ticks.number(value, 5):>10}")


def _why(out: Text, why: str) -> None:
    if why:
        out.append("\n    ")
        out.append_text(clean(why, "italic dim", 300))


def rate_line(rate: Rate) -> Text:
    """Write the rate in one line: 0.008 = 0.01 × 0.8 phase_controller."""
    out = Text("rate ", DIM, end="", no_wrap=True)
    out.append(ticks.number(rate.used), "bold")
    if rate.base is not None and rate.factors:
        out.append(f" = {ticks.number(rate.base)}")
        for factor in rate.factors[:4]:
            out.append(f" × {ticks.number(factor.value)} ")
            out.append_text(clean(factor.plugin, "italic", 40))
            if factor.why:
                out.append(" (")
                out.append_text(clean(factor.why, "", 60))
                out.append(")")
    if rate.binding is not None:
        out.append(f" ≤ {ticks.number(rate.binding.value)} ")
        out.append_text(clean(rate.binding.plugin, "italic", 40))
        out.append(" binds", "bold")
    return out


def loss_panel(loss: Loss, names: Mapping[str, int], dark: bool, width: int = 32) -> Text:
    """Write the parts of the loss, each weighted, with bars in proportion."""
    out = Text(end="", no_wrap=True)
    parts = [("task loss", 6, loss.task, "")]
    for term in loss.terms[:12]:
        detail = f"{ticks.number(term.value)} × {ticks.number(term.weight)}"
        parts.append(
            (f"{plain(term.plugin, 40)}.{plain(term.name, 40)}", names.get(term.plugin, 5), term.share, detail)
        )
    largest = max((abs(v) for _, _, v, _ in parts if v is not None and abs(v) < 1e300), default=0.0)
    for name, colour, value, detail in parts:
        out.append("\n" if len(out) else "")
        out.append(fit(name, 20), colours.series(colour, dark) if detail else DIM)
        out.append(f"{ticks.number(value, 5):>10}")
        if detail:
            out.append(f"\n    = {detail}", "dim")
        if largest > 0 and value is not None and value == value and len(parts) > 1:
            share = min(abs(value) / largest, 1.0)
            out.append("\n    " + "▇" * max(round(share * (width - 6)), 1), colours.series(colour, dark))
    if loss.total is not None:
        _row(out, "= total", loss.total, "bold")
    return out


def loss_line(loss: Loss) -> Text:
    out = Text("loss ", DIM, end="", no_wrap=True)
    out.append(ticks.number(loss.total if loss.total is not None else loss.task), "bold")
    if loss.terms:
        out.append(f" = {ticks.number(loss.task)}")
        for term in loss.terms[:4]:
            out.append(f" + {ticks.number(term.weight)} × {ticks.number(term.value)} ")
            out.append_text(clean(term.name, "italic", 40))
    return out


def decision_lines(decisions: Sequence[Decision], names: Mapping[str, int], dark: bool, width: int) -> list[Text]:
    """Write decisions, the newest last; a reason that does not fit goes on below."""
    lines: list[Text] = []
    for d in decisions:
        head = Text(end="", no_wrap=True)
        head.append(f"{ticks.count(d.step):>9} ", DIM)
        head.append(f"{'' if d.epoch is None else d.epoch:>4}  ", DIM)
        owner = fit(d.owner, min(cell_len(d.owner), 24))
        head.append(owner + "  ", colours.series(names.get(d.owner, 6), dark))
        head.append(d.what, "bold")
        lines.append(head)
        for part in wrapped(d.why, max(width - 18, 20)):
            lines.append(Text(" " * 16 + part, "italic", end="", no_wrap=True))
    return lines


def recent(decisions: Sequence[Decision], names: Mapping[str, int], dark: bool, width: int) -> Text:
    """Write the last decisions in a narrow column, the newest first."""
    if not decisions:
        return Text("none yet", "dim", end="")
    out = Text(end="", no_wrap=True)
    for k, d in enumerate(decisions):
        out.append("\n" if k else "")
        out.append(f"{ticks.count(d.step)} ", DIM)
        out.append(fit(d.owner, min(cell_len(d.owner), width - 10)), colours.series(names.get(d.owner, 6), dark))
        for part in wrapped(d.what, width - 2):
            out.append("\n  " + part, "bold")
        for part in wrapped(d.why, width - 2)[:4]:
            out.append("\n  " + part, "italic")
    return out


def wrapped(text: str, width: int) -> list[str]:
    """Break printable text at spaces into lines of at most `width` cells; a longer word is cut into pieces."""
    lines: list[str] = []
    now = ""
    for word in text.split():
        while cell_len(word) > width:
            if now:
                lines.append(now)
                now = ""
            cut = max(1, width // 2 if cell_len(word[:width]) > width else width)
            lines.append(word[:cut])
            word = word[cut:]
        joined = f"{now} {word}" if now else word
        if cell_len(joined) > width:
            lines.append(now)
            now = word
        else:
            now = joined
    return [*lines, now] if now else lines


EVENT_COLOURS = {"error": 5, "warning": 1, "mark": 0, "state": 0, "epoch": 2, "evaluation": 2, "control": 4, "end": 1}


def event_line(record: Record, dark: bool) -> Text:
    seq, step, kind, rest = line(record)
    out = Text(end="", no_wrap=True)
    out.append(f"{seq:>6} {step:>9}  ", DIM)
    out.append(fit(kind, 11), colours.series(EVENT_COLOURS[kind], dark) if kind in EVENT_COLOURS else "bold")
    out.append(rest)
    return out


def matrix_text(matrix: Matrix, dark: bool) -> Text:
    """Write the evaluation matrix and what is read from it."""
    out = Text(end="", no_wrap=True)
    tasks = [plain(t, 40) for t in matrix.tasks]
    width = max([10, *(cell_len(t) + 2 for t in tasks)])
    labels = [plain(label, 40) for label in matrix.rows]
    left = max([8, *(cell_len(label) for label in labels)]) + 2
    better = "higher is better" if matrix.better == "higher" else "lower is better"
    out.append(f"{plain(matrix.metric, 40)} after each phase, {better}\n\n", DIM)
    out.append(fit("after", left) + "".join(fit(t, width, right=True) for t in tasks), "bold")
    for raw, label in zip(matrix.rows, labels, strict=True):
        out.append("\n" + fit(label, left))
        for task in matrix.tasks:
            own = matrix.trained(raw) == task
            value = matrix.rows[raw].get(task)
            text = ticks.number(value) if value is not None else "–"
            out.append(fit(text, width, right=True), "bold " + colours.series(0, dark) if own else "")
    readings = list(matrix.readings())
    if readings:
        out.append("\n\nreadings, larger is better\n", DIM)
    for reading in readings[:200]:
        out.append(f"\n{reading.kind:<20}")
        out.append_text(clean(f"{reading.task} after {reading.after}", "", 80))
        sign = colours.series(2 if reading.value >= 0 else 5, dark)
        out.append(f"  {reading.value:+.4g}", sign)
    return out


def flat_lines(content: Any, prefix: str = "", depth: int = 0) -> list[Text]:
    """Write a tree of JSON as `path  value` lines."""
    if isinstance(content, Mapping) and depth < 6:
        lines: list[Text] = []
        for key, value in list(content.items())[:500]:
            name = f"{prefix}.{plain(key, 80)}" if prefix else plain(key, 80)
            lines += flat_lines(value, name, depth + 1)
        return lines
    out = Text(end="", no_wrap=True)
    out.append(fit(prefix, max(28, cell_len(prefix))) + "  ", DIM)
    out.append_text(
        clean(content if isinstance(content, (str, int, float, bool)) or content is None else str(content)[:300])
    )
    return [out]


_YAML = re.compile(r"^(?P<indent>\s*(?:- )?)(?P<key>[^\s:#{\[][^:#]*?)(?P<colon>:)(?=\s|$)")
_VALUE = re.compile(
    r"(?P<comment>#.*$)|(?P<text>\"[^\"]*\"|'[^']*')|(?P<word>\b(?:true|false|null)\b)|(?P<number>-?\b\d[\d._]*(?:e[+-]?\d+)?\b)"
)
_LOOK = {"comment": 6, "text": 2, "word": 4, "number": 1}


def yaml_line(source: str, dark: bool) -> Text:
    """Highlight one line of YAML; the source is cleaned first, so a control character cannot hide in it."""
    text = plain(source.rstrip("\n"), 2000)
    out = Text(text, end="", no_wrap=True)
    head = _YAML.match(text)
    start = 0
    if head:
        out.stylize("bold " + colours.series(0, dark), head.start("key"), head.end("key"))
        start = head.end()
    for found in _VALUE.finditer(text, start):
        out.stylize(colours.series(_LOOK[found.lastgroup or "word"], dark), found.start(), found.end())
    return out
