"""What pyproject.toml says is what lies in the folders and what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine", "plugins", "specs", "tui")


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_folder_with_an_init_is_a_listed_package() -> None:
    found = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("__init__.py")}
    assert sorted("ctr." + ".".join(path.parts) for path in found) == sorted(
        project()["tool"]["setuptools"]["packages"]
    )


def test_every_python_file_lies_in_a_package() -> None:
    bare = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if not (p.parent / "__init__.py").exists()]
    assert bare == []


def test_installed_entry_points_are_those_of_the_file() -> None:
    for group, points in project()["project"]["entry-points"].items():
        installed = {p.name: p.value for p in entry_points(group=group) if p.value.startswith("ctr.")}
        assert installed == points, f"{group}: reinstall with pip install -e ."


def test_data_files_are_found_through_the_package() -> None:
    patterns = project()["tool"]["setuptools"]["package-data"]["*"]
    for folder in FOLDERS:
        for pattern in patterns:
            for path in (ROOT / folder).rglob(pattern):
                package = "ctr." + ".".join(path.parent.relative_to(ROOT).parts)
                assert files(package).joinpath(path.name).is_file(), path


def test_the_second_copy_accident_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", "import engine"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "this folder is installed as ctr.engine" in done.stderr


def test_links_for_type_checkers_point_home() -> None:
    for folder in FOLDERS:
        assert (ROOT / "typings" / "ctr" / folder).resolve() == ROOT / folder


def test_the_lock_covers_what_the_project_asks_for() -> None:
    def name(requirement: str) -> str:
        return re.split(r"[\s;<>=\[]", requirement.strip())[0].lower().replace("_", "-").replace(".", "-")

    locked = {
        name(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] not in "# "
    }
    wanted = project()["project"]["dependencies"] + project()["dependency-groups"]["dev"]
    assert {name(one) for one in wanted} <= locked


def test_no_word_of_where_packages_come_from() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60).stdout.split()
    host = "py" + "pi"
    for one in tracked:
        path = ROOT / one
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".lock", ".yml", ".yaml", ""}:
            assert host not in path.read_text(encoding="utf-8", errors="replace").lower(), one
