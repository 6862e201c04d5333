"""What criteria say about the rest of a study: their arms, their numbers, and bounds that no number could keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .criteria_spec import Condition, Criterion
from .nodes import Node, shown
from .outcome_names import SPLITS, VALUE, owner_of, reading_kinds, reading_place
from .spec_checks import Metrics, check_split, contrast_of, metrics_of
from .spec_problems import Checker, unknown
from .text import slug_problem
from .treatment import Registry, Treatment

OF_CHANGES = ("better_by", "worse_by_at_most", "within")
OF_VALUES = ("at_least", "at_most")


@dataclass(frozen=True)
class Scope:
    """What a condition is about: the pairs of arms, or one arm alone, and what is installed."""

    pairs: tuple[tuple[str, str], ...]
    arm: str
    treatments: Sequence[Treatment]
    registry: Registry
    checker: Checker

    @property
    def arms(self) -> list[str]:
        return [self.arm] if self.arm else list(dict.fromkeys(arm for pair in self.pairs for arm in pair))


def read_criteria(
    criteria: Mapping[str, Criterion], root: Node, contrasts: Sequence[tuple[str, str]],
    treatments: Sequence[Treatment], registry: Registry, checker: Checker,
) -> tuple[list[dict[str, Any]], Metrics]:  # fmt: skip
    """Return every criterion as study.json holds it, and the metrics of splits that they name."""
    arms = list(root.mapping["arms"].mapping) if "arms" in root.mapping else []
    found: list[dict[str, Any]] = []
    used: Metrics = {}
    for name, rule in criteria.items():
        node = root.mapping["criteria"].mapping[name]
        if why := slug_problem(name):
            checker.add(node.problem(f"as the name of a criterion this {why}", at_key=True))
        who = _who(rule, node, arms, contrasts, checker)
        if who is None:
            continue
        pairs, arm = who
        scope = Scope(tuple(pairs), arm, treatments, registry, checker)
        parts = [
            (rule, node),
            *zip(rule.provided, node.mapping["provided"].items if rule.provided else (), strict=True),
        ]
        conditions = [_condition(part, at, scope, used) for part, at in parts]
        found.append(
            {
                "name": name,
                "contrasts": [list(pair) for pair in pairs],
                "arm": arm,
                "evidence": rule.evidence,
                "weights": rule.weights,
                "conditions": conditions,
            }
        )
    return found, used


def _who(
    rule: Criterion, node: Node, arms: Sequence[str], contrasts: Sequence[tuple[str, str]], checker: Checker
) -> tuple[list[tuple[str, str]], str] | None:
    """Return the contrasts that a rule is about, or its arm; None, with the problem kept, where there is neither."""
    if rule.arm is not None and rule.contrast is not None:
        checker.add(node.mapping["arm"].problem("is given beside a contrast; a criterion is about one of them"))
    elif rule.arm is not None:
        if rule.arm in arms:
            return [], rule.arm
        checker.add(node.mapping["arm"].problem(f"{shown(rule.arm)}: {unknown(rule.arm, arms, 'arm')}"))
    elif rule.contrast is not None:
        pair = contrast_of(rule.contrast, node.mapping["contrast"], arms, checker)
        return ([pair], "") if pair else None
    elif contrasts:
        return list(contrasts), ""
    else:
        checker.add(node.problem("is about every contrast, but the study has none; give a contrast or an arm"))
    return None


# ------------------------------------------------------------------------------------------------------ bounds
def _condition(rule: Condition, node: Node, scope: Scope, used: Metrics) -> dict[str, Any]:
    about = _about(rule, node, scope, used)
    low, high, relative = _bounds(rule, node, scope, str(about.get("unit", "")))
    return {
        "metric": rule.metric,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "relative": relative,
        "unit": about.get("unit", ""),
        "better": about.get("better", "higher"),
    }


def _bounds(rule: Condition, node: Node, scope: Scope, unit: str) -> tuple[float, float, bool]:
    """Return the least and the greatest number allowed, and whether they are fractions of the baseline."""
    amounts = {"better_by": rule.better_by, "worse_by_at_most": rule.worse_by_at_most, "within": rule.within}
    whole = {**amounts, "at_least": rule.at_least, "at_most": rule.at_most}
    given = [key for key, amount in whole.items() if amount is not None]
    wrong = [key for key in given if key in (OF_CHANGES if scope.arm else OF_VALUES)]
    right = " or ".join(OF_VALUES if scope.arm else OF_CHANGES)
    if wrong:
        what = (
            "a change, and this is about one arm" if scope.arm else "the value of one arm, and this is about a change"
        )
        scope.checker.add(node.mapping[wrong[0]].problem(f"bounds {what}; bound it by {right}", at_key=True))
    elif not given:
        scope.checker.add(node.problem(f"has no bound; give {right}"))
    elif scope.arm:
        return _of_value(rule, node, scope.checker)
    elif len(given) > 1:
        text = f"stands beside {given[0]}; a change has one bound, a second one goes under provided"
        scope.checker.add(node.mapping[given[1]].problem(text, at_key=True))
    else:
        return _of_change(given[0], amounts[given[0]] or 0.0, node.mapping[given[0]], unit, scope.checker)
    return -math.inf, math.inf, False


def _of_value(rule: Condition, node: Node, checker: Checker) -> tuple[float, float, bool]:
    low = -math.inf if rule.at_least is None else rule.at_least
    high = math.inf if rule.at_most is None else rule.at_most
    if low > high:
        text = f"contradicts at_most: no number is at least {low:g} and at most {high:g}"
        checker.add(node.mapping["at_least"].problem(text))
    return low, high, False


def _of_change(key: str, amount: float | str, at: Node, unit: str, checker: Checker) -> tuple[float, float, bool]:
    relative = isinstance(amount, str)
    size = float(str(amount).rstrip("% ")) / 100 if relative else float(amount)
    if relative and unit == "%":
        text = f"could mean points or a share, for the metric is in % itself; write {size * 100:g} for points"
        checker.add(at.problem(f"{text}, given {shown(amount)}"))
    low = size if key == "better_by" else -size
    return low, (size if key == "within" else math.inf), relative


# ------------------------------------------------------------------------------------------------------ numbers
def _about(rule: Condition, node: Node, scope: Scope, used: Metrics) -> dict[str, str]:
    """Return unit and direction of a condition's metric, and refuse what no run of the study can have."""
    at = node.mapping["metric"]
    owner = owner_of(rule.metric)
    if owner not in SPLITS and reading_place(rule.metric) is None and owner in scope.registry.plugins:
        return _series(rule, node, owner, scope)
    if rule.better is not None:
        text = f"is known of {rule.metric}; only a series whose plugin declares none takes it"
        scope.checker.add(node.mapping["better"].problem(text, at_key=True))
    if reading_place(rule.metric):
        _check_reading(rule.metric, at, scope)
        lower = owner == VALUE
        return {"unit": "", "better": "lower" if lower else "higher"}
    metrics = metrics_of(scope.treatments, scope.registry, of="last")
    if metrics is None:
        return {}
    if owner not in SPLITS:
        known = [*(f"{split}.{name}" for split in ("test", "val") for name in metrics), *_plugin_names(scope)]
        kinds = ", ".join(f"{kind}.<task>.after.<phase>" for kind in reading_kinds())
        scope.checker.add(
            at.problem(f"{shown(rule.metric)}: {unknown(rule.metric, known, 'metric')}; readings are {kinds}")
        )
        return {}
    name = rule.metric.partition(".")[2]
    if name not in metrics or (owner == "train" and name != "loss"):
        known = ["train.loss", *(f"{split}.{name}" for split in SPLITS[1:] for name in metrics)]
        scope.checker.add(at.problem(f"{shown(rule.metric)}: {unknown(rule.metric, known, 'metric')}"))
        return {}
    if owner != "train":
        check_split(owner, scope.treatments, scope.registry, at, scope.checker)
    used[rule.metric] = metrics[name]
    return metrics[name]


def _plugin_names(scope: Scope) -> Iterator[str]:
    active = {name for treatment in scope.treatments for name in treatment.plugins}
    for plugin in sorted(active):
        declared = getattr(scope.registry.plugins.get(plugin), "metrics", {})
        yield from (f"{plugin}.{name}" for name in declared)


def _series(rule: Condition, node: Node, plugin: str, scope: Scope) -> dict[str, str]:
    """Judge a plugin's series: every arm must name the plugin, and somebody must say which direction is better."""
    at, checker = node.mapping["metric"], scope.checker
    lacking = [t.arm for t in scope.treatments if t.arm in scope.arms and plugin not in t.plugins]
    if lacking:
        text = f"arm {lacking[0]} does not name plugin {plugin}, so it has no {rule.metric}; name {plugin} there too"
        checker.add(at.problem(text))
    name = rule.metric.partition(".")[2]
    declared = getattr(scope.registry.plugins[plugin], "metrics", {})
    known = declared.get(name) or declared.get(name.partition(".")[0])
    if known is not None:
        if rule.better not in (None, known.better):
            text = f"contradicts plugin {plugin}, which says that {known.better} is better"
            checker.add(node.mapping["better"].problem(text))
        return {"unit": known.unit, "better": known.better}
    if declared and rule.better is None:
        named = [f"{plugin}.{one}" for one in declared]
        tail = "; of another series of it, say which direction is better: better: higher or lower"
        checker.add(at.problem(f"{shown(rule.metric)}: {unknown(rule.metric, named, 'metric').rstrip('.')}{tail}"))
    elif rule.better is None and not scope.arm:
        checker.add(at.problem(f"plugin {plugin} does not say which direction is better; add better: higher or lower"))
    return {"unit": "", "better": rule.better or "higher"}


def _check_reading(name: str, at: Node, scope: Scope) -> None:
    place = reading_place(name)
    assert place is not None
    if place.kind not in reading_kinds():
        scope.checker.add(at.problem(f"{shown(place.kind)}: {unknown(place.kind, reading_kinds(), 'reading')}"))
    for treatment in scope.treatments:
        if treatment.arm in scope.arms:
            phases = [*([] if place.kind != VALUE else ["start"]), *(phase.name for phase in treatment.phases)]
            if not _known(place.task, treatment.tasks, "task", at, treatment.arm, scope.checker):
                return
            if not _known(place.after, phases, "phase", at, treatment.arm, scope.checker):
                return


def _known(name: str, names: Iterable[str], what: str, at: Node, arm: str, checker: Checker) -> bool:
    known = list(names)
    if known and name not in known:
        checker.add(at.problem(f"in arm {arm}, {shown(name)}: {unknown(name, known, what)}"))
        return False
    return True
