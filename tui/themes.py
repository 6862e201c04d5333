"""The viewer's own themes; every theme of Textual works, too."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="ctr-dark",
    primary="#56b4e9",
    secondary="#7f8ea3",
    accent="#e69f00",
    warning="#e69f00",
    error="#ff7a45",
    success="#00b383",
    foreground="#dfe6ee",
    background="#11151c",
    surface="#161b24",
    panel="#1d2430",
    dark=True,
)
LIGHT = Theme(
    name="ctr-light",
    primary="#0072b2",
    secondary="#5b6675",
    accent="#b86e00",
    warning="#b86e00",
    error="#c23f00",
    success="#007a5a",
    foreground="#1c2430",
    background="#fbfbf9",
    surface="#f2f2ef",
    panel="#e6e7e4",
    dark=False,
)
CONTRAST = Theme(
    name="ctr-contrast",
    primary="#ffffff",
    secondary="#d0d0d0",
    accent="#f0e442",
    warning="#f0e442",
    error="#ff7a45",
    success="#00e0a4",
    foreground="#ffffff",
    background="#000000",
    surface="#000000",
    panel="#262626",
    dark=True,
)
THEMES = (DARK, LIGHT, CONTRAST)
