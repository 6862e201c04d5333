"""Studies of several short phases on digits, what their runs hold, and how many updates they were trained for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctr.engine import study as studies
from ctr.engine.build import build, settle_exactness
from ctr.engine.events_log import read_events
from ctr.engine.host import discover
from ctr.engine.order import Order
from ctr.engine.phase_keys import phase_keys
from ctr.engine.spec import load_study
from ctr.engine.verify import compare

HEAD = """\
question: Is it taken over?
seeds: [1]
model: {kind: small_resnet, width: 2}
tasks:
  A: {kind: image_classification, data: {source: digits}}
  B: {kind: image_classification, data: {source: digits, split_seed: 5}, augment: {crop: 1, flip: true}}
train:
  epochs: 1
  epoch_batches: 2
  micro_batch: 64
  threads: 1
  optimizer: {kind: sgd, base_lr: 0.05, momentum: 0.9}
compare: {on: [test.accuracy]}
"""
OFF = "checkpoint.cache=false"
CONTROLLER = ", plugins: {phase_controller: {rule: faithful, window: 1, patience: 1, s1_threshold: 1.0}}"
A, B, C = "{task: A}", "{task: B, moments: keep}", "{task: A, name: C}"
OWN = ("start", "cached", "checkpoint", "resumed", "warning", "control")


def write(folder: Path, name: str, arms: dict[str, Sequence[str]], more: dict[str, str] | None = None) -> Path:
    """Write a study whose arms train the given phases, `more` holding what else an arm sets."""
    lines = [f"  {arm}: {{phases: [{', '.join(phases)}]{(more or {}).get(arm, '')}}}" for arm, phases in arms.items()]
    path = folder / f"{name}.yaml"
    path.write_text(f"study: {name}\n{HEAD}arms:\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(path: Path, runs: Path, *sets: str, jobs: int = 1) -> Path:
    """Train a study, fail where a run of it does not finish, and return its folder."""
    result = studies.run(path, runs, sets=sets, jobs=jobs)
    assert [one.error for one in result.outcomes if not one.good] == []
    return result.folder


def order(path: Path, runs: Path, *sets: str, arm: str | None = None) -> Order:
    """Return the order for the first run of a study, or of an arm of it."""
    spec = load_study(path, list(sets), discover())
    planned, threads = studies.plan(spec, runs / spec.study, discover())
    one = next(p for p in planned if arm is None or p.run.arm == arm)
    return Order(one.run, one.folder, one.identity, one.fingerprints, threads, {})


def records(run: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_events(run) if record["event"] == kind]


def warnings(run: Path) -> list[str]:
    return [record["text"] for record in records(run, "warning")]


def taken(run: Path) -> list[str]:
    """Return the phases that a run took over; none where it trained all."""
    return [name for record in records(run, "cached") for name in record["phases"]]


def entries(runs: Path) -> dict[str, Path]:
    """Return the entries of the cache, by the names of their phases."""
    found = (runs / ".cache" / "phases").glob("[!.]*")
    return {"".join(json.loads((path / "entry.json").read_bytes())["about"]["phases"]): path for path in found}


def assert_equal(run: Path, other: Path) -> None:
    """Hold two runs against each other: weights, moments, states, series, matrix, snapshots, what was logged."""
    found = compare(run, other)
    assert set(found.values()) == {"equal"}, found
    assert (run / "series.json").read_bytes() == (other / "series.json").read_bytes()
    assert (run / "matrix.json").read_bytes() == (other / "matrix.json").read_bytes()
    assert told(run) == told(other)


def told(run: Path) -> list[dict[str, Any]]:
    """Return the records that say something of numbers, snapshots' digests included, without numbers of a clock."""
    kept = [record for record in read_events(run) if record["event"] not in OWN]
    return [{key: value for key, value in one.items() if key not in ("seq", "time", "seconds")} for one in kept]


def keys(path: Path, *sets: str, threads: int = 1, arm: str | None = None) -> list[str]:
    """Return the keys of the beginnings of a study's first run, as built under a number of threads."""
    one = order(path, path.parent / "runs", *sets, arm=arm)
    settle_exactness("strict", threads)
    built = build(one.run, path.parent / "unused", discover(), {})
    changed = type(one)(one.run, one.folder, one.identity, one.fingerprints, threads, {})
    settle_exactness("strict", 1)
    return phase_keys(changed, built, discover())
