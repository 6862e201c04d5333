"""Routes on a finished run: what its folder holds, as the plugin would have seen it at the run's end."""

from __future__ import annotations

from ctr.engine.errors import UsageError
from ctr.engine.reopen import Reopened
from ctr.engine.text import printable

from .methods import Comparison
from .plugin import Routed
from .scoring import Scorer
from .settings import RoutedConfig
from .snapshots import Snapshots


def snapshots_of(found: Reopened) -> Snapshots:
    """Return the states of a run's adapter; raises `UsageError` where the run has none that stand beside its base."""
    shown = printable(found.run.path, 200)
    if found.adapter is None or not found.adapter.one:
        raise UsageError(f"{shown}: its last phase trains no adapter that could be composed")
    if not found.snapshots:
        text = "keeps no adapter by phase: it was trained before these were kept, or folded its adapter into the base"
        raise UsageError(f"{shown}: {text}; train it again")
    return Snapshots.of(found.snapshots, found.adapter.factors)


def comparison(found: Reopened, config: RoutedConfig) -> Comparison:
    """Return the methods of some settings on a run; raises `UsageError` where they cannot act in it."""
    states = snapshots_of(found)
    problem = Routed.misfit(config, found.spec, found.adapter)
    if problem is not None:
        raise UsageError(problem)
    trained = {phase.name: phase.task for phase in found.spec.phases if phase.name in states.phases}
    return Comparison(config, Scorer(found.evaluate, states, trained, config.split))
