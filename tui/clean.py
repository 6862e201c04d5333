"""The one place where text from disk becomes something a widget may show.

Textual and rich pass escape codes through and read `[...]` as markup when given a plain string; a `Text` built from
printable characters does neither.
"""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from ctr.engine.text import printable


def clean(value: object, style: str | Style = "", longest: int = 2000) -> Text:
    """Return `value` as text that no terminal obeys and no markup parser reads."""
    return Text(printable(value, longest), style, no_wrap=True, end="")


def plain(value: object, longest: int = 200) -> str:
    """Return `value` as one printable line, for places that take a plain string that is never parsed."""
    return printable(value, longest)


def fit(text: str, width: int, right: bool = False) -> str:
    """Return printable `text` in exactly `width` cells, cut with an ellipsis or padded."""
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, max(width - 1, 0)) + "…" if width > 0 else ""
    pad = " " * (width - length)
    return pad + text if right else text + pad
