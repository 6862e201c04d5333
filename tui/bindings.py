"""Every key of the viewer, once: the screens bind from this table and the help screen is made from it."""

from __future__ import annotations

from typing import NamedTuple

from textual.binding import Binding

HELP_ORDER = ("app", "runs", "run", "chart", "study", "compare")
TITLES = {
    "app": "Everywhere",
    "runs": "Studies and runs",
    "run": "A run",
    "chart": "A chart",
    "study": "A study",
    "compare": "Compare",
}


class Key(NamedTuple):
    """One row: where it holds, the keys, the action, what it does, and whether the footer shows it."""

    place: str
    keys: str
    action: str
    text: str
    footer: str = ""  # the footer's short word; empty: only in help


KEYS = (
    Key("app", "question_mark,f1", "help", "Show this help", "Help"),
    Key("app", "ctrl+p", "command_palette", "Find any run, study, or command by typing"),
    Key("app", "t", "next_theme", "Next theme"),
    Key("app", "q,ctrl+c", "quit", "Leave the viewer; runs go on", "Quit"),
    Key("app", "escape,backspace", "back", "Go back to where you came from"),
    Key("runs", "enter", "open", "Open the run or the study under the cursor", "Open"),
    Key("runs", "up,k", "move(-1)", "Up; following the newest live run ends"),
    Key("runs", "down,j", "move(1)", "Down"),
    Key("runs", "pageup,ctrl+b", "page(-1)", "A page up"),
    Key("runs", "pagedown,ctrl+f", "page(1)", "A page down"),
    Key("runs", "home,g", "jump(0)", "First row"),
    Key("runs", "end,G", "jump(1)", "Last row"),
    Key("runs", "left,h", "fold(True)", "Fold the study or arm"),
    Key("runs", "right,l", "fold(False)", "Unfold it"),
    Key("runs", "slash", "filter", "Show only rows that hold a text; several words must all be found", "Filter"),
    Key("runs", "s", "sort", "Sort by the next column (or click its head)", "Sort"),
    Key("runs", "S", "reverse", "Turn the order around"),
    Key("runs", "f", "follow", "Follow the newest live run again", "Follow"),
    Key("runs", "space", "pick", "Pick runs, arms or studies to compare", "Pick"),
    Key("runs", "c", "compare", "Compare what is picked", "Compare"),
    Key("runs", "v", "study", "Open the study under the cursor"),
    Key("run", "1,2,3,4,5,6,7,8", "tab(#)", "Charts, rates, why, events, matrix, spec, origin, panels of plugins"),
    Key("run", "tab", "next_chart", "Go to the next chart"),
    Key("run", "e", "series", "Choose the series of this chart; several at once", "Series"),
    Key("run", "n", "new_chart", "Add a chart"),
    Key("run", "x", "drop_chart", "Remove this chart"),
    Key("run", "m", "maximize", "This chart alone, and back"),
    Key("run", "y", "log", "Logarithmic height, and back", "Log"),
    Key("run", "w", "smooth", "Smooth: off, 10, 100, 1000 rows", "Smooth"),
    Key("run", "a", "axis", "Next axis: steps, epochs, items, seconds", "Axis"),
    Key("run", "p", "control('pause')", "Pause the run between two updates; again to resume", "Pause"),
    Key("run", "K", "control('checkpoint')", "Ask for a checkpoint now"),
    Key("run", "X", "control('stop')", "Stop the run after a checkpoint", "Stop"),
    Key("run", "v", "study", "Open the study of this run", "Study"),
    Key("run", "greater_than_sign,N", "neighbour(1)", "Next run of the study"),
    Key("run", "less_than_sign,P", "neighbour(-1)", "Previous run of the study"),
    Key("chart", "left", "cursor(-1)", "Cursor left: exact values there, in every panel"),
    Key("chart", "right", "cursor(1)", "Cursor right; past the end it follows the run again"),
    Key("chart", "ctrl+left", "cursor(-10)", "Cursor ten columns left"),
    Key("chart", "ctrl+right", "cursor(10)", "Cursor ten columns right"),
    Key("chart", "home", "cursor_end('first')", "Cursor to the first row"),
    Key("chart", "end", "cursor_end('last')", "Cursor to the newest row, following"),
    Key("chart", "plus,equals_sign", "zoom(0.5)", "Zoom in about the cursor (or wheel)"),
    Key("chart", "minus", "zoom(-0.334)", "Zoom out"),
    Key("chart", "shift+up", "zoom(0.5, True)", "Zoom in on the height"),
    Key("chart", "shift+down", "zoom(-0.334, True)", "Zoom out of the height"),
    Key("chart", "shift+left", "pan(0.25, 0)", "Pan left (or drag)"),
    Key("chart", "shift+right", "pan(-0.25, 0)", "Pan right"),
    Key("chart", "r,0", "reset_scales", "Show all, follow the end"),
    Key("study", "e", "series", "Choose the series that is drawn over seeds", "Series"),
    Key("study", "o", "metric", "Next metric of the paired panel", "Metric"),
    Key("study", "y", "log", "Logarithmic height", "Log"),
    Key("study", "enter", "runs", "List the runs of this study", "Runs"),
    Key("study", "c", "compare", "Compare the arms of this study", "Compare"),
    Key("compare", "e", "series", "Choose the series to overlay", "Series"),
    Key("compare", "a", "axis", "Next axis: epochs, steps, items, seconds", "Axis"),
    Key("compare", "y", "log", "Logarithmic height", "Log"),
    Key("compare", "w", "smooth", "Smooth: off, 10, 100, 1000 rows", "Smooth"),
    Key("compare", "d", "spec", "Difference of the resolved specs, and back", "Specs"),
)


def bindings(place: str) -> list[Binding]:
    """Return the bindings of one screen or widget. `#` in an action is the place of the key among its keys."""
    return [
        Binding(keys, key.action.replace("#", str(k)), key.footer or key.text, show=bool(key.footer))
        for key in KEYS
        if key.place == place
        for k, keys in enumerate(key.keys.split(",") if "#" in key.action else [key.keys])
    ]
