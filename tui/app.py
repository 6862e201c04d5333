"""The viewer: one clock that looks at the folder, and the screens that show what it found."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.app import App, SystemCommand
from textual.binding import BindingType
from textual.color import Color
from textual.filter import Monochrome
from textual.screen import Screen

from ctr.tui.catalog import Catalog, RunEntry
from ctr.tui.messages import OpenRun, OpenStudy
from ctr.tui.screens.base import Nothing, ViewerScreen

from .bindings import bindings
from .clean import plain
from .themes import THEMES

TICK = 0.25  # seconds between looks
SETTLED = 1.0  # seconds until all that stays has been made


class OneColour(Monochrome):
    """Textual's filter for one colour, also over segments without a style."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return super().apply([Segment(s.text, s.style or Style.null()) for s in segments], background)


def _collect() -> None:
    """Let garbage be collected again, without ever looking at what was made at the start."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class Viewer(App[None]):
    """Shows run folders; writes nothing but requests in `control/`."""

    CSS_PATH = "ctr.tcss"
    TITLE = "ctr tui"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide"), (170, "-huge")]
    VERTICAL_BREAKPOINTS = [(0, "-short"), (32, "-tall"), (50, "-high")]
    BINDINGS: ClassVar[list[BindingType]] = list[BindingType](bindings("app"))

    def __init__(self, root: Path, theme: str = "ctr-dark") -> None:
        super().__init__()
        for each in THEMES:
            self.register_theme(each)
        # a strip that has no style yet (a canvas before its first layout) must not end a session in one colour
        self._filters = [OneColour() if isinstance(f, Monochrome) else f for f in self._filters]
        self.theme = theme if theme in self.available_themes else "ctr-dark"
        self.catalog = Catalog(root)
        self._ticks = 0
        self._terminal = False

    def get_default_screen(self) -> Screen[None]:
        return Nothing()

    def on_mount(self) -> None:
        self._terminal = not self.is_headless and os.isatty(0)
        self.catalog.scan(time.time(), time.monotonic(), 0.1)
        only = self.catalog.find(self.catalog.root)
        if only is not None:
            self.open_run(only)
        else:
            from ctr.tui.screens.runs import RunsScreen

            self.push_screen(RunsScreen(self.catalog))
        self.set_interval(TICK, self._look)
        self.set_timer(SETTLED, _collect)

    def _look(self) -> None:
        """Look at the folder and let the visible screen follow; a busy folder costs a bounded slice of each tick."""
        if self._terminal and not os.isatty(0):
            os._exit(129)  # the terminal is gone: nothing can be drawn or asked, and the driver would spin on its ruins
        if not self.screen_stack:
            return  # the viewer is being left: its screens are gone before its clock is
        self._ticks += 1
        changed = self._ticks % 2 == 0 and self.catalog.scan(time.time(), time.monotonic())
        if isinstance(self.screen, ViewerScreen) and self.screen.ready:
            self.screen.look(changed)

    # where to go

    def open_run(self, run: RunEntry) -> None:
        from ctr.tui.screens.run import RunScreen

        self.push_screen(RunScreen(run, self.catalog))

    def on_open_run(self, message: OpenRun) -> None:
        found = self.catalog.find(message.path)
        if found is not None:
            self.open_run(found)

    def on_open_study(self, message: OpenStudy) -> None:
        from ctr.tui.screens.study import StudyScreen

        found = self.catalog.study_of(message.path)
        if found is not None:
            self.push_screen(StudyScreen(found))

    async def action_back(self) -> None:
        if len(self.screen_stack) > 2:
            self.pop_screen()

    async def action_help(self) -> None:
        from ctr.tui.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            await self.push_screen(HelpScreen())

    def action_next_theme(self) -> None:
        names = [theme.name for theme in THEMES]
        place = names.index(self.theme) if self.theme in names else -1
        self.theme = names[(place + 1) % len(names)]

    def say(self, title: str, text: str, *, bad: bool = False) -> None:
        """Show a notice; the text may hold names from disk."""
        self.notify(
            plain(text, 400),
            title=plain(title, 80),
            severity="error" if bad else "information",
            timeout=8 if bad else 3,
            markup=False,
        )

    def get_system_commands(self, screen: Screen[object]) -> list[SystemCommand]:
        """Offer every study and run, and the themes, in the command palette."""
        from .palette import commands

        return commands(self)
