"""The recorded demonstration: trains a small study live, drives the viewer by keys, writes SVG and PNG of each screen.

`make screenshots` runs it. PNG needs Chromium or `rsvg-convert` (librsvg); without either, only SVG is written.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from textual.pilot import Pilot

from ctr.tui.app import Viewer

OUT = Path(__file__).parents[1] / "docs" / "screenshots"
SIZE = (132, 38)  # columns, lines
WIDTH, HEIGHT = 1600, 960  # pixels
STUDY = """\
study: demonstration
question: Does a regime-aware rate beat the same cosine, and beat simply a 1.1 times higher rate?
seeds: [42, 137, 2024, 7]
model: {kind: small_resnet, width: 8}
task: {kind: image_classification, data: {source: digits}}
train:
  epochs: 10
  micro_batch: 64
  threads: 1
  optimizer: {kind: sgd, base_lr: 0.01, momentum: 0.9, weight_decay: 5e-4}
  schedule: {kind: cosine, warmup_epochs: 2, per: epoch}
arms:
  baseline: {}
  controller: {plugins: {phase_controller: {rule: faithful, s2_threshold: 0.05}}}
  constant: {plugins: {constant_scale: {scale: 1.1, from_epoch: 3}}}
compare:
  contrasts: [controller - baseline, constant - baseline, controller - constant]
  on: [test.accuracy]
"""


async def wait_until(app: Viewer, pilot: Pilot[None], words: str, seconds: float) -> None:
    """Let the viewer follow until its screen shows `words`."""
    for _ in range(int(seconds / 0.25)):
        await pilot.pause(0.25)
        if words in screen(app):
            return
    raise TimeoutError(f"the screen did not show {words!r} within {seconds} s:\n{screen(app)}")


def screen(app: Viewer) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips(app.size))


def shoot(app: Viewer, name: str) -> None:
    """Write the screen as it stands."""
    OUT.mkdir(parents=True, exist_ok=True)
    svg = OUT / f"{name}.svg"
    svg.write_text(app.export_screenshot(title="ctr tui"), encoding="utf-8")
    png = svg.with_suffix(".png")
    if chromium := shutil.which("chromium") or shutil.which("google-chrome"):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        size = f"--window-size={WIDTH},{HEIGHT}"
        subprocess.run([chromium, *flags, size, f"--screenshot={png}", svg.as_uri()], check=True, capture_output=True)
    elif shutil.which("rsvg-convert"):  # places wide characters less well
        subprocess.run(["rsvg-convert", "--width", str(WIDTH), str(svg), "-o", str(png)], check=True)
    else:
        print("no PNG: install Chromium or librsvg (rsvg-convert)", file=sys.stderr)
    print(svg)


async def demonstrate(runs: Path, writer: subprocess.Popen[bytes]) -> None:
    """Walk through every screen while the study trains, and once more when it has ended."""
    app = Viewer(runs)
    async with app.run_test(size=SIZE) as pilot:
        await wait_until(app, pilot, "live", 60)
        await wait_until(app, pilot, "controller", 60)
        await wait_until(app, pilot, "mean of", 180)
        shoot(app, "runs-live")
        await pilot.press("f", "enter")
        await wait_until(app, pilot, "train.loss", 30)
        await pilot.pause(2.0)
        shoot(app, "run-charts-live")
        await pilot.press("2")
        await pilot.pause(1.5)
        shoot(app, "run-rates-live")
        while writer.poll() is None:
            await pilot.pause(0.5)
        await pilot.press("escape")
        await pilot.pause(2.0)
        shoot(app, "runs")
        await look_around(app, pilot)


async def look_around(app: Viewer, pilot: Pilot[None]) -> None:
    """The screens of a finished study."""
    await pilot.press("home", "v")
    await pilot.pause(2.5)
    shoot(app, "study")
    await pilot.press("c")
    await pilot.pause(2.0)
    shoot(app, "compare")
    await pilot.press("escape", "escape", "slash", *"controller")
    await pilot.press("enter", "down", "down", "enter")
    await pilot.pause(2.0)
    for key, name in (
        ("1", "run-charts"),
        ("2", "run-rates"),
        ("3", "run-why"),
        ("4", "run-events"),
        ("8", "run-panels"),
    ):
        await pilot.press(key)
        await pilot.pause(1.5)
        shoot(app, name)
    await pilot.press("question_mark")
    await pilot.pause(1.0)
    shoot(app, "help")


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ctr-screenshots-") as folder:
        spec, runs = Path(folder) / "demonstration.yaml", Path(folder) / "runs"
        spec.write_text(STUDY, encoding="utf-8")
        runs.mkdir()
        words = [sys.executable, "-c", "from ctr.engine.cli import main; main()", "run", str(spec), "--runs", str(runs)]
        writer = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asyncio.run(demonstrate(runs, writer))
        finally:
            writer.terminate()
            writer.wait()


if __name__ == "__main__":
    main()
