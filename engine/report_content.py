"""What a report says, as one tree of plain values: the verdicts, the figures behind them, and how the runs went."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from . import stats
from .inference import mean_of, sd_of
from .report_items import paired_items
from .report_read import Run, Study, mapping, number, strings, text
from .report_routes import routes
from .report_runs import cached, disabled, exactness, run_row, why_no_value
from .report_transfer import transfer

HASHES = ("weights", "data_order", "evaluation_items")
WEIGHTS = ("selected", "last")


def content(study: Study) -> dict[str, Any]:
    """Return everything the report says, in the order it is shown."""
    contrasts = _contrasts(study)
    return {
        "study": study.name,
        "question": text(study.index.get("question")),
        "arms": study.arms,
        "seeds": study.seeds,
        "points": study.points,
        "metrics": {name: dict(zip(("unit", "better"), study.metric(name), strict=True)) for name in _metrics(study)},
        "select": mapping(study.index.get("select")),
        "threads": study.index.get("threads"),
        "exactness": exactness(study),
        "cached": cached(study),
        "verdicts": [contrast["sentence"] for contrast in contrasts],
        "contrasts": contrasts,
        "values": _values(study),
        "matching": _matching(study),
        "incomplete": _incomplete(study, contrasts),
        "items": paired_items(study),
        **transfer(study),
        **routes(study),
        "runs": [run_row(run) for run in study.runs],
        "replays": mapping(study.index.get("replays")),
        "problems": _problems(study),
        "figures": [],
    }


def _problems(study: Study) -> list[str]:
    """Name what could not be read; runs without a folder, as those that were not asked for yet, share a line."""
    missing = [run.name for run in study.runs if run.state == "missing"]
    lines = [f"{len(missing)} of {len(study.runs)} runs have no folder: {', '.join(missing)}"] if missing else []
    return (
        disabled(study)
        + study.problems
        + lines
        + [f"{run.name}: {line}" for run in study.runs for line in run.problems]
    )


def _metrics(study: Study) -> list[str]:
    return strings(study.index.get("on"))


def value_of(study: Study, run: Run | None, metric: str, weights: str) -> float | None:
    """Return a finished run's number: what was evaluated on these weights, else the selected (or last) epoch's."""
    if run is None or not run.finished:
        return None
    split, _, name = metric.partition(".")
    read = [e for e in run.of("evaluation") if e.get("split") == split and e.get("weights") == weights]
    if read:
        return number(mapping(read[-1].get("values")).get(name))
    epoch = selected_epoch(study, run) if weights == "selected" else (run.epochs[-1] if run.epochs else None)
    return epoch_value(epoch, metric) if epoch else None


def epoch_value(epoch: Mapping[str, Any], metric: str) -> float | None:
    """Return what the record of an epoch says about a metric such as `val.loss` or `train.loss`."""
    split, _, name = metric.partition(".")
    where = epoch.get("train") if split == "train" else mapping(epoch.get("evaluations")).get(split)
    return number(mapping(where).get(name))


def selected_epoch(study: Study, run: Run) -> dict[str, Any] | None:
    """Return the record of the epoch that `compare.select` chooses: the best of the last phase, the earliest of equals.

    An earlier phase has another task as a rule, whose losses are lower or higher for reasons of their own.
    """
    select = mapping(study.index.get("select"))
    on = text(select.get("on")) or "val.loss"
    sign = 1 if (text(select.get("better")) or study.metric(on)[1]) == "lower" else -1
    last = max((number(epoch.get("phase_index")) or 0 for epoch in run.epochs), default=0)
    here = [(i, e) for i, e in enumerate(run.epochs) if (number(e.get("phase_index")) or 0) == last]
    found = [(sign * v, i) for i, e in here if (v := epoch_value(e, on)) is not None]
    found = [(v, i) for v, i in found if math.isfinite(v)]
    return run.epochs[min(found)[1]] if found else None


def _contrasts(study: Study) -> list[dict[str, Any]]:
    """Return every contrast at every point for every metric; Holm runs over all of a metric's."""
    rows: list[dict[str, Any]] = []
    for metric in _metrics(study):
        cells = [(a, b, point) for a, b in study.contrasts for point in study.points_of(a, b)]
        on = {weights: [_paired(study, *cell, metric, weights) for cell in cells] for weights in WEIGHTS}
        judged = stats.judge(on["selected"])
        rows += [_row(study, *c, metric, r, last) for c, r, last in zip(cells, judged, on["last"], strict=True)]
    return sorted(rows, key=lambda row: (study.contrasts.index((row["a"], row["b"])), study.points.index(row["point"])))


def _paired(study: Study, a: str, b: str, point: str, metric: str, weights: str) -> stats.Paired:
    pairs = {}
    for seed in study.seeds:
        runs = study.at(a, seed, point), study.at(b, seed, point)
        if any(runs):
            pairs[seed] = value_of(study, runs[0], metric, weights), value_of(study, runs[1], metric, weights)
    return stats.paired(pairs, "lower" if study.metric(metric)[1] == "lower" else "higher", (a, b))


def _row(
    study: Study, a: str, b: str, point: str, metric: str, result: stats.Paired, last: stats.Paired
) -> dict[str, Any]:
    same = {slug: _same_weights(study, a, b, point, result.seeds, slug) for slug in WEIGHTS}
    if result.verdict == "identical":
        result = replace(result, reason=f"{result.reason}; {_proof(result, same)}")
    unit, better = study.metric(metric)
    return {
        "a": a,
        "b": b,
        "point": point,
        "metric": metric,
        "unit": unit,
        "better": better,
        **result.as_dict(),
        "pairs": [
            _pair(study, a, b, point, metric, seed, d) for seed, d in zip(result.seeds, result.differences, strict=True)
        ],
        "identical_weights": same,
        "last": {key: value for key, value in last.as_dict().items() if key in ("n", "mean", "sd", "interval", "t_p")},
        "sentence": stats.sentence(result, a, b, f"{metric} at {point}" if point else metric, unit),
    }


def _pair(study: Study, a: str, b: str, point: str, metric: str, seed: int, difference: float) -> dict[str, Any]:
    values = [value_of(study, study.at(arm, seed, point), metric, "selected") for arm in (a, b)]
    return {"seed": seed, "a": values[0], "b": values[1], "difference": difference}


def _same_weights(study: Study, a: str, b: str, point: str, seeds: Iterable[int], slug: str) -> list[int]:
    """Return the seeds at which both arms ended with the same weights, bit for bit, by their hashes."""
    same = []
    for seed in seeds:
        runs = study.at(a, seed, point), study.at(b, seed, point)
        digests = [run.digest(slug) if run else None for run in runs]
        if digests[0] is not None and digests[0] == digests[1]:
            same.append(seed)
    return same


def _proof(result: stats.Paired, same: Mapping[str, list[int]]) -> str:
    equal, n = len(same["last"]), result.n
    if equal == n:
        where = {1: "that seed", 2: "both seeds"}.get(n, f"all {n} seeds")
        return f"the last weights have equal hashes at {where}"
    if equal:
        return f"the last weights have equal hashes at {equal} of {n} seeds, elsewhere only the numbers agree"
    return "only the numbers agree: the hashes of the last weights differ or are missing"


def _values(study: Study) -> list[dict[str, Any]]:
    """Return mean, sd and every seed's value of each arm, on the selected and on the last weights."""
    rows = []
    for metric in _metrics(study):
        for arm in study.arms:
            for point in study.points_of(arm):
                row: dict[str, Any] = {"metric": metric, "arm": arm, "point": point, "unit": study.metric(metric)[0]}
                for weights in WEIGHTS:
                    row[weights] = _spread(study, arm, point, metric, weights)
                rows.append(row)
    return rows


def _spread(study: Study, arm: str, point: str, metric: str, weights: str) -> dict[str, Any]:
    import numpy as np

    by_seed = {seed: value_of(study, study.at(arm, seed, point), metric, weights) for seed in study.seeds}
    usable = np.array([v for v in by_seed.values() if v is not None and abs(v) <= stats.LARGEST])
    mean = mean_of(usable) if len(usable) else None
    return {"n": len(usable), "mean": mean, "sd": sd_of(usable), "by_seed": {str(s): v for s, v in by_seed.items()}}


def _matching(study: Study) -> list[dict[str, Any]]:
    """Compare the hashes of initial weights, data order and evaluation items over the arms, seed by seed."""
    rows = []
    for point in study.points_of(*study.arms):
        for seed in study.seeds:
            found = [study.at(arm, seed, point) for arm in study.arms]
            runs = [run for run in found if run and run.state != "missing"]
            row: dict[str, Any] = {"seed": seed, "point": point}
            for what in HASHES:
                row[what] = _agreement({run.arm: _hash(run, what) for run in runs})
            if row["weights"]["said"] == "differs" and _only_adapters_differ(runs):
                row["weights"]["said"] = "matched but for the adapters, whose settings differ"
            rows += [row] if runs else []
    return rows


def _hash(run: Run, what: str) -> str:
    return text(mapping(run.provenance.get("hashes")).get(what))


def _only_adapters_differ(runs: Iterable[Run]) -> bool:
    """Say whether all runs have one base, and those of equal adapter settings equal weights."""
    by_adapter: dict[str, set[str]] = {}
    bases = {_hash(run, "base") for run in runs}
    for run in runs:
        by_adapter.setdefault(repr(run.spec.get("adapter")), set()).add(_hash(run, "weights"))
    return len(bases) == 1 and "" not in bases and all(len(hashes) == 1 for hashes in by_adapter.values())


def _agreement(by_arm: Mapping[str, str]) -> dict[str, Any]:
    groups: dict[str, list[str]] = {}
    for arm, digest in by_arm.items():
        groups.setdefault(digest, []).append(arm)
    missing = groups.pop("", [])
    said = "one arm" if len(by_arm) == 1 and groups else "matched" if len(groups) == 1 else "differs"
    if not groups or (missing and said != "differs"):
        said = "unknown"
    return {"said": said, "hashes": {digest: arms for digest, arms in groups.items()}, "missing": missing}


def _incomplete(study: Study, contrasts: Iterable[Mapping[str, Any]]) -> list[str]:
    """Name every pair that was dropped, and why; seeds and metrics that share a cause share a line."""
    found: dict[tuple[str, str, str, str], tuple[list[int], list[str]]] = {}
    for row in contrasts:
        for seed, why in row["dropped"]:
            runs = {arm: study.at(arm, seed, row["point"]) for arm in (row["a"], row["b"])}
            causes = [why_no_value(arm, run) for arm, run in runs.items() if run is None or not run.finished]
            key = row["a"], row["b"], row["point"], "; ".join(causes) or why
            seeds, metrics = found.setdefault(key, ([], []))
            seeds += [seed] if seed not in seeds else []
            metrics += [row["metric"]] if row["metric"] not in metrics else []
    return [_dropped(*key, *what) for key, what in found.items()]


def _dropped(a: str, b: str, point: str, cause: str, seeds: list[int], metrics: list[str]) -> str:
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{a} - {b}{' at ' + point if point else ''} on {', '.join(metrics)}: {named} dropped: {cause}"
