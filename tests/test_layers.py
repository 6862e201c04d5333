"""Arrows point one way, and no entry point loads torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOR_THE_VIEWER = set(
    """
    rundir status storage events_log series stats matrix spec errors text yaml_reader panels
    """.split()
)
LIGHT = "entry hooks events task host study cli report order catalogue explain"
TORCH_FREE = sorted(FOR_THE_VIEWER | set(LIGHT.split()))


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every module a file imports, relative ones made absolute, with its line."""
    package = ["ctr", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def breaches(folder: str) -> list[str]:
    found = []
    for path in sources(folder):
        for line, module in imports(path):
            parts = module.split(".")
            if parts[0] in ("engine", "plugins", "tui", "specs"):
                found.append(f"{path.name}:{line} imports {module} past its installed name")
            if parts[0] != "ctr" or len(parts) < 2 or parts[1] == folder:
                continue
            allowed = {"engine": (), "plugins": ("engine",), "tui": ("engine",)}[folder]
            outside = folder == "tui" and parts[1] == "engine" and len(parts) > 2 and parts[2] not in FOR_THE_VIEWER
            if parts[1] not in allowed or outside:
                found.append(f"{path.name}:{line} imports {module}")
    return found


@pytest.mark.parametrize("folder", ["engine", "plugins", "tui"])
def test_imports_point_one_way(folder: str) -> None:
    assert sources(folder)
    assert breaches(folder) == []


def test_plugins_do_not_import_each_other() -> None:
    found = []
    for path in sources("plugins"):
        family = path.relative_to(ROOT / "plugins").parts[0]
        found += [
            f"{path}:{line} imports {module}"
            for line, module in imports(path)
            if module.startswith("ctr.plugins.") and module.split(".")[2] != family
        ]
    assert found == []


def test_the_kernel_imports_no_service() -> None:
    allowed = {"combine", "events", "position", "seeding", "task", "optim", "hooks", "errors"}
    for name in ("kernel", "hooks", "events", "combine"):
        own = {m.split(".")[2] for _, m in imports(ROOT / "engine" / f"{name}.py") if m.startswith("ctr.engine.")}
        assert own - {"probe", "matrix"} <= allowed, name  # probe and matrix: types of what a hook is given


def test_the_kernel_stays_small() -> None:
    def lines(*names: str) -> int:
        return sum(len((ROOT / "engine" / f"{name}.py").read_text().splitlines()) for name in names)

    assert lines("kernel") <= 300
    assert lines("hooks", "events") <= 250


def loads_torch(statement: str) -> bool:
    code = f"import sys; {statement}; sys.exit(3 if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 3), done.stderr
    return done.returncode == 3


def test_no_torch_where_a_viewer_or_help_would_wait_for_it() -> None:
    modules = ", ".join(f"ctr.engine.{name}" for name in TORCH_FREE if (ROOT / "engine" / f"{name}.py").exists())
    viewer = [f"ctr.tui.{'.'.join(p.relative_to(ROOT / 'tui').with_suffix('').parts)}" for p in sources("tui")]
    viewer = [name.removesuffix(".__init__") for name in viewer]
    assert not loads_torch(f"import {modules}, {', '.join(viewer)}")
    assert loads_torch("import torch")  # the check itself can fail


def test_no_entry_point_loads_torch() -> None:
    points = [p for group in ("plugins", "tasks", "commands", "panels") for p in entry_points(group=f"ctr.{group}")]
    ours = [point for point in points if point.value.startswith("ctr.")]
    assert ours
    load = "; ".join(f"import {point.module}" for point in ours)
    assert not loads_torch(load)


@pytest.mark.parametrize(
    "words", [["--help"], ["plugins"], ["specs"], ["run", "--help"], ["data", "generate", "--help"]]
)
def test_light_commands_load_no_torch(words: list[str]) -> None:
    code = f"""
import sys
from ctr.engine import cli
sys.argv = ["ctr", *{words!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
sys.exit(3 if "torch" in sys.modules else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
