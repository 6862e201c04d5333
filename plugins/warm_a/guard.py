"""Whether adaptation has helped of late: a judgement over gains on tokens that were scored already."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class State:
    """The last gains as (nats gained, tokens), and whether they were a loss."""

    window: tuple[tuple[float, int], ...] = ()
    alarm: bool = False


def gain(window: tuple[tuple[float, int], ...]) -> float:
    """Return the gain over a window in nats a token: Σ (loss of the base - loss with the adapter) / Σ tokens."""
    tokens = sum(count for _, count in window)
    return math.fsum(nats for nats, _ in window) / tokens if tokens else 0.0


def advance(state: State, nats: float, tokens: int, groups: int, margin: float) -> State:
    """Observe one stretch between two resets: nats gained over its tokens.

    The alarm is raised where the last `groups` stretches, no fewer, gained less than -margin nats a token together; the
    window then begins anew, for what comes next has another A. Only losses of tokens that were scored before the reset
    in question enter, each before it was trained on. Breaks in a second pass over the same rows: what is known by heart
    then counts as gain.
    """
    window = (*state.window, (nats, tokens))[-groups:]
    alarm = len(window) == groups and gain(window) < -margin
    return State((), True) if alarm else replace(state, window=window, alarm=False)
