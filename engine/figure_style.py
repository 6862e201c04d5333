"""How every figure looks: colours that all eyes tell apart, matplotlib's own defaults, and no date in any file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, made for every kind of colour vision, and one more
ARMS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C6D31")
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)), (0, (3, 4)))
DASHES = ((0, (6, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)), (0, (1, 1)))
TINTS = ("#dcdcdc", "#fbe7a1", "#c7e5cf", "#c6dbf2", "#ead1e6", "#f6d3bd")
INK, FAINT = "#222222", "#8a8a8a"
SETTINGS: Any = {
    "text.parse_math": False,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e9e9e9",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 120,
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's own defaults and ours, not the user's, so that equal numbers give equal bytes.

    Without pyplot nothing outside is touched. A glyph that the font lacks is drawn as a box, not a warning.
    """
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        yield


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def label(text: object, longest: int = 40) -> str:
    """Return a text that is safe and short enough to be drawn."""
    return printable(text, longest)
