"""Showing on a user's own spec that an interrupted run ends where an uninterrupted one ends, bit by bit."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import CtrError, UsageError, VerificationError
from .host import discover
from .order import Order
from .spec import load_study


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether everything was equal, and a line for each component of each interruption."""

    equal: bool
    lines: list[str]


def verify(path: Path, *, at: int | None, kill: bool, arm: str | None, sets: Sequence[str]) -> Verdict:
    """Train one run straight, and again with an interruption at update `at`, and compare what they end with.

    The interruption is a graceful stop, and with `kill` also `kill -9` of a child process. Raises `UsageError` for an
    arm or an update that the run does not have.
    """
    with tempfile.TemporaryDirectory(prefix="ctr-verify-") as root:
        straight = order_of(path, sets, arm, Path(root) / "straight")
        _train(straight, None)
        last = json.loads((straight.folder / "status.json").read_bytes())["step"]
        if at is None:
            at = max(1, last // 2)
        if not 1 <= at < last:
            raise UsageError(f"--at {at}: this run makes {last} updates; choose 1 to {last - 1}")
        lines, equal = [f"run {straight.run.name}: {last} updates, interrupted after {at}"], True
        ways = ["stop", "kill"] if kill else ["stop"]
        for way in ways:
            broken = order_of(path, sets, arm, Path(root) / way)
            if way == "stop":
                _train(broken, at)
            else:
                _kill_child(broken, path, sets, arm, at, Path(root))
            _train(broken, None)
            found = compare(straight.folder, broken.folder)
            lines += [f"  {'stopped' if way == 'stop' else 'kill -9'}: {name}: {text}" for name, text in found.items()]
            equal = equal and all(text == "equal" for text in found.values())
    lines.append("  generators: each is seeded by its position before it draws, so there is no state to compare")
    lines.append("resume is bit-exact" if equal else "resume is NOT bit-exact")
    return Verdict(equal, lines)


def order_of(path: Path, sets: Sequence[str], arm: str | None, folder: Path) -> Order:
    from .study import plan, queue, select

    registry = discover()
    spec = load_study(path, [*sets, "checkpoint.keep=2", "checkpoint.cache=false"], registry)
    planned, threads = plan(spec, folder, registry)
    chosen = select(planned, [arm] if arm else [], [])
    free = [p for p in chosen if not p.sources and (arm is None or p.run.arm == arm)]
    if not free:
        raise UsageError("every run of this arm reads another run; name an arm that stands alone with --arm")
    one = next(p for p in reversed(free) if p.run.seed == free[0].run.seed)
    queue(one)
    return Order(one.run, one.folder, one.identity, one.fingerprints, threads, {})


def _train(order: Order, until: int | None) -> None:
    from .execute import execute

    stop = threading.Event()

    def after_update(step: int) -> None:
        if step == until:
            stop.set()

    outcome = execute(order, discover(), stop, after_update)
    wanted = "finished" if until is None else "stopped"
    if outcome.status != wanted:
        raise VerificationError(f"run {order.run.name} {outcome.status} instead of being {wanted}: {outcome.error}")


def _kill_child(order: Order, path: Path, sets: Sequence[str], arm: str | None, at: int, root: Path) -> None:
    """Train in a child process that is killed by SIGKILL once it has made `at` updates."""
    words = [sys.executable, "-m", "ctr.engine.verify", str(path), str(order.folder.parent), str(at), arm or "", *sets]
    child = subprocess.run(words, capture_output=True, text=True, env={**os.environ})
    if child.returncode != -signal.SIGKILL:
        raise VerificationError(
            f"the child that was to be killed ended with {child.returncode}: {child.stderr[-2000:]}"
        )


def child(path: str, folder: str, at: str, arm: str, *sets: str) -> None:
    """Be the child: train towards the update at which the process kills itself."""
    from .execute import execute

    more = (
        [] if any(one.startswith("checkpoint.") for one in sets) else [f"checkpoint.every_steps={max(1, int(at) // 2)}"]
    )
    order = order_of(Path(path), [*sets, *more], arm or None, Path(folder))

    def after_update(step: int) -> None:
        if step == int(at):  # as the system's out-of-memory killer would: no handler runs, nothing is flushed
            os.kill(os.getpid(), signal.SIGKILL)

    execute(order, discover(), threading.Event(), after_update)


def compare(left: Path, right: Path) -> dict[str, str]:
    """Compare the last checkpoints and the series of two runs: a text for each component, `equal` or what differs."""
    from .checkpoint import CheckpointStore

    one, other = CheckpointStore(left).newest(), CheckpointStore(right).newest()
    if one is None or other is None:
        raise VerificationError("a run left no checkpoint to compare")
    found = _tensors(one.tensors, other.tensors)
    for name in ("position", "asked_accum", "matrix", "best"):
        found[name] = _same(one.record[name], other.record[name])
    for name in ("tasks", "plugins"):
        found[f"{name[:-1]} states"] = _same(one.record["state"][name], other.record["state"][name])
    memory = [{k: v for k, v in record["recorder"].items() if k != "seconds"} for record in (one.record, other.record)]
    found["running sums"] = _same(*memory)
    found["series"] = _series(left, right)
    return found


def _same(left: Any, right: Any) -> str:
    return "equal" if left == right else f"differs: {left} and {right}"


def _tensors(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, str]:
    from .checkpoint import digest

    def raw(tensor: Any) -> str:
        return digest({"": tensor})  # over the bytes: unlike ==, it tells -0.0 from 0.0 and NaN from nothing

    kinds = {"module/": "weights and buffers", "state/optimizer": "optimizer moments", "state/": "other state"}
    wrong: dict[str, list[str]] = {kind: [] for kind in kinds.values()}
    for name in sorted({*left, *right}):
        kind = next(kind for start, kind in kinds.items() if name.startswith(start))
        pair = left.get(name), right.get(name)
        if pair[0] is None or pair[1] is None or raw(pair[0]) != raw(pair[1]):
            wrong[kind].append(name)
    return {kind: "equal" if not bad else f"{len(bad)} differ, first {bad[0]}" for kind, bad in wrong.items()}


def _series(left: Path, right: Path) -> str:
    from .series import series_index, series_path

    index, other = series_index(left), series_index(right)
    if index != other:
        return f"the indexes differ in {', '.join(sorted(set(index) ^ set(other))) or 'an entry'}"
    for key, about in index.items():
        if not about["volatile"] and series_path(left, key).read_bytes() != series_path(right, key).read_bytes():
            return f"{key} differs"
    return "equal"


if __name__ == "__main__":
    try:
        child(*sys.argv[1:])
    except CtrError as error:
        sys.exit(str(error))
