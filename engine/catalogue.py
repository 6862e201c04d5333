"""What is installed and shipped: plugins with their settings, and the studies that come with ctr."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from .host import Found, find, implementations, plugin_problem


def plugin_rows() -> list[dict[str, Any]]:
    """Describe every installed plugin, broken ones with their load error; loads no torch."""
    return [_row(found) for found in find("ctr.plugins")]


def _row(found: Found) -> dict[str, Any]:
    about = {"name": found.name, "distribution": found.distribution, "version": found.version, "target": found.target}
    error = found.error or plugin_problem(found.value)
    if error:
        return {**about, "error": error, "hooks": [], "settings": {}, "summary": ""}
    fields = found.value.Config.model_fields
    settings = {
        name: {"type": _type(field.annotation), "default": _default(field), "description": field.description or ""}
        for name, field in fields.items()
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

    from .text import printable

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
