"""Cells of characters and colours: filled by numpy, laid on sheets, and turned into the lines of a widget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from ctr.tui.raster import Bits, cells


class Sheet:
    """A grid of characters with a style, as text, at each."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = max(width, 0), max(height, 0)
        self.text: list[list[str]] = [[" "] * self.width for _ in range(self.height)]
        self.look: list[list[str]] = [[""] * self.width for _ in range(self.height)]

    def put(self, x: int, y: int, text: str, style: str) -> None:
        """Write printable text; what falls outside is cut."""
        if not 0 <= y < self.height:
            return
        row, styles = self.text[y], self.look[y]
        if text.isascii() and x >= 0 and x + len(text) <= len(row):
            row[x : x + len(text)] = text
            styles[x : x + len(text)] = [style] * len(text)
            return
        look = [(0, 0)] * len(row)
        _overlay(row, look, x, text, 1)
        for k, (ink, _) in enumerate(look):
            if ink:
                styles[k] = style

    def beside(self, other: Sheet) -> Sheet:
        """Return both side by side, as high as the other."""
        joined = Sheet(0, 0)
        joined.width, joined.height = self.width + other.width, other.height
        joined.text = [a + b for a, b in zip(self.text, other.text, strict=True)]
        joined.look = [a + b for a, b in zip(self.look, other.look, strict=True)]
        return joined

    def strips(self, base: Style) -> list[Strip]:
        """Return the lines as a terminal gets them, cells of one style in one piece."""
        known = {"": base}
        return [
            Strip(_runs(row, look, base, known), self.width) for row, look in zip(self.text, self.look, strict=True)
        ]


def _runs(row: list[str], look: list[str], base: Style, known: dict[str, Style]) -> list[Segment]:
    out, begin = [], 0
    for k in range(1, len(look) + 1):
        if k == len(look) or look[k] != look[begin]:
            name = look[begin]
            style = known.get(name)
            if style is None:
                style = known[name] = base + Style.parse(name)
            out.append(Segment("".join(row[begin:k]), style))
            begin = k
    return out


class Cells:
    """A grid of (height, width) cells: Braille dots with one owner, a background, and characters laid over both."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.bits: Bits = np.zeros((height, width), np.uint8)
        self.ink: NDArray[np.int32] = np.zeros((height, width), np.int32)
        self.paper: NDArray[np.int32] = np.zeros((height, width), np.int32)
        self.inks: list[str] = [""]
        self.papers: list[str] = [""]
        self.text: list[tuple[int, int, str, int]] = []

    def new_ink(self, style: str) -> int:
        if style not in self.inks:
            self.inks.append(style)
        return self.inks.index(style)

    def dots(self, dots: NDArray[np.bool_], style: str) -> None:
        """Lay dots (4 height, 2 width) over what is there; a touched cell takes the new colour."""
        bits = cells(dots)
        self.bits |= bits
        self.ink[bits > 0] = self.new_ink(style)

    def shade(self, first: int, last: int, colour: str) -> None:
        """Give columns `first` to `last`, inclusive, a background."""
        if colour not in self.papers:
            self.papers.append(colour)
        self.paper[:, max(first, 0) : max(last + 1, 0)] = self.papers.index(colour)

    def write(self, x: int, y: int, text: str, style: str) -> None:
        """Put printable text at a cell; what falls outside is cut."""
        if 0 <= y < self.height:
            self.text.append((x, y, text, self.new_ink(style)))

    def empty(self, x: int, y: int, width: int) -> bool:
        return 0 <= x and x + width <= self.width and not self.bits[y, x : x + width].any()

    def copy_to(self, sheet: Sheet, left: int, top: int) -> None:
        """Write the cells onto a sheet at an offset."""
        styles: dict[tuple[int, int], str] = {}
        for y in range(self.height):
            row = [chr(0x2800 + b) if b else " " for b in self.bits[y].tolist()]
            look = list(zip(self.ink[y].tolist(), self.paper[y].tolist(), strict=True))
            for x, line, text, ink in self.text:
                if line == y:
                    _overlay(row, look, x, text, ink)
            for pair in set(look) - styles.keys():
                ink_style, paper = self.inks[pair[0]], self.papers[pair[1]]
                styles[pair] = f"{ink_style} on {paper}".strip() if paper else ink_style
            sheet.text[top + y][left : left + self.width] = row
            sheet.look[top + y][left : left + self.width] = [styles[pair] for pair in look]


def _overlay(row: list[str], look: list[tuple[int, int]], x: int, text: str, ink: int) -> None:
    for character in text:
        width = cell_len(character)
        if width == 0:
            if 0 < x <= len(row):
                row[x - 1] += character
            continue
        if x < 0 or x + width > len(row):
            x += width
            continue
        row[x] = character
        look[x] = (ink, look[x][1])
        if width == 2:
            row[x + 1] = ""
            look[x + 1] = look[x]
        x += width
