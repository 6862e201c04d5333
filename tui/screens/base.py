"""What all screens of the viewer share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.screen import Screen

if TYPE_CHECKING:
    from ctr.tui.app import Viewer


class ViewerScreen(Screen[None]):
    """A screen that is told, a few times a second while it is visible, to look at its files."""

    ready = False  # its widgets exist
    held = False  # nothing is painted before the first picture: an empty frame costs as much as a full one

    def on_mount(self) -> None:
        self.ready = True

    def _compositor_refresh(self) -> None:
        if not self.held:
            super()._compositor_refresh()

    def release(self) -> None:
        """Paint from now on."""
        if self.held:
            self.held = False
            self.refresh()

    def look(self, changed: bool) -> None:
        """Read on and draw what is new. `changed` says that the list of runs did."""

    @property
    def viewer(self) -> Viewer:
        from ctr.tui.app import Viewer

        assert isinstance(self.app, Viewer)
        return self.app

    @property
    def dark(self) -> bool:
        return self.app.current_theme.dark


class Nothing(Screen[None]):
    """The screen below all others, which nobody ever sees."""

    def _compositor_refresh(self) -> None:
        """Paint nothing."""
