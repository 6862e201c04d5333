"""Cells of characters and colours, filled by numpy and handed to a textual-plot canvas in one go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len
from textual_hires_canvas import Canvas

from ctr.tui.raster import Bits, cells


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

    def copy_to(self, canvas: Canvas, left: int, top: int) -> None:
        """Write the cells into the canvas at an offset."""
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
            canvas._buffer[top + y][left : left + self.width] = row
            canvas._styles[top + y][left : left + self.width] = [styles[pair] for pair in look]


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


def put(canvas: Canvas, x: int, y: int, text: str, style: str) -> None:
    """Write printable text straight into a canvas, without the markup parser of its own `write_text`."""
    if not 0 <= y < len(canvas._buffer):
        return
    row, styles = canvas._buffer[y], canvas._styles[y]
    if text.isascii() and x >= 0 and x + len(text) <= len(row):
        row[x : x + len(text)] = text
        styles[x : x + len(text)] = [style] * len(text)
        return
    look = [(0, 0)] * len(row)
    _overlay(row, look, x, text, 1)
    for k, (ink, _) in enumerate(look):
        if ink:
            styles[k] = style
