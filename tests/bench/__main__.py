"""Measure and print; a bar that is missed is said and never fails the command.

python -m tests.bench [TOPIC ...] [--json] [--scale 0.2]
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
from rich.console import Console

from ctr.engine.build import settle_exactness

from .bench import Bench
from .table import Section, document, draw

# a topic is a module here with `measure(bench) -> Section`; this is also the order in which they run
TOPICS: Mapping[str, str] = {
    "loop": "the kernel over a loop written by hand; ten series a step",
    "trainers": "ctr's overhead against Lightning's and HF Trainer's",
    "recorder": "the log alone, transfer and files included",
    "parts": "where the time of a step goes: hooks, guard, seeding, log, checkpoint",
    "language": "LoRA steps with terms; steps and evaluations against the source's way",
    "streams": "adapting while scoring: a bank of adapters against one document at a time",
    "routes": "routes through adapters: a grid and searches against writing each route's weights",
    "viewer": "the viewer: opening, a chart of a million points, following live runs",
}


def main() -> None:
    options = _options()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    settle_exactness("strict", threads=1)  # as a run does, for everyone who is measured here
    begin = perf_counter()
    sections: dict[str, Section] = {}
    with tempfile.TemporaryDirectory(prefix="ctr-bench-") as folder:
        bench = Bench(Path(folder), options.scale, lambda text: print(f"bench: {text}", file=sys.stderr, flush=True))
        for name in options.topics or TOPICS:
            bench.tell(TOPICS[name])
            sections[name] = import_module(f"{__package__}.{name}").measure(bench)
    about = _about(perf_counter() - begin)
    if options.json:
        sys.stdout.buffer.write(orjson.dumps(document(about, sections), option=orjson.OPT_INDENT_2) + b"\n")
        return
    draw(sections.values(), console)
    console.print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()), style="dim")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help=f"{', '.join(TOPICS)}; all when none is named")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the number of rounds; 0.1 for a quick look")
    options = parser.parse_args()
    if unknown := sorted({*options.topics} - {*TOPICS}):
        parser.error(f"no topic {', '.join(unknown)}; there are {', '.join(TOPICS)}")
    return options


def _about(seconds: float) -> dict[str, Any]:
    import torch

    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {**versions, "cores": os.cpu_count(), "load at the end": load, "seconds": round(seconds)}


if __name__ == "__main__":
    main()
