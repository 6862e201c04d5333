"""Run folders as a training process leaves them, made by the engine's own writers from invented curves."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctr.engine.events_log import EventLog
from ctr.engine.rundir import write_json
from ctr.engine.series import SeriesWriter

REGIMES = ("S0_EXPLORE", "S1_BOUNDARY", "S2_AXIS_LOCK", "S3_POLISH")
SCALES = (1.0, 1.1, 0.8, 0.5)
START = 1_750_000_000.0
SPEC = """\
study: {study}
question: Does a regime-aware rate beat the same cosine?
arm: {arm}
seed: {seed}
point: {{}}
model: {{kind: small_resnet, width: 8}}
tasks:
  main: {{kind: image_classification, data: {{source: digits}}}}
phases:
  - name: main
    task: main
    trains: all
    train:
      epochs: {epochs}
      micro_batch: 128
      optimizer: {{kind: sgd, base_lr: 0.01, momentum: 0.9}}
plugins: {plugins}
select: {{on: val.loss, better: lower}}
"""


def regime_at(share: float) -> int:
    return 0 if share < 0.25 else 1 if share < 0.45 else 2 if share < 0.8 else 3


class FakeRun:
    """Writes one run, in as many pieces as the test likes."""

    def __init__(
        self,
        study: Path,
        arm: str = "controller",
        seed: int = 42,
        *,
        epochs: int = 12,
        per_epoch: int = 20,
        point: str = "",
        interval: float = 1.0,
        status: str = "live",
        started: float = START,
        lift: float = 0.0,
    ) -> None:
        self.name = f"{arm}-s{seed}" + (f"-{point}" if point else "")
        self.path = study / self.name
        self.arm, self.seed, self.point = arm, seed, point
        self.epochs, self.per_epoch, self.lift = epochs, per_epoch, lift
        self.started, self.interval = started, interval
        self.step = 0
        self.random = np.random.default_rng([seed, *arm.encode()])
        self.control = arm == "controller"
        self.path.mkdir(parents=True, exist_ok=True)
        plugins = "{phase_controller: {rule: faithful}}" if self.control else "{}"
        text = SPEC.format(study=study.name, arm=arm, seed=seed, epochs=epochs, plugins=plugins)
        (self.path / "spec.yaml").write_text(text)
        hashes = {"weights": f"{seed:08x}", "data_order": f"{seed * 7:08x}", "evaluation_items": "0badcafe"}
        write_json(
            self.path / "provenance.json",
            {"identity": "f" * 64, "hashes": hashes, "versions": {"torch": "2.9.0"}, "threads": 1, "device": "cpu"},
        )
        self.log = EventLog(self.path)
        self.series = SeriesWriter(self.path)
        self._declare()
        self.log.write("start", 0, study=study.name, arm=arm, seed=seed)
        self.log.write("boundary", 0, kind="run", phase="main", phase_index=0, epoch=0, reset=None)
        self.log.write("boundary", 0, kind="phase", phase="main", phase_index=0, epoch=0, reset=None)
        self.loss, self.val = math.nan, {"loss": 2.3, "accuracy": 10.0}
        self.write_status(status)

    @property
    def total(self) -> int:
        return self.epochs * self.per_epoch

    def _declare(self) -> None:
        for key in ("train.loss", "train.total", "train.lr", "train.base_lr", "train.epoch", "train.items"):
            self.series.declare(key)
        self.series.declare("clock.seconds", unit="s", volatile=True)
        self.series.declare("val.loss", better="lower")
        self.series.declare("val.accuracy", unit="%", better="higher")
        if self.control:
            self.series.declare("phase_controller.scale", kind="hold")
            self.series.declare("phase_controller.ceiling", kind="hold")
            self.series.declare("phase_controller.why", kind="hold")
            self.series.declare("phase_controller.term.calm")
            self.series.declare("phase_controller.weight.calm", kind="hold")
            self.series.declare("phase_controller.deriv")

    def advance(self, steps: int) -> None:
        """Train `steps` updates."""
        for _ in range(min(steps, self.total - self.step)):
            self._update()
        self.series.flush()

    def _update(self) -> None:
        k, share = self.step, self.step / self.total
        epoch = k / self.per_epoch
        base = 0.01 * min(1.0, (epoch + 1) / 2) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        regime = regime_at(share) if self.control else 0
        if self.control and (k == 0 or regime != regime_at((k - 1) / self.total)):
            self._enter(regime, k)
        scale = SCALES[regime] if self.control else 1.0
        rate = min(base * scale, 0.0085) if self.control else base
        task = (2.3 - 0.2 * self.lift) * math.exp(-3.2 * share) + 0.18 + float(self.random.normal(0, 0.05))
        rows = {"train.loss": task, "train.lr": rate, "train.base_lr": base, "train.epoch": epoch}
        rows |= {"train.items": float(k * 128), "clock.seconds": k * 0.05}
        if self.control:
            rows |= {
                "phase_controller.term.calm": 0.4 * math.exp(-share),
                "train.total": task + 0.04 * math.exp(-share),
            }
        for key, value in rows.items():
            self.series.append(key, np.array([k]), np.array([value]))
        self.loss = task
        self.step += 1
        if self.step % self.per_epoch == 0:
            self._epoch(self.step // self.per_epoch - 1, rate)

    def _enter(self, regime: int, step: int) -> None:
        epoch = step // self.per_epoch
        if step == 0:
            self.series.hold("phase_controller.ceiling", 0, 0.0085)
            self.series.hold("phase_controller.weight.calm", 0, 0.1)
            self.log.write("level", 0, owner="phase_controller", series="train.lr", value=0.0085, name="ceiling")
        self.series.hold("phase_controller.scale", step, SCALES[regime])
        self.series.hold("phase_controller.why", step, REGIMES[regime])
        self.log.write("state", step, owner="phase_controller", name="regime", value=REGIMES[regime])
        why = f"the smoothed derivative fell below its threshold at epoch {epoch}"
        self.log.write("mark", step, owner="phase_controller", name=f"enters {REGIMES[regime]}", why=why, epoch=epoch)

    def _epoch(self, epoch: int, rate: float) -> None:
        share = self.step / self.total
        wobble = float(self.random.normal(0, 0.4))
        loss = 2.3 * math.exp(-2.9 * share) + 0.24 + 0.02 * wobble
        self.val = {"loss": loss, "accuracy": 96.0 - 80 * math.exp(-(4.2 + self.lift) * share) + self.lift + wobble}
        for name, value in self.val.items():
            self.series.append(f"val.{name}", np.array([self.step]), np.array([value]))
        if self.control:
            self.series.append("phase_controller.deriv", np.array([self.step]), np.array([-0.2 * math.exp(-3 * share)]))
        self.log.write(
            "epoch",
            self.step,
            kind="epoch",
            phase="main",
            phase_index=0,
            epoch=epoch,
            items=self.per_epoch * 128,
            seconds=1.0,
            lr=rate,
            grad_accum=1,
            batches=self.per_epoch,
            train={"loss": self.loss, "total": self.loss},
            evaluations={"val": {**self.val, "items": 360, "se": {"loss": 0.02, "accuracy": 1.1}}},
            advice={"grad_accum": None, "asked": {}, "save": {}, "stop": [], "why": {}},
        )

    def finish(self, status: str = "finished", error: str | None = None) -> None:
        """Evaluate the test split and end, or fail."""
        if status == "finished":
            self.advance(self.total)
            test = {"loss": self.val["loss"] + 0.01, "accuracy": self.val["accuracy"] - 0.3, "items": 360}
            for weights in ("selected", "last"):
                self.log.write("evaluation", self.step, split="test", weights=weights, values=test, by="engine")
            rows = [
                {"label": "start", "values": {"main": 2.3}},
                {"label": "main", "values": {"main": self.val["loss"]}},
            ]
            write_json(
                self.path / "matrix.json", {"tasks": ["main"], "metric": "loss", "better": "lower", "rows": rows}
            )
        elif error:
            self.log.write("error", self.step, kind="GuardError", text=error, plugin="", hook="", phase="main")
        self.series.flush()
        code = {"finished": 0, "failed": 5}.get(status, 130)
        self.log.write("end", self.step, status=status, code=code)
        self.write_status(status, code=code, error=error)
        self.close()

    def close(self) -> None:
        self.series.close()
        self.log.close()

    def write_status(self, status: str = "live", **more: Any) -> None:
        seconds = self.step * 0.05
        content = {
            "status": status,
            "doing": "training",
            "pid": 4242,
            "host": "node-7",
            "phase": "main",
            "phase_index": 0,
            "phases": 1,
            "epoch": self.step // self.per_epoch,
            "epochs": self.epochs,
            "step": self.step,
            "total": self.total,
            "batch": self.step % self.per_epoch,
            "batches": self.per_epoch,
            "steps_per_second": 20.0,
            "eta_seconds": (self.total - self.step) / 20.0,
            "heartbeat": time.time(),
            "heartbeat_interval": self.interval,
            "monotonic": seconds,
            "started": self.started,
            "train_loss": self.loss,
            "val": self.val,
            "lr": 0.0073,
            "memory_bytes": 512 << 20,
            "code": None,
            "error": None,
        }
        write_json(self.path / "status.json", {**content, **more})


def index(study: Path, arms: Sequence[str], seeds: Sequence[int], **more: Any) -> None:
    """Write `study.json`."""
    study.mkdir(parents=True, exist_ok=True)
    content = {
        "study": study.name,
        "question": "Does a regime-aware rate beat the same cosine, and beat simply a 1.1 times higher rate?",
        "seeds": list(seeds),
        "arms": list(arms),
        "points": [{"name": "", "values": {}}],
        "contrasts": [[a, arms[0]] for a in arms[1:]],
        "on": ["test.accuracy"],
        "select": {"on": "val.loss", "better": "lower"},
        "threads": 1,
        "determinism": "strict",
        "metrics": {
            "test.accuracy": {"unit": "%", "better": "higher"},
            "val.accuracy": {"unit": "%", "better": "higher"},
            "val.loss": {"unit": "", "better": "lower"},
        },
        "runs": [{"name": f"{a}-s{s}", "arm": a, "seed": s, "point": ""} for a in arms for s in seeds],
        "replays": {},
    }
    (study / "study.json").write_text(json.dumps({**content, **more}))


ARMS = ("baseline", "controller", "constant")
LIFT = {"baseline": 0.0, "controller": 1.2, "constant": 0.4}


def study(
    root: Path,
    name: str = "quickstart",
    seeds: Sequence[int] = (42, 137, 2024, 7, 314, 1),
    interval: float = 1.0,
) -> Path:
    """Make a study in the middle of its work: most runs finished, one live, one failed, the rest queued."""
    folder = root / name
    index(folder, ARMS, seeds)
    for arm in ARMS:
        for k, seed in enumerate(seeds):
            order = START + 100 * k + ARMS.index(arm)
            if arm == "constant" and k == len(seeds) - 1:
                continue
            run = FakeRun(folder, arm, seed, started=order, lift=LIFT[arm] + 0.15 * k, interval=interval)
            if arm == "constant" and k == len(seeds) - 2:
                run.advance(70)
                run.finish("failed", "the loss is not finite at step 70; culprit: task loss")
            elif arm == "controller" and k == len(seeds) - 1:
                run.advance(150)
                run.write_status("live")
                run.close()
            else:
                run.finish()
    return folder
