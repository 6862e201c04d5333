"""A learning-rate controller driven by the loss derivative."""

from .plugin import PhaseController

__all__ = ["PhaseController"]
