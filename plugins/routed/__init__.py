"""Compositions of the adapters that a run's phases trained, chosen and judged on its own tasks."""

from .plugin import Routed

__all__ = ["Routed"]
