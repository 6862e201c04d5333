"""`ctr new-plugin`: a small project that is installed, tested and listed as it is written, and then made one's own."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from .api import VERSION
from .errors import StorageError, UsageError, guess
from .host import ARGUMENTS, claim_problem, find
from .output import say
from .text import printable

ANSWERS = {"extra_loss": "LossTerm", "schedule_lr": "LrAdvice", "adapter_reset": "Reset", "on_epoch_end": "EpochAdvice"}
GIVEN = {"extra_loss": "Forward", "schedule_lr": "Step", "adapter_reset": "Boundary", "on_epoch_end": "Epoch"}
DEFAULT = "schedule_lr,on_epoch_end"
IMAGES = "model: {kind: small_resnet, width: 4}\ntask: {kind: image_classification, data: {source: digits}}"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*\Z")


def new_plugin(
    name: Annotated[str, typer.Argument(help="Its name in specs: small letters, digits and '_'.")],
    folder: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where to write it; default: ctr-NAME here.")
    ] = None,
    hooks: Annotated[
        str, typer.Option("--hooks", help=f"Which hooks, parted by commas, of {', '.join(ARGUMENTS)}.")
    ] = DEFAULT,
    task: Annotated[bool, typer.Option("--task", help="With a task of its own, beside the plugin.")] = False,
    panel: Annotated[bool, typer.Option("--panel", help="With a panel for the viewer and the report.")] = False,
    command: Annotated[bool, typer.Option("--command", help="With a command, `ctr NAME`.")] = False,
) -> None:
    """Write a project for a plugin: code, card, tests of every law, an example spec, a CI file; overwrites nothing."""
    asked = _hooks(hooks)
    if problem := name_problem(name):
        raise UsageError(f"{printable(name, 80)}: as the name of a plugin this {problem}")
    target = folder or Path(f"ctr-{name.replace('_', '-')}")
    texts = project(name, asked, task=task, panel=panel, command=command)
    _write(target, texts)
    for path in sorted(texts):
        say(f"{printable(target / path)}")
    say(f"\nnext:  cd {printable(target)} && pip install -e '.[test]' && pytest && ctr check-plugin {name}")


def name_problem(name: str) -> str | None:
    """Say why a plugin cannot be called so; None when it can."""
    if problem := claim_problem(name, False):
        return problem.removeprefix("its name ")
    if not _NAME.match(name) or keyword.iskeyword(name):
        return "must be small letters and digits, parted by single '_', begin with a letter and be no word of Python"
    taken = [found for group in ("ctr.plugins", "ctr.tasks") for found in find(group) if found.name == name]
    return f"is taken: {taken[0].distribution} {taken[0].version} is installed here under it" if taken else None


def _hooks(text: str) -> list[str]:
    asked = [hook.strip() for hook in text.split(",") if hook.strip()]
    for hook in asked:
        if hook not in ARGUMENTS:
            known = ", ".join(ARGUMENTS)
            raise UsageError(f"--hooks: {printable(hook, 80)} is no hook; there are {known}.{guess(hook, ARGUMENTS)}")
    if not asked:
        raise UsageError(f"--hooks names none; there are {', '.join(ARGUMENTS)}")
    return [hook for hook in ARGUMENTS if hook in asked]


def project(
    name: str, hooks: Sequence[str], *, task: bool = False, panel: bool = False, command: bool = False
) -> dict[str, str]:
    """Return the files of a project by path, filled in."""
    module, class_name = f"ctr_{name}", "".join(part.title() for part in name.split("_"))
    words = {
        "name": name,
        "module": module,
        "class_name": class_name,
        "distribution": f"ctr-{name.replace('_', '-')}",
        "command": name.replace("_", "-"),
        "api": str(VERSION),
        "imports": ", ".join(sorted({*(ANSWERS[hook] for hook in hooks), "hookimpl"}, key=lambda n: (n.islower(), n))),
        "events": ", ".join(sorted(GIVEN[hook] for hook in hooks)),
        "what": IMAGES,
        "metric": "test.accuracy",
    }
    if "adapter_reset" in hooks:
        words |= {"what": _DOCUMENTS, "metric": "test.loss"}
    if task:
        words |= {"what": f"model: {{kind: line}}\ntask: {{kind: {name}}}", "metric": "test.error"}
    points = {"ctr.plugins": f'{name} = "{module}.plugin:{class_name}"'}
    points |= {"ctr.tasks": f'{name} = "{module}.task:{class_name}Task"'} if task else {}
    points |= {"ctr.panels": f'{name} = "{module}.panel:sections"'} if panel else {}
    points |= {"ctr.commands": f'{words["command"]} = "{module}.command:main"'} if command else {}
    words["entry_points"] = "".join(f'[project.entry-points."{group}"]\n{line}\n\n' for group, line in points.items())
    made = {
        "pyproject.toml": _filled("pyproject.toml", words),
        "README.md": _filled("README.md", words),
        f"{module}/__init__.py": _filled("init.py", words),
        f"{module}/plugin.py": "".join(_filled(part, words) for part in ("plugin.py", *(f"hook_{h}" for h in hooks))),
        f"{module}/formula.py": _filled("formula.py", words),
        f"{module}/README.md": _filled("card.md", words),
        f"tests/test_{name}.py": _filled("test.py", words),
        f"specs/{name}.yaml": _filled("spec.yaml", words),
        ".github/workflows/test.yaml": _filled("ci.yaml", words),
    }
    for part, wanted in (("task", task), ("panel", panel), ("command", command)):
        made |= {f"{module}/{part}.py": _filled(f"{part}.py", words)} if wanted else {}
    return made


_DOCUMENTS = """\
model: {kind: tiny, width: 32, layers: 1, heads: 2, context: 64, init_seed: 0}
adapter: {kind: bank, slots: 2, rank: 2, alpha: 2}
task: {kind: document_stream, data: {source: text, path: README.md}, chunk: 16, window: 64}"""


def _filled(file: str, words: dict[str, str]) -> str:
    text = files("ctr.engine.template").joinpath(f"{file}.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(words)


def _write(folder: Path, texts: dict[str, str]) -> None:
    """Write the files; where one of them is there already, none is written."""
    there = [path for path in sorted(texts) if (folder / path).exists() or (folder / path).is_symlink()]
    if there:
        raise UsageError(f"{printable(folder)} holds {', '.join(there)} already; nothing was written")
    for path, text in texts.items():
        try:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"{printable(folder / path)}: cannot be written: {error.strerror or error}") from error
