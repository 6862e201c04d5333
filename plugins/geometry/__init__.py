"""Terms on hidden states, attention maps and branches, and metrics of their geometry."""

from .plugin import Geometry

__all__ = ["Geometry"]
