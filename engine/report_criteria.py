"""Every criterion of a study, evaluated from its run folders."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from . import stats
from .criteria import Estimate, Evidence, Judged, asked, judge, scaled, together
from .outcomes import Outcomes
from .report_read import mapping, number, sequence, strings, text

LEAST, MOST = -math.inf, math.inf
SAID = {"pass": "passes", "fail": "fails", "undecided": "is undecided"}


def criteria(outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return the verdict on every criterion of the index, for each of its contrasts (or its arm) at every point."""
    rules = [mapping(rule) for rule in sequence(outcomes.study.index.get("criteria"))]
    return [row for rule in rules for row in _rows(outcomes, rule)]


def _rows(outcomes: Outcomes, rule: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    pairs = [pair for one in sequence(rule.get("contrasts")) if len(pair := strings(one)) == 2]
    arm = text(rule.get("arm"))
    for who in pairs or ([[arm]] if arm else []):
        for point in outcomes.study.points_of(*who):
            yield _judged(outcomes, rule, who, point)


def _judged(outcomes: Outcomes, rule: Mapping[str, Any], who: Sequence[str], point: str) -> dict[str, Any]:
    evidence: Evidence = "mean" if rule.get("evidence") == "mean" else "interval"
    weights = "last" if rule.get("weights") == "last" else "selected"
    parts = [_part(outcomes, mapping(c), who, point, evidence, weights) for c in sequence(rule.get("conditions"))]
    whole = together([Judged(part["verdict"], part["reason"]) for part in parts])
    name, about = text(rule.get("name")), " − ".join(who) + (f" at {point}" if point else "")
    at_fault = next((i for i, part in enumerate(parts) if part["verdict"] == whole.verdict), 0)
    chosen = parts[at_fault] if whole.verdict != "pass" and parts else None
    return {
        "name": name,
        "who": about,
        "arms": list(who),
        "point": point,
        "evidence": evidence,
        "weights": weights,
        "verdict": whole.verdict,
        "reason": f"{chosen['metric']}: {whole.reason}" if chosen else "",
        "conditions": parts,
        "sentence": _sentence(name, about, whole.verdict, [chosen] if chosen else parts),
    }


def _part(
    outcomes: Outcomes, condition: Mapping[str, Any], who: Sequence[str], point: str, evidence: Evidence, weights: str
) -> dict[str, Any]:
    metric = text(condition.get("metric"))
    better: Literal["higher", "lower"] = "lower" if _better(outcomes, condition, metric) == "lower" else "higher"
    relative = condition.get("relative") is True
    low, high = (_bound(condition.get(key), none) for key, none in (("low", LEAST), ("high", MOST)))
    if len(who) == 2:
        found = _change(outcomes, metric, (who[0], who[1]), point, better, weights, relative)
    else:
        found = outcomes.spread(who[0], point, metric, weights)
    if relative:
        low, high = 100 * low, 100 * high
    judged = judge(found, low, high, evidence)
    return {
        "metric": metric,
        "better": better,
        "low": low if math.isfinite(low) else None,
        "high": high if math.isfinite(high) else None,
        "change": len(who) == 2,
        "asked": asked(low, high, found.unit, len(who) == 2),
        **asdict(found),
        "verdict": judged.verdict,
        "reason": judged.reason,
    }


def _better(outcomes: Outcomes, condition: Mapping[str, Any], metric: str) -> str:
    """Prefer what runs declare to what the spec said, which speaks only where they do not."""
    return outcomes.about(metric).better or text(condition.get("better"))


def _bound(value: Any, none: float) -> float:
    found = number(value)
    return none if found is None else found


def _change(
    outcomes: Outcomes, metric: str, who: tuple[str, str], point: str, better: Literal["higher", "lower"],
    weights: str, relative: bool,
) -> Estimate:  # fmt: skip
    """Return the paired change, positive where better; differences that are all exactly zero are known exactly."""
    pairs = outcomes.pairs(*who, point, metric, weights)
    result = stats.paired(pairs, better, who)
    unit = stats.difference_unit(outcomes.about(metric).unit)
    if not result.n:
        causes = dict.fromkeys(why for _, why in result.dropped)
        return Estimate(unit="%" if relative else unit, reason="; ".join(causes) or "no run has it")
    if relative:
        change = outcomes.change(pairs, result, better)
        reason = change.reason or ("" if change.interval else result.reason)
        return scaled(Estimate(result.n, change.mean, change.interval, "", reason), 100, "%")
    exact = (0.0, 0.0) if result.verdict == "identical" else result.interval
    return Estimate(result.n, result.mean, exact, unit, "" if exact else result.reason)


def _sentence(name: str, about: str, verdict: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """Say a verdict with the numbers that carry it: all of a pass, the part at fault of anything else."""
    told = "; ".join(_told(part) for part in parts) or "it names no condition"
    return f"{name}, {about}: {SAID[verdict]}: {told}."


def _told(part: Mapping[str, Any]) -> str:
    tail = f" {part['unit']}" if part["unit"] else ""
    said = str(part["metric"])
    if part["mean"] is not None:
        said += f" changes by {part['mean']:+.3g}{tail}" if part["change"] else f" is {part['mean']:.4g}{tail}"
    if part["interval"]:
        said += ", 95 % interval [{:{sign}.3g}, {:{sign}.3g}]".format(*part["interval"], sign="+" * part["change"])
    said += f", n = {part['n']}" if part["n"] else ""
    said += f", asked {part['asked']}"
    return said + (f": {part['reason']}" if part["reason"] else "")
