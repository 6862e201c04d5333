"""Checkpoint gate: keeps the best snapshot among those that pass guards on other metrics."""

from .plugin import CheckpointGate

__all__ = ["CheckpointGate"]
