"""Choosing several names from a long list by typing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from ctr.tui.clean import clean

SHOWN = 500


class Picker(ModalScreen[list[str] | None]):
    """A list with a filter; space marks, enter takes, escape leaves all as it was."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave"),
        Binding("down", "to_list", "List", show=False),
        Binding("ctrl+s", "take", "Take"),
    ]

    def __init__(self, title: str, names: Sequence[str], chosen: Sequence[str], *, many: bool = True) -> None:
        super().__init__()
        self.title_text = title
        self.names = list(names)
        self.chosen = [name for name in chosen if name in self.names]
        self.many = many
        self._listed: list[str] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static(Text(self.title_text, "bold"), id="picker-title")
            yield Input(placeholder="type to filter", id="picker-filter")
            yield OptionList(id="picker-list")
            how = "space marks several, enter takes, escape leaves" if self.many else "enter takes, escape leaves"
            yield Static(Text(how, "dim"), id="picker-how")

    def on_mount(self) -> None:
        self._fill("")
        self.query_one(OptionList).focus()
        if self._listed:
            first = self._listed.index(self.chosen[0]) if self.chosen and self.chosen[0] in self._listed else 0
            self.query_one(OptionList).highlighted = first

    def _fill(self, words: str) -> None:
        wanted = words.casefold().split()
        self._listed = [n for n in self.names if all(w in n.casefold() for w in wanted)][:SHOWN]
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options([Option(self._prompt(name)) for name in self._listed])

    def _prompt(self, name: str) -> Text:
        mark = ("■ " if name in self.chosen else "□ ") if self.many else "  "
        return Text(mark, end="").append_text(clean(name, "bold" if name in self.chosen else "", 120))

    @on(Input.Changed)
    def _typed(self, message: Input.Changed) -> None:
        self._fill(message.value)

    @on(Input.Submitted)
    def action_to_list(self) -> None:
        options = self.query_one(OptionList)
        if not options.has_focus:
            options.focus()
            if options.highlighted is None and self._listed:
                options.highlighted = 0

    def key_space(self) -> None:
        options = self.query_one(OptionList)
        if options.has_focus and options.highlighted is not None:
            self._toggle(options.highlighted)

    def key_slash(self) -> None:
        self.query_one(Input).focus()

    def _toggle(self, place: int) -> None:
        if not self.many or not 0 <= place < len(self._listed):
            return
        name = self._listed[place]
        self.chosen = [n for n in self.chosen if n != name] if name in self.chosen else [*self.chosen, name]
        self.query_one(OptionList).replace_option_prompt_at_index(place, self._prompt(name))

    @on(OptionList.OptionSelected)
    def _selected(self, message: OptionList.OptionSelected) -> None:
        name = self._listed[message.option_index]
        if not self.many:
            self.dismiss([name])
        elif self.chosen:
            self.dismiss(self.chosen)
        else:
            self.dismiss([name])

    def action_take(self) -> None:
        self.dismiss(self.chosen or None)

    def action_leave(self) -> None:
        self.dismiss(None)
