"""The documents are kept honest: headings with exact arguments, examples that run, a tutorial that is executed."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ctr.engine.hooks import Hooks
from ctr.engine.host import ARGUMENTS, discover, implementations
from ctr.engine.testing import LAWS, Subject, Trial, try_law
from tests import gallery

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TRIED = ("hosted", "three-steps", "acts", "inert", "no-global-draw", "no-mutation")


def page(hook: str) -> str:
    return (DOCS / "hooks" / f"{hook}.md").read_text(encoding="utf-8")


def test_there_is_a_page_for_every_hook_and_for_nothing_else() -> None:
    assert {path.stem for path in (DOCS / "hooks").glob("*.md")} - {"README"} == set(ARGUMENTS)


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_page_has_a_heading_with_the_exact_arguments_and_every_part(hook: str) -> None:
    exact = f"## {hook}({', '.join(inspect.signature(getattr(Hooks, hook)).parameters)})"
    assert exact in page(hook).splitlines()
    for part in ("When", "Given", "Answer", "Combination", "Built-ins that use it"):
        assert f"**{part}.**" in page(hook), part
    assert f"`{hook}({ARGUMENTS[hook]})`" in (DOCS / "hooks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_a_page_names_the_built_ins_that_use_its_hook(hook: str) -> None:
    said = page(hook).split("**Built-ins that use it.**")[1]
    ours = {n: kind for n, kind in discover().plugins.items() if kind.__module__.startswith("ctr.plugins.")}
    assert set(re.findall(r"`(\w+)`", said)) == {name for name, kind in ours.items() if hook in implementations(kind)}


@pytest.mark.parametrize("hook", ARGUMENTS)
def test_the_example_of_a_page_keeps_the_laws(hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", page(hook), re.DOTALL)
    assert code is not None
    (tmp_path / f"printed_{hook}.py").write_text(code[1], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = __import__(f"printed_{hook}").Example
    assert list(implementations(kind)) == [hook]
    for law in (law for law in LAWS if law.name in TRIED):
        (tmp_path / law.name).mkdir()
        try_law(law, Subject("example", kind, Trial.of(kind)), tmp_path / law.name)


def test_the_gallery_is_what_the_cards_say() -> None:
    said = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert said == gallery.text(), "write it anew: python -m tests.gallery"


def test_every_page_is_in_the_site_and_every_link_leads_somewhere() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in DOCS.rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert path.relative_to(DOCS).as_posix() in site, path
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert link.startswith("http") or (path.parent / link).exists(), f"{path}: {link}"


# ------------------------------------------------------------------------------------------------- the tutorial
class Reader:
    """Does what the tutorial says, line by line, as its reader would."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.site.mkdir()
        self.paths = [str(self.site)]
        self.ran: list[str] = []

    def write(self, name: str, text: str) -> None:
        assert (self.folder / name).is_file(), f"the tutorial replaces {name}, which new-plugin did not write"
        (self.folder / name).write_text(text, encoding="utf-8")

    def run(self, line: str) -> str:
        """Run one command; `pip install` is done by hand, since a test must not change its own environment."""
        words = shlex.split(line)
        self.ran.append(words[0])
        if words[0] == "cd":
            self.folder /= words[1]
            return ""
        if words[0] == "pip":
            self._install()
            return ""
        start = {"ctr": "from ctr.engine.entry import main; main()", "pytest": "import pytest; pytest.console_main()"}
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(self.paths), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", start[words[0]], *words[1:]]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def _install(self) -> None:
        about = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        info = self.site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
        groups = about["entry-points"].items()
        lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
        (info / "entry_points.txt").write_text("".join(lines))
        self.paths.append(str(self.folder))


def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")
    reader = Reader(tmp_path)
    said: dict[str, str] = {}
    for kind, more, body in re.findall(r"```(console|python)([^\n]*)\n(.*?)```", text, re.DOTALL):
        if kind == "python" and "file=" in more:
            reader.write(more.split("file=")[1].strip(), body)
        for line in body.splitlines() if kind == "console" else ():
            assert line.startswith("$ "), line
            said[line[2:]] = reader.run(line[2:])
    assert {"ctr", "cd", "pip", "pytest"} == set(reader.ran)
    assert "0 broken" in said["ctr check-plugin soften"] and "satisfied" in said["ctr plugins soften"]
    assert "treated" in said["ctr run specs/soften.yaml"]
    assert "soften" in said["ctr tui runs --once"]
    trial: Any = re.search(r"^trial = (.*)$", text, re.MULTILINE)
    assert trial[1] in (reader.folder / "ctr_soften" / "plugin.py").read_text(encoding="utf-8")
