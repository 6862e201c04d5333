"""The commands of `ctr`: the built-in ones, and those of installed packages, of which none can take another's name."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from .errors import UsageError
from .output import complain, reader_is_gone
from .text import printable

GROUP = "ctr.commands"


class Commands(typer.core.TyperGroup):
    """The built-in commands, and those that installed packages add through the entry point group `ctr.commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        built_in = super().list_commands(ctx)
        return [*built_in, *sorted(installed().keys() - set(built_in))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in installed():
            return found
        return _load(cmd_name, installed()[cmd_name])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and super().get_command(ctx, args[0]) is not None and args[0] in installed():
            owners = _owners(installed()[args[0]])
            complain(f"warning: ctr {args[0]} is built in; the command of that name of {owners} cannot be called")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:  # typer would end in silence, whichever pipe it was
            if reader_is_gone():
                raise
            raise RuntimeError(f"a pipe broke that is not stdout: {error}") from error


def installed() -> dict[str, list[EntryPoint]]:
    """Return by name who claims which command."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _owners(points: list[EntryPoint]) -> str:
    return " and ".join(sorted(printable(p.dist.metadata["Name"] if p.dist else p.value, 80) for p in points))


def _load(name: str, points: list[EntryPoint]) -> Any:
    text = f"is claimed by {_owners(points)}; uninstall one" if len(points) > 1 else ""
    function: Any = None
    try:
        function = None if text else points[0].load()
    except BaseException as error:  # a stranger's module may raise anything; it must not take `ctr --help` with it
        text = f"cannot be loaded: {type(error).__name__}: {printable(error, 200)}"
    if text:

        def function() -> None:
            raise UsageError(f"ctr {printable(name, 80)} {text}")

        function.__doc__ = text
    if isinstance(function, typer.Typer):  # a command with commands of its own, such as `ctr data generate`
        return typer.main.get_command(function)
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return typer.main.get_command(app)
