"""The command `ctr`. Everything heavy is imported inside the functions, so that `ctr --help` is quick."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import CtrError, UsageError, guess
from .text import printable


class Commands(typer.core.TyperGroup):
    """The built-in commands, and those that installed packages add through the entry point group `ctr.commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(_installed())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in _installed():
            return found
        return _load(cmd_name)


def _installed() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group="ctr.commands")}


def _load(name: str) -> Any:
    try:
        function = _installed()[name].load()
    except BaseException as error:  # a stranger's module may raise anything; it must not take `ctr --help` with it
        text = f"cannot be loaded: {type(error).__name__}: {printable(error, 200)}"

        def function() -> None:
            raise UsageError(f"ctr {name} {text}")

        function.__doc__ = text
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)


app = typer.Typer(
    cls=Commands,
    help="Train with interventions, and know whether they helped: matched arms, paired verdicts, live runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A study in YAML, or the name of a shipped one.")]
Runs = Annotated[Path, typer.Option("--runs", help="Where run folders are written.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the spec, e.g. train.epochs=3. May be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]


@app.command("run")
def run_command(
    spec: Spec,
    runs: Runs = Path("runs"),
    sets: Sets = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", help="Only this arm. May be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Only this seed. May be repeated.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Runs to train at the same time.")] = 1,
    replace: Annotated[bool, typer.Option(help="Move a folder that holds another run of this name aside.")] = False,
    take_over: Annotated[
        bool, typer.Option(help="Take the lock of a run whose owner, on another host, is gone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train every arm with every seed, then report the paired differences.

    What is finished is kept, what was interrupted resumes, what failed is tried again.
    """
    from . import study
    from .progress import watch

    result = study.run(
        spec_path(spec), runs, sets=sets or (), arms=arm or (), seeds=seed or (), jobs=jobs, replace=replace,
        take_over=take_over, progress=watch,
    )  # fmt: skip
    for outcome in result.outcomes:
        if outcome.error:
            _complain(f"run {outcome.name} {outcome.status} (exit code {outcome.code}): {outcome.error}")
    if as_json:
        _print_json(result.report)
    else:
        _print_report(result.report)
    raise typer.Exit(result.code)


@app.command()
def check(spec: Spec, sets: Sets = None, as_json: AsJson = False) -> None:
    """Validate a spec and print what it resolves to; trains nothing."""
    from .host import discover
    from .spec import load_study

    study = load_study(spec_path(spec), sets or (), discover())
    runs = study.runs()
    if as_json:
        _print_json({"study": study.study, "runs": [{"name": run.name, **run.document()} for run in runs]})
        return
    typer.echo(runs[0].text().rstrip())
    typer.echo(f"\n# {len(runs)} runs (the first is shown above)")
    for run in runs:
        typer.echo(f"#   {run.name}")


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY_DIR", help="A study's folder, e.g. runs/quickstart.")],
    as_json: AsJson = False,
) -> None:
    """Rebuild tables, figures and the one-file HTML report from run folders alone."""
    from .report import build_report

    if not (study / "study.json").is_file():
        raise UsageError(f"{printable(study)} holds no study.json; give a study's folder, such as runs/quickstart")
    built = build_report(study)
    if as_json:
        _print_json(built)
    else:
        _print_report(built)


@app.command()
def plugins(as_json: AsJson = False) -> None:
    """List installed plugins: hooks, settings, and why a broken one does not load."""
    from .catalogue import plugin_rows, plugin_table

    rows = plugin_rows()
    if as_json:
        _print_json(rows)
    else:
        _show(plugin_table(rows))


@app.command()
def specs(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List shipped studies with their question, or print one."""
    from .catalogue import shipped_specs

    shipped = shipped_specs()
    if name is None:
        for one, (_, question) in shipped.items():
            typer.echo(f"{one:24} {question}")
        return
    typer.echo(_shipped(name, shipped)[0].rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of a study, with the settings of installed plugins, for editors."""
    from .host import discover
    from .spec import json_schema

    _print_json(json_schema(discover()))


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, e.g. runs/quickstart/controller-s42.")],
    step: Annotated[int, typer.Option("--step", min=0, help="Which update, from 0.")],
    as_json: AsJson = False,
) -> None:
    """Say how the rate and the loss of one step came about: who, how much, why."""
    from .explain import explain_step, render

    facts = explain_step(run, step)
    if as_json:
        _print_json(facts)
    else:
        _show(render(facts))


@app.command("verify-resume")
def verify_resume(
    spec: Spec,
    at: Annotated[
        int | None, typer.Option("--at", min=1, help="Interrupt after this many updates; default: half.")
    ] = None,
    kill: Annotated[bool, typer.Option("--kill", help="Also by kill -9 in a child process.")] = False,
    arm: Annotated[str | None, typer.Option("--arm", help="Which arm; default: the last.")] = None,
    sets: Sets = None,
) -> None:
    """Train straight and interrupted, and compare every component bit by bit."""
    from .verify import verify

    verdict = verify(spec_path(spec), at=at, kill=kill, arm=arm, sets=sets or ())
    for line in verdict.lines:
        typer.echo(printable(line))
    raise typer.Exit(0 if verdict.equal else 6)


def spec_path(given: str) -> Path:
    """Return the file a user means: a path, or the name of a shipped spec."""
    from .catalogue import shipped_path, shipped_specs

    path = Path(given)
    if path.is_file():
        return path
    bare = given.removesuffix(".yaml").removeprefix("specs/")
    found = shipped_path(bare)
    if found is not None:
        return found
    if path.is_dir():
        raise UsageError(f"{printable(given)} is a folder; give a YAML file")
    known = list(shipped_specs())
    raise UsageError(f"{printable(given)}: no such file; shipped specs are {', '.join(known)}.{guess(bare, known)}")


def _shipped(name: str, shipped: dict[str, tuple[str, str]]) -> tuple[str, str]:
    bare = name.removesuffix(".yaml")
    if bare not in shipped:
        raise UsageError(f"no shipped spec {printable(name)}; there are {', '.join(shipped)}.{guess(bare, shipped)}")
    return shipped[bare]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True, default=str))


def _print_report(report: dict[str, Any]) -> None:
    from .report import render_tables

    _show(render_tables(report))


def _show(renderable: Any) -> None:
    from rich.console import Console

    Console().print(renderable)


def _complain(text: str) -> None:
    for line in text.splitlines():
        typer.echo(printable(line), err=True)


def main() -> None:
    """Run the command line; every intended error becomes its message and its exit code."""
    try:
        code = app(standalone_mode=False)
    except CtrError as error:
        _complain(str(error) or type(error).__name__)
        code = error.exit_code
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `ctr … | head` is no error
        code = 0
    except Exception as error:
        if not hasattr(error, "show"):  # the command line's own errors, whose class moved between versions of typer
            raise
        error.show()
        code = getattr(error, "exit_code", 2)
    sys.exit(code if isinstance(code, int) else 0)
