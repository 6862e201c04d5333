"""`ctr ablate`: what each plugin of an arm does, by leaving each one out and by leaving all others out.

The arms so made are a study of their own beside the one they come from. What was trained already, in whatever study, is
taken over by its identity.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import DataError, UsageError, guess
from .host import Registry, discover
from .output import answer_only, complain, print_json, say, show
from .planning import Planned, plan
from .rundir import RunDir, Status, atomic_write, make_folder, read_json, write_json
from .spec import RunRef, StudySpec, load_study
from .storage import staged_folder
from .text import printable, slug_problem
from .yaml_writer import write_text


@dataclass(frozen=True)
class Ablation:
    """The study that asks: its source, the arm in question, its plugins, and arms that are one under two names."""

    source: dict[str, Any]
    arm: str
    plugins: tuple[str, ...]
    same: dict[str, str]

    @property
    def study(self) -> str:
        return str(self.source["study"])


def ablate(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A study in YAML, or the name of a shipped one.")],
    arm: Annotated[
        str | None, typer.Option("--arm", help="Which arm; default: the last with two plugins or more.")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="PATH", help="Where run folders are written.")] = Path("runs"),
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a value of the spec first.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option("--seed", help="Only this seed. May be repeated.")] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=256, help="Runs to train at the same time.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Train an arm without each of its plugins, and with each alone, at the same seeds; one paired table with Holm."""
    from .cli import spec_path
    from .progress import watch
    from .report import render_tables
    from .study import run

    with answer_only(as_json):
        registry = discover()
        made = ablation(load_study(spec_path(spec), sets or (), registry), arm)
        path = prepare(made, runs)
        taken = reuse(load_study(path, (), registry), runs, registry)
        result = run(path, runs, seeds=seed or (), jobs=jobs, progress=watch)
    for outcome in result.outcomes:
        if outcome.error:
            complain(f"run {outcome.name} {outcome.status} (exit code {outcome.code}): {outcome.error}")
    notes = [f"{name} is {other}: the same plugins, trained once" for name, other in made.same.items()]
    notes += [f"{name} was taken from {source}" for name, source in taken.items()]
    if as_json:
        print_json({**result.report, "ablation": {"arm": made.arm, "plugins": list(made.plugins), "notes": notes}})
    else:
        for note in notes:
            say(note)
        show(render_tables(result.report))
    raise typer.Exit(result.code)


def ablation(study: StudySpec, arm: str | None = None) -> Ablation:
    """Return the study of an arm with leave-one-out and only-one arms; raises `UsageError` where there is none.

    `<arm>-without-<p>` lacks one plugin, `<arm>-only-<p>` has one, `<arm>-none` has none. Arms of the same plugins are
    one: of two plugins, leaving one out is having the other alone.
    """
    plugins = {made.arm: tuple(sorted(made.plugins)) for made in study.treatments}
    several = [name for name, found in plugins.items() if len(found) > 1]
    if arm is None and not several:
        raise UsageError("no arm of this study has two plugins, so there is nothing to leave out of one")
    arm = several[-1] if arm is None else arm
    if arm not in plugins:
        raise UsageError(f"no arm {printable(arm, 80)}; arms: {', '.join(plugins)}.{guess(arm, plugins)}")
    own = plugins[arm]
    if len(own) < 2:
        has = f"has one plugin, {own[0]}" if own else "has no plugin"
        raise UsageError(f"arm {arm} {has}; ctr run compares it with a baseline, and ctr ablate needs two or more")
    wanted = {arm: own}
    wanted |= {f"{arm}-without-{name}": tuple(other for other in own if other != name) for name in own}
    wanted |= {f"{arm}-only-{name}": (name,) for name in own} | {f"{arm}-none": ()}
    first: dict[tuple[str, ...], str] = {}
    same = {name: first[kept] for name, kept in wanted.items() if first.setdefault(kept, name) != name}
    arms = {name: _arm(study.source["arms"][arm], own, kept) for name, kept in wanted.items() if name not in same}
    for name in _read_by(study, arm):
        if name in arms:
            raise UsageError(f"arm {name} is read by {arm} and has the name of an arm that is made here; rename it")
        arms[name] = study.source["arms"][name]
    source = {key: value for key, value in study.source.items() if key not in ("arms", "criteria", "compare")}
    pairs = [(arm, f"{arm}-without-{name}") for name in own]
    pairs += [(f"{arm}-only-{name}", f"{arm}-none") for name in own] + [(arm, f"{arm}-none")]
    contrasts = dict.fromkeys(f"{same.get(a, a)} - {same.get(b, b)}" for a, b in pairs)
    name = f"{study.study}-ablate-{arm}"
    for slug in (name, *arms):
        if problem := slug_problem(slug):
            raise UsageError(f"{slug}: as a name this {problem}; give the study or the arm a shorter one")
    question = f"What does each of {', '.join(own)} do in arm {arm} of {study.study}?"
    compare = {**study.source.get("compare", {}), "contrasts": list(contrasts)}
    whole = {**source, "study": name, "question": question, "arms": arms, "compare": compare}
    return Ablation(whole, arm, own, same)


def _arm(given: Any, own: Sequence[str], kept: Sequence[str]) -> dict[str, Any]:
    """Return an arm that has of its plugins those that are `kept`; null removes, wherever the others come from."""
    arm = dict(given or {})
    plugins = {name: value for name, value in (arm.get("plugins") or {}).items() if name in kept or name not in own}
    plugins |= {name: None for name in own if name not in kept}
    return {**arm, "plugins": plugins} if plugins else {key: v for key, v in arm.items() if key != "plugins"}


def _read_by(study: StudySpec, arm: str) -> Iterator[str]:
    """Yield the arms whose runs an arm's plugins read, and those that these read, once each."""
    reads: dict[str, set[str]] = {}
    for made in study.treatments:
        refs = {config.arm for config in made.plugins.values() if isinstance(config, RunRef)}
        reads.setdefault(made.arm, set()).update(refs)
    waiting, seen = sorted(reads[arm]), {arm}
    while waiting:
        name = waiting.pop(0)
        if name not in seen:
            seen.add(name)
            yield name
            waiting += sorted(reads.get(name, set()))


def prepare(made: Ablation, runs: Path) -> Path:
    """Write the study that asks into its folder, and return its file."""
    folder = runs / made.study
    make_folder(folder)
    atomic_write(folder / "ablation.yaml", write_text(made.source).encode())
    return folder / "ablation.yaml"


def reuse(study: StudySpec, runs: Path, registry: Registry) -> dict[str, str]:
    """Copy finished runs of the same identity from other studies in `runs`; return by name where each came from."""
    folder = runs / study.study
    planned, _ = plan(study, folder, registry)
    open_ = [p for p in planned if not p.keep and not p.folder.exists()]
    if not open_:
        return {}
    known = dict(_finished(runs, folder))
    return {p.name: _copied(p, known[p.identity]) for p in open_ if p.identity in known}


def _finished(runs: Path, but: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(runs.glob("*/*/provenance.json")):
        run = RunDir(file.parent)
        if run.path.parent == but or run.path.parent.name.startswith("."):
            continue
        try:
            about: Any = read_json(file)
        except DataError:
            continue  # a folder that cannot be read is nobody's source
        status = Status.from_file(run.status)
        if isinstance(about, Mapping) and status is not None and status.status == "finished":
            yield str(about.get("identity")), run.path


def _copied(p: Planned, source: Path) -> str:
    """Copy a finished run under its new name; it appears whole or not at all."""
    label = f"{source.parent.name}/{source.name}"
    make_folder(p.folder.parent)
    with staged_folder(p.folder) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock", "control", "*.tmp"))
        here = RunDir(stage)
        atomic_write(here.spec, p.run.text().encode())
        about: Any = read_json(here.provenance)
        write_json(here.provenance, {**about, "taken_from": label})
    return label
