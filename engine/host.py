"""Finding plugins, tasks, commands and panels by entry point, and calling plugins so that each answer is attributed.

Installed is not active: a study names what runs. Everything here loads without torch.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from .answers import CHECKS, Refused, terms_of
from .api import api_problem
from .errors import CtrError, GuardError, Interrupted, PluginError, StorageError, guess
from .hooks import PROJECT, EpochAdvice, Hooks, LossTerm, LrAdvice, Reset, hookimpl
from .task import metrics_problem, task_problem
from .text import printable, slug_problem

if TYPE_CHECKING:
    from torch import Generator

ARGUMENTS = {"extra_loss": "forward", "schedule_lr": "step", "adapter_reset": "boundary", "on_epoch_end": "epoch"}
# pluggy matches arguments by name, and each hook calls its one argument differently
NAMED: Mapping[str, Callable[[Callable[[Any], Any]], Callable[..., Any]]] = {
    "extra_loss": lambda call: lambda forward: call(forward),
    "schedule_lr": lambda call: lambda step: call(step),
    "adapter_reset": lambda call: lambda boundary: call(boundary),
    "on_epoch_end": lambda call: lambda epoch: call(epoch),
}
OWNERS = ("train", "val", "test", "calibration", "clock", "engine")
DISABLED = "disabled:"  # in the state of the host, where no plugin can be called so
REFUSED = ("tryfirst", "trylast", "hookwrapper", "wrapper", "optionalhook", "specname")


@dataclass(frozen=True)
class Found:
    """One entry point of a group: where it comes from, and the class or the reason it could not be loaded."""

    name: str
    distribution: str
    version: str
    target: str
    value: Any = None
    error: str | None = None


@dataclass
class Registry:
    """What is installed, by name; `broken` holds the load error of what could not be imported."""

    plugins: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


def find(group: str) -> list[Found]:
    """Load every entry point of a group, sorted by name; one that raises is returned with its error.

    Two distributions that claim a name are both broken, for neither may win in silence.
    """
    points = sorted(entry_points(group=group), key=lambda point: (point.name, point.value))
    names = [point.name for point in points]
    return [_load(point, names.count(point.name) > 1) for point in points]


def claim_problem(name: str, claimed_twice: bool) -> str | None:
    """Say why nothing can be installed under a name; None when it can."""
    if problem := slug_problem(name) or _owner_problem(name):
        return f"its name {problem}"
    return "two installed distributions claim this name; uninstall one" if claimed_twice else None


def _owner_problem(name: str) -> str | None:
    """Say why a name cannot own series, whose keys are `<owner>.<name>`."""
    if "." in name:
        return "must hold no '.', which parts owner and name in the keys of series"
    return "is the owner of ctr's own series" if name in OWNERS else None


def _load(point: EntryPoint, claimed_twice: bool) -> Found:
    where = point.dist.metadata["Name"] if point.dist else "?"
    version = point.dist.version if point.dist else "?"
    about = (printable(point.name, 80), printable(where, 80), printable(version, 40), printable(point.value, 200))
    if problem := claim_problem(point.name, claimed_twice):
        return Found(*about, error=problem)
    try:
        return Found(*about, value=point.load())
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # a stranger's module may raise anything, SystemExit included
        return Found(*about, error=f"{type(error).__name__}: {printable(error, 300)}")


@cache
def discover() -> Registry:
    """Return the installed plugins and tasks; loaded once a process, without torch."""
    registry = Registry()
    for group, into, judge in (
        ("ctr.plugins", registry.plugins, plugin_problem),
        ("ctr.tasks", registry.tasks, task_problem),
    ):
        for found in find(group):
            problem = found.error or judge(found.value)
            if problem:
                registry.broken[found.name] = problem
            else:
                into[found.name] = found.value
    return registry


def plugin_problem(plugin: Any) -> str | None:
    """Say why a class cannot be hosted; None when it can."""
    if not inspect.isclass(plugin):
        return f"the entry point must name a class, not {printable(plugin, 80)}"
    if problem := api_problem(plugin):
        return problem
    config = getattr(plugin, "Config", None)
    if not hasattr(config, "model_validate"):
        return "a plugin needs a nested pydantic class Config"
    if "on_error" in getattr(config, "model_fields", {}):
        return "its Config has a setting on_error, which stands beside the settings of any plugin; call it otherwise"
    try:
        hooks = implementations(plugin)
    except PluginError as error:
        return str(error)
    if closes(plugin) and set(hooks) != {"on_epoch_end"}:
        return f"plugin class {plugin.__name__} is closing, so on_epoch_end is the one hook that it can implement"
    if problem := metrics_problem(getattr(plugin, "metrics", {}), f"plugin class {plugin.__name__}: "):
        return problem
    if hasattr(plugin, "state") != hasattr(plugin, "restore"):
        return "state and restore belong together: what is not put back would be lost by a kill"
    return None


def closes(plugin: Any) -> bool:
    """Say whether a plugin's class declares by `closing = True` that it speaks at kind `run` alone.

    It is then not asked before, so that runs which differ in it share their phases.
    """
    return bool(getattr(plugin, "closing", False))


def implementations(plugin: type) -> dict[str, Sequence[str]]:
    """Return the hooks a class implements with the arguments each declares; refuses what pluggy would let pass."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    here = f"plugin class {plugin.__name__}"
    found: dict[str, Sequence[str]] = {}
    for name in sorted(vars_of(plugin)):
        method = inspect.getattr_static(plugin, name)
        method = getattr(method, "__func__", method)
        options = manager.parse_hookimpl_opts(plugin, name) if inspect.isroutine(method) else None
        if options is None:
            if name in ARGUMENTS:
                text = f"{here}: {name} bears a hook's name but no @hookimpl marker{_at(method)}"
                raise PluginError(text, hook=name)
            continue
        refused = [option for option in REFUSED if options.get(option)]
        if refused:
            text = f"{here}: {name} sets {', '.join(refused)}; answers combine without order{_at(method)}"
            raise PluginError(text, hook=name)
        if name not in ARGUMENTS:
            text = f"{here}: {name} is no hook; the hooks are {', '.join(ARGUMENTS)}.{guess(name, ARGUMENTS)}"
            text += _at(method)
            raise PluginError(text, hook=name)
        declared = [p for p in inspect.signature(method).parameters if p != "self"]
        surplus = [p for p in declared if p != ARGUMENTS[name]]
        if surplus:
            text = f"{here}: {name} asks for {', '.join(surplus)}; this hook gives {ARGUMENTS[name]}{_at(method)}"
            raise PluginError(text, hook=name)
        found[name] = declared
    return found


def _at(method: Any) -> str:
    """Return where a method is written, in brackets; nothing where it is not Python's."""
    code = getattr(inspect.unwrap(method) if callable(method) else method, "__code__", None)
    return f" ({printable(code.co_filename, 200)}:{code.co_firstlineno})" if code else ""


def vars_of(plugin: type) -> set[str]:
    """Name every public attribute of a class and its bases, `object` apart."""
    return {name for base in plugin.__mro__[:-1] for name in vars(base) if not name.startswith("_")}


class Host:
    """The plugins of one run, and a call table: a hook without implementations is None and is not called."""

    extra_loss: Callable[..., list[tuple[str, LossTerm]]] | None = None
    schedule_lr: Callable[..., list[tuple[str, LrAdvice]]] | None = None
    adapter_reset: Callable[..., list[tuple[str, Reset]]] | None = None
    on_epoch_end: Callable[..., list[tuple[str, EpochAdvice]]] | None = None

    def __init__(
        self,
        plugins: Mapping[str, Any],
        generators: Mapping[str, Generator],
        seed: int,
        on_error: Mapping[str, str] | None = None,
    ) -> None:
        from .seeding import mix, stream

        self.disabled: dict[str, str] = {}  # plugins that failed and were to be left out then, and why
        self.plugins = dict(sorted(plugins.items()))
        self._mix = mix
        self._seeded = [(generators[name].manual_seed, stream(seed, f"plugin:{name}")) for name in self.plugins]
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(Hooks)
        used: set[str] = set()
        for name in reversed(self.plugins):  # pluggy answers last-registered-first: answers arrive sorted by name
            shim, hooks = _shim(name, self.plugins[name], self.disabled if name in (on_error or {}) else None)
            manager.register(shim, name)
            used.update(hooks)
        manager.check_pending()
        for hook in used - {"extra_loss"}:
            setattr(self, hook, getattr(manager.hook, hook))
        if "extra_loss" in used:
            ask = manager.hook.extra_loss
            self.extra_loss = lambda forward: [row for rows in ask(forward=forward) for row in rows]

    def reseed(self, *position: int) -> None:
        """Seed each plugin's own generator by position."""
        for manual_seed, key in self._seeded:
            manual_seed(self._mix(key, *position))

    def state(self) -> dict[str, Any]:
        """Return the memory of every plugin that has one."""
        able = {name: plugin for name, plugin in self.plugins.items() if name not in self.disabled}
        held = {name: plugin.state() for name, plugin in able.items() if hasattr(plugin, "state")}
        return {**held, DISABLED: dict(self.disabled)} if self.disabled else held

    def restore(self, state: Mapping[str, Any]) -> None:
        self.disabled.update(state.get(DISABLED, {}))
        for name, plugin in self.plugins.items():
            if name in state:
                plugin.restore(state[name])


def _shim(name: str, plugin: Any, disabled: dict[str, str] | None) -> tuple[Any, Iterable[str]]:
    """Wrap a plugin for pluggy, which drops None and names nobody: each answer leaves stamped with `name`."""
    declared = implementations(type(plugin))
    members = {
        hook: hookimpl(_stamped(name, hook, getattr(plugin, hook), bool(declared[hook]), disabled)) for hook in declared
    }
    return type(f"Shim_{name}", (), {hook: staticmethod(member) for hook, member in members.items()}), declared


def _stamped(
    name: str, hook: str, method: Callable[..., Any], wants: bool, disabled: dict[str, str] | None
) -> Callable[..., Any]:
    check, late = CHECKS.get(hook), closes(getattr(method, "__self__", None))
    seen: Any = None  # plugins answer the same object again and again; it is looked at once

    def call(event: Any) -> Any:
        if late and event.kind != "run":
            return None
        event.owner = name
        try:
            nonlocal seen
            answer = method(event) if wants else method()
            if answer is None:
                return None
            if check is None:
                return terms_of(name, answer)
            if answer is not seen:
                check(answer)
                seen = answer
            return name, answer
        except (StorageError, GuardError, Interrupted):
            raise  # not of the plugin's making, though it happened in its call
        except CtrError as error:
            if isinstance(error, PluginError) and error.plugin:
                raise
            raise attributed(error, name, hook, event, method) from error
        except (Exception, SystemExit) as error:
            raise attributed(error, name, hook, event, method) from error

    def forgiving(event: Any) -> Any:
        assert disabled is not None
        if name in disabled:
            return None
        try:
            return call(event)
        except PluginError as error:
            disabled[name] = printable(error, 500)
            about = {"disabled": name, "hook": hook, "phase": event.phase}
            text = f"{disabled[name]}; it is disabled from here on, so this run is not the treatment that its arm names"
            event.sink.event("warning", event.step, owner="engine", text=text, **about)
            return None

    return NAMED[hook](call if disabled is None else forgiving)


def attributed(error: BaseException, plugin: str, hook: str, event: Any, method: Any) -> PluginError:
    """Say who raised, in which hook, phase and step, and on which line of the plugin's own code.

    An answer that is refused has no such line: then it is the one on which the hook's method begins.
    """
    own = isinstance(error, PluginError | Refused)
    line = _at(method) if isinstance(error, Refused) else f" ({frame})" if (frame := _frame(error, method)) else ""
    what = (
        printable(error, 500)
        if own
        else f"raised {type(error).__name__}{': ' if str(error) else ''}{printable(error, 500)}"
    )
    where = f"in phase {event.phase}, " if event.phase else ""
    text = f"plugin {plugin}, hook {hook}, {where}step {event.step}: {what}{line}"
    return PluginError(text, plugin=plugin, hook=hook, phase=event.phase, step=event.step)


def _frame(error: BaseException, method: Any) -> str:
    """Return the last line that an error went through in the folder of the plugin's code, else the last at all."""
    code = getattr(inspect.unwrap(method), "__code__", None)
    home = os.path.dirname(code.co_filename) if code else ""
    trace, own, last = error.__traceback__, "", ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_filename != __file__:
            last = f"{printable(code.co_filename, 200)}:{trace.tb_lineno} in {code.co_name}"
            own = last if os.path.dirname(code.co_filename) == home else own
        trace = trace.tb_next
    return own or last
