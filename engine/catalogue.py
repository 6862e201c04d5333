"""What is installed and shipped: plugins with their settings, and the studies that come with ctr."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from .api import VERSION, api_problem, declared, shown
from .errors import UsageError, guess
from .host import Found, find, implementations, plugin_problem
from .schema_walk import allowed, entry, schema
from .text import printable


def plugin_rows(name: str | None = None) -> list[dict[str, Any]]:
    """Describe every installed plugin, or the one of a name with its card; broken ones with their load error.

    Raises `UsageError` where none has that name. Loads no torch.
    """
    every = find("ctr.plugins")
    if name is None:
        return [_row(found) for found in every]
    known = [found.name for found in every]
    if name not in known:
        text = f"no plugin {printable(name, 80)} is installed; there are {', '.join(known) or 'none'}"
        raise UsageError(f"{text}.{guess(name, known)}")
    found = every[known.index(name)]
    return [{**_row(found), "card": _card(found)}]


def _card(found: Found) -> str:
    """Return the README beside a plugin's code; empty where it has none."""
    module = sys.modules.get(getattr(found.value, "__module__", ""))
    file = getattr(module, "__file__", None)
    path = Path(file).parent / "README.md" if file and getattr(module, "__package__", "") else None
    try:
        return path.read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError):
        return ""


def _row(found: Found) -> dict[str, Any]:
    about: dict[str, Any] = {
        "name": found.name,
        "distribution": found.distribution,
        "version": found.version,
        "target": found.target,
    }
    said = declared(found.value)
    about |= {"api": {"made_for": said and list(said), "here": VERSION, "satisfied": not api_problem(found.value)}}
    error = found.error or plugin_problem(found.value)
    if error:
        return {**about, "error": error, "hooks": [], "settings": {}, "summary": ""}
    whole = schema(found.value.Config)
    settings = {
        name: {
            "type": _type(field.annotation),
            "range": allowed(entry(whole, name), whole),
            "default": _default(field),
            "description": field.description or "",
        }
        for name, field in found.value.Config.model_fields.items()
    }
    summary = (found.value.__doc__ or "").strip().split("\n")[0]
    return {
        **about,
        "error": None,
        "hooks": list(implementations(found.value)),
        "settings": settings,
        "summary": summary,
    }


def _type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def _default(field: Any) -> Any:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def plugin_table(rows: list[dict[str, Any]]) -> Any:
    """Draw the plugins for a terminal: what each does, where it comes from, its hooks, a line for each setting."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for row in rows:
        head = Text(row["name"], style="bold red" if row["error"] else "bold")
        head.append(f"  {row['distribution']} {row['version']}", style="dim")
        parts.append(head)
        if row["error"]:
            parts.append(Text(f"  does not load: {printable(row['error'], 400)}", style="red"))
            continue
        parts.append(Text(f"  {printable(row['summary'], 200)}"))
        parts.append(Text(f"  hooks: {', '.join(row['hooks'])}", style="cyan"))
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
        for name, about in row["settings"].items():
            table.add_row(
                Text(f"    {name}"), Text(_short(about["default"])), Text(printable(about["description"], 300))
            )
        parts.append(table)
    return Group(*parts)


def plugin_page(row: dict[str, Any]) -> Any:
    """Draw one plugin whole: what it is made for, its hooks, a table of its settings, its card."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(row["name"], style="bold red" if row["error"] else "bold")
    head.append(f"  {row['distribution']} {row['version']}  {row['target']}", style="dim")
    api = row["api"]
    made_for = shown(tuple(api["made_for"]) if api["made_for"] else None)
    verdict = "satisfied" if api["satisfied"] else "NOT satisfied"
    about = f"made for plugin API {made_for}; this ctr has {api['here']}: {verdict}"
    parts: list[Any] = [head, Text(about if api["made_for"] else f"plugin API {made_for}; this ctr has {api['here']}")]
    if row["error"]:
        return Group(*parts, Text(f"does not load: {printable(row['error'], 1000)}", style="red"))
    parts += [Text(printable(row["summary"], 200)), Text(f"hooks: {', '.join(row['hooks']) or 'none'}", style="cyan")]
    table = Table("setting", "must be", "default", "reason", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name, said in row["settings"].items():
        cells = (name, said["range"] or said["type"], _short(said["default"]), said["description"])
        table.add_row(*(Text(printable(cell, 400)) for cell in cells))
    if row["settings"]:
        parts += [Text(""), table]
    card = [Text(printable(line, 1000)) for line in row["card"].splitlines()]
    return Group(*parts, Text(""), *(card or [Text("It has no card: no README.md lies beside its code.")]))


def _short(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 24 else text[:23] + "…"


def shipped_specs() -> dict[str, tuple[str, str]]:
    """Return the shipped studies by name, each with its text and its question."""
    found: dict[str, tuple[str, str]] = {}
    for item in sorted(files("ctr.specs").iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            text = item.read_text(encoding="utf-8")
            found[item.name.removesuffix(".yaml")] = (text, _question(text))
    return found


def _question(text: str) -> str:
    line = next((line for line in text.splitlines() if line.startswith("question:")), "question: ")
    return line.removeprefix("question:").strip().strip("\"'")


def shipped_path(name: str) -> Path | None:
    """Return the file of a shipped study; None when there is none of that name."""
    item = files("ctr.specs").joinpath(f"{name}.yaml") if name and "/" not in name and "\\" not in name else None
    return Path(str(item)) if item is not None and item.is_file() else None
