"""Controls: treatments that tell a reaction apart from its side effects."""

from .plugin import ConstantScale, RandomRegimes, ReplayRates

__all__ = ["ConstantScale", "RandomRegimes", "ReplayRates"]
