"""Builds the folders of a study that was never trained, through the writers that a real run uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctr.engine.events_log import EventLog
from ctr.engine.rundir import write_json
from ctr.engine.series import SeriesWriter

STEPS = 8


@dataclass
class Built:
    """A study folder; `run` adds one run, `close` writes the index."""

    path: Path
    arms: Sequence[str] = ("baseline", "controller")
    contrasts: Sequence[tuple[str, str]] = (("controller", "baseline"),)
    on: Sequence[str] = ("test.accuracy",)
    determinism: str = "strict"
    points: Sequence[str] = ("",)
    runs: list[dict[str, Any]] = field(default_factory=list)
    phase_of: Callable[[int], int] = lambda epoch: 0

    def run(
        self,
        arm: str,
        seed: int,
        accuracy: float,
        *,
        last: float | None = None,
        point: str = "",
        status: str = "finished",
        error: str | None = None,
        hashes: Mapping[str, str] | None = None,
        digest: str = "",
        epochs: int = 6,
        regimes: Sequence[tuple[int, str]] = (),
        spec: str = "plugins: {}\n",
        more: Callable[[EventLog], None] | None = None,
        val: Callable[[int], float] | None = None,
    ) -> Path:
        name = f"{arm}-s{seed}" + (f"-{point}" if point else "")
        folder = self.path / name
        folder.mkdir(parents=True)
        self.runs.append({"name": name, "arm": arm, "seed": seed, "point": point})
        (folder / "spec.yaml").write_text(spec)
        shared = {"weights": f"w{seed}" * 8, "data_order": f"o{seed}" * 8, "evaluation_items": "items" * 4}
        about = {"hashes": dict(hashes or shared), "determinism": self.determinism, "device": "cpu"}
        write_json(folder / "provenance.json", about)
        code = {"finished": 0, "failed": 5}.get(status)
        write_json(folder / "status.json", {"status": status, "code": code, "error": error, "step": epochs * STEPS})
        log, series = EventLog(folder), SeriesWriter(folder)
        log.write("start", 0, study=self.path.name, arm=arm, seed=seed)
        self._train(log, series, seed, epochs, regimes, val or (lambda e: 2.0 * 0.7**e))
        if more:
            more(log)
        end = epochs * STEPS
        if status == "finished":
            for weights, value in (("selected", accuracy), ("last", accuracy if last is None else last)):
                values = {"loss": 1 - value / 100, "accuracy": value, "items": 100, "se": {}}
                log.write("evaluation", end, split="test", weights=weights, values=values, by="engine")
                log.write(
                    "snapshot", end, slug=weights, by="engine", path=f"snapshots/{weights}", digest=digest or name
                )
        log.write("end", end, status=status, code=code)
        series.flush()
        series.close()
        log.close()
        return folder

    def _train(
        self, log: EventLog, series: SeriesWriter, seed: int, epochs: int, regimes: Any, val: Callable[[int], float]
    ) -> None:
        rng, scale, controlled = np.random.default_rng(seed), 1.0, bool(regimes)
        for key in ("train.loss", "train.epoch", "train.lr", *(["phase_controller.deriv"] if controlled else [])):
            series.declare(key)
        if controlled:
            log.write("level", 0, owner="phase_controller", series="deriv", value=-0.05, name="S1 below")
            log.write("level", 0, owner="phase_controller", series="deriv", value=0.01, name="S2 below")
        losses: list[float] = []
        for epoch in range(epochs + 1):
            at = epoch * STEPS
            for since, value in regimes:
                if since == epoch:
                    log.write("state", at, owner="phase_controller", name="regime", value=value)
                    scale = {"S1_BOUNDARY": 1.1, "S2_AXIS_LOCK": 0.5, "S3_POLISH": 0.1}.get(value, 1.0)
                    if epoch:
                        why = f"Epoch {epoch - 1}: -> {value} (dL=-0.1000)"
                        log.write("mark", at, owner="phase_controller", name="transition", why=why, epoch=epoch - 1)
            if epoch:
                if controlled:
                    slope = losses[-1] - losses[-2] if len(losses) > 1 else 0.0
                    series.append("phase_controller.deriv", [at], [slope])
                self._epoch(log, at, "epoch", epoch, losses[-1], val(epoch))
            else:
                self._epoch(log, 0, "start", 0, None, val(0))
            if epoch < epochs:
                steps = np.arange(at, at + STEPS)
                curve = 2.2 * 0.75 ** (steps / STEPS) + rng.normal(0, 0.04, STEPS)
                losses.append(float(curve.mean()))
                base = 0.01 * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs))
                series.append("train.loss", steps, curve)
                series.append("train.epoch", steps, steps / STEPS)
                series.append("train.lr", steps, np.full(STEPS, base * scale))

    def _epoch(self, log: EventLog, step: int, kind: str, epoch: int, train: float | None, val: float) -> None:
        summary = {"loss": val, "accuracy": 100 - 20 * val, "items": 50, "se": {"loss": 0.1, "accuracy": 1.0}}
        log.write(
            "epoch", step, kind=kind, phase="main" if train else None, phase_index=self.phase_of(epoch),
            epoch=max(epoch - 1, 0),
            items=step, seconds=step / 100, lr=0.01, grad_accum=1, batches=STEPS,
            train=None if train is None else {"loss": train, "total": train}, evaluations={"val": summary},
            advice={"grad_accum": None, "asked": {}, "save": {}, "stop": [], "why": {}},
        )  # fmt: skip

    def close(self, **more: Any) -> Path:
        metrics = {"test.accuracy": {"unit": "%", "better": "higher"}, "val.loss": {"unit": "", "better": "lower"}}
        index = {
            "study": self.path.name,
            "question": "Does it help?",
            "seeds": sorted({run["seed"] for run in self.runs}),
            "arms": list(self.arms),
            "points": [{"name": point, "values": {}} for point in self.points],
            "contrasts": [list(pair) for pair in self.contrasts],
            "on": list(self.on),
            "select": {"on": "val.loss", "better": "lower"},
            "threads": 1,
            "determinism": self.determinism,
            "metrics": metrics,
            "runs": self.runs,
            "replays": {},
        }
        write_json(self.path / "study.json", {**index, **more})
        return self.path
