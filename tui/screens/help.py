"""All keys, made from the table that binds them."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from ctr.tui.bindings import HELP_ORDER, KEYS, TITLES

NAMES = {
    "question_mark": "?",
    "slash": "/",
    "plus": "+",
    "minus": "-",
    "equals_sign": "=",
    "greater_than_sign": ">",
    "less_than_sign": "<",
    "pageup": "page up",
    "pagedown": "page down",
    "left": "←",
    "right": "→",
    "up": "↑",
    "down": "↓",
}


class HelpScreen(ModalScreen[None]):
    """The table of keys. Escape, or the key that opened it, closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,f1,enter", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static(keys(), id="keys")

    def on_mount(self) -> None:
        self.query_one("#help").focus()


def keys() -> Text:
    """Write the table of keys, screen by screen."""
    text = Text(end="")
    for place in HELP_ORDER:
        text.append(("\n\n" if len(text) else "") + TITLES[place], "bold underline")
        for key in (k for k in KEYS if k.place == place):
            names = "  ".join(_name(k) for k in key.keys.split(","))
            text.append(f"\n  {names:<24}", "bold")
            text.append(key.text)
    return text


def _name(key: str) -> str:
    parts = key.split("+") if key != "+" else [key]
    return " ".join(NAMES.get(p, p) for p in parts)
