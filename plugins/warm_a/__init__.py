"""What becomes of an adapter where a document, a phase or a stretch of steps ends."""

from .plugin import WarmA

__all__ = ["WarmA"]
