"""`ctr data generate`: options in, a folder of generated texts out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ctr.engine.errors import DataError, UsageError, guess
from ctr.engine.output import say
from ctr.engine.text import printable

from . import CONDITIONS, KNOBS, MOST, PARTS, settled
from .rows import Value

data = typer.Typer(
    help="Make data to train on.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(StrEnum):
    jsonl = "jsonl"
    text = "text"


def _folder(given: str) -> Path:
    if not str(given).strip():
        raise ValueError("an empty text names no folder; give one, such as data/accretion")
    return Path(given)


def _about_knobs() -> str:
    lines = [
        f"{family} {name}={str(knob.default).lower()}: {knob.about}"
        for family, knobs in KNOBS.items()
        for name, knob in knobs.items()
    ]
    return "Knobs, with their defaults:\n\n\b\n" + "\n".join(lines)


@data.callback()
def _group() -> None:
    """Make data to train on."""


@data.command("generate", epilog=_about_knobs())
def generate_command(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help=f"One of {', '.join(PARTS)}.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=_folder, help="Where the files are written.")],
    entities: Annotated[int, typer.Option("--entities", help=f"How many entities, 1 to {MOST}.")],
    seed: Annotated[int, typer.Option("--seed", help="Facts are drawn from it, by entity.")],
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", help="accretion: which part to write for B. May be repeated; default: each."),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KNOB=VALUE", help="Set a knob, e.g. named=0.25. May be repeated."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Rows with their entity, or plain lines.")] = Format.jsonl,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files of these names.")] = False,
) -> None:
    """Write the parts of a family, one file each, and a manifest; equal arguments write equal bytes."""
    from .files import write

    try:
        settled(family, entities, seed, {})
        parts = chosen_parts(family, condition or ())
        knobs = read_knobs(family, sets or ())
        written = write(out, family, parts, entities, seed, knobs, form=form.value, force=force)
    except DataError as error:  # of a command line, not of data: exit code 2
        raise UsageError(str(error)) from error
    for one in written:
        say(f"{printable(one.path)}: {one.rows} rows, {one.mean:.1f} bytes each")


def chosen_parts(family: str, conditions: list[str] | tuple[str, ...]) -> list[str]:
    """Return the parts to write, in their order: those of the conditions, and those that belong to each study."""
    known = CONDITIONS.get(family, {})
    for one in conditions:
        if one not in known:
            there = f"there are {', '.join(known)}.{guess(one, known)}" if known else "leave --condition out"
            raise UsageError(f"--condition {printable(one, 80)}: no condition of {printable(family, 80)}; {there}")
    left_out = {part for name, part in known.items() if conditions and name not in conditions}
    return [part for part in PARTS.get(family, ()) if part not in left_out]


def read_knobs(family: str, sets: list[str] | tuple[str, ...]) -> dict[str, Value]:
    """Read `knob=value` texts by the type of each knob's default; what is unknown or out of range is told later."""
    knobs: dict[str, Value] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {printable(text, 80)}: write it as knob=value, such as named=0.25")
        if name in knobs:
            raise UsageError(f"--set {printable(name, 80)} is given twice; give it once")
        known = KNOBS.get(family, {}).get(name)
        knobs[name] = _read(name, value, type(known.default) if known else str)
    return knobs


def _read(name: str, text: str, kind: type) -> Value:
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        return int(text) if kind is int else float(text) if kind is float else 0
    except (ValueError, KeyError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"--set {name}={printable(text, 80)}: give {wanted}") from None
