"""The command `ctr`. Everything heavy is imported inside the functions, so that `ctr --help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .commands import Commands
from .errors import CtrError, UsageError, guess
from .output import answer_only, complain, print_json, reader_is_gone, say, settle_stdout, show
from .text import printable


def _folder(given: str) -> Path:
    if not str(given).strip():
        raise ValueError("an empty text names no folder; give one, such as runs")
    return Path(given)


app = typer.Typer(
    cls=Commands,
    help="Train with interventions, and know whether they helped: matched arms, paired verdicts, live runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A study in YAML, or the name of a shipped one.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="PATH", parser=_folder, help="Where run folders are written.")]
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

    with answer_only(as_json):
        result = study.run(
            spec_path(spec), runs, sets=sets or (), arms=arm or (), seeds=seed or (), jobs=jobs, replace=replace,
            take_over=take_over, progress=watch,
        )  # fmt: skip
    for outcome in result.outcomes:
        if outcome.error:
            complain(f"run {outcome.name} {outcome.status} (exit code {outcome.code}): {outcome.error}")
    if as_json:
        print_json(result.report)
    else:
        _print_report(result.report)
    raise typer.Exit(result.code)


@app.command()
def check(spec: Spec, sets: Sets = None, as_json: AsJson = False) -> None:
    """Validate a spec and print what it resolves to; trains nothing."""
    from .host import discover
    from .spec import load_study

    with answer_only(as_json):
        study = load_study(spec_path(spec), sets or (), discover())
        runs = study.runs()
    if as_json:
        print_json({"study": study.study, "runs": [{"name": run.name, **run.document()} for run in runs]})
        return
    names = "".join(f"\n#   {run.name}" for run in runs)
    say(f"{runs[0].text().rstrip()}\n\n# {len(runs)} runs (the first is shown above){names}")


@app.command()
def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY_DIR", help="A study's folder, e.g. runs/quickstart.")],
    as_json: AsJson = False,
) -> None:
    """Rebuild tables, figures and the one-file HTML report from run folders alone."""
    from .report import build_report

    if not (study / "study.json").is_file():
        raise UsageError(f"{printable(study)} holds no study.json; give a study's folder, such as runs/quickstart")
    with answer_only(as_json):
        built = build_report(study)
    if as_json:
        print_json(built)
    else:
        _print_report(built)


@app.command()
def plugins(
    name: Annotated[str | None, typer.Argument(help="Show this one's card, settings, hooks and API version.")] = None,
    as_json: AsJson = False,
) -> None:
    """List installed plugins, or show one whole: hooks, settings, and why a broken one does not load."""
    from .catalogue import plugin_page, plugin_rows, plugin_table

    with answer_only(as_json):
        rows = plugin_rows(name)
    if as_json:
        print_json(rows if name is None else rows[0])
    else:
        show(plugin_table(rows) if name is None else plugin_page(rows[0]))


@app.command()
def specs(name: Annotated[str | None, typer.Argument(help="Print this one.")] = None) -> None:
    """List shipped studies with their question, or print one."""
    from .catalogue import shipped_specs

    shipped = shipped_specs()
    if name is None:
        for one, (_, question) in shipped.items():
            say(f"{one:24} {question}")
        return
    say(_shipped(name, shipped)[0].rstrip())


@app.command()
def schema() -> None:
    """Print the JSON schema of a study, with the settings of installed plugins, for editors."""
    from .host import discover
    from .spec import json_schema

    with answer_only():
        built = json_schema(discover())
    print_json(built)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder, e.g. runs/quickstart/controller-s42.")],
    step: Annotated[int, typer.Option("--step", min=0, help="Which update, from 0.")],
    as_json: AsJson = False,
) -> None:
    """Say how the rate and the loss of one step came about: who, how much, why."""
    from .explain import explain_step, render

    with answer_only(as_json):
        facts = explain_step(run, step)
    if as_json:
        print_json(facts)
    else:
        show(render(facts))


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
        say(printable(line))
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


def _print_report(report: dict[str, Any]) -> None:
    from .report import render_tables

    show(render_tables(report))


def main() -> None:
    """Run the command line; every intended error becomes its message and its exit code."""
    try:
        code = app(standalone_mode=False)
    except CtrError as error:
        complain(str(error) or type(error).__name__)
        code = error.exit_code
    except typer.Exit as end:
        code = end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        code = 130
    except SystemExit as end:  # so typer ends where a pipe closed early, and `ctr … | head` is no error
        if not reader_is_gone():
            raise
        code = 0 if end.code == 1 else end.code
    except Exception as error:
        if not hasattr(error, "show"):  # the command line's own errors, whose class moved between versions of typer
            raise
        error.show()
        code = getattr(error, "exit_code", 2)
    settle_stdout()
    sys.exit(code if isinstance(code, int) else 0)
