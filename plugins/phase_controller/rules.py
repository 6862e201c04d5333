"""The one step: state in, observation in, state out."""

from __future__ import annotations

from typing import TypeAlias

from .faithful import Faithful, advance_faithful
from .improved import Improved, advance_improved
from .regimes import Observation, State

Rule: TypeAlias = Faithful | Improved


def advance(state: State, observation: Observation, rule: Rule) -> State:
    """Return the state after one observation; pure, so a run can be replayed from its log."""
    if isinstance(rule, Faithful):
        return advance_faithful(state, observation, rule)
    return advance_improved(state, observation, rule)
