"""What the laws try: a plugin's class, the settings it is tried with, a tiny task that shows it what it looks at."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from ctr.engine.errors import UsageError, guess
from ctr.engine.hooks import EpochAdvice, LossTerm, LrAdvice, hookimpl
from ctr.engine.host import implementations
from ctr.engine.kernel import Kernel
from ctr.engine.seeding import mix, stream
from ctr.engine.spec import RunRef
from ctr.engine.text import printable

from .documents import TinyDocuments
from .language import TinyText
from .runs import finish, make
from .tiny import Tiny, TinyImages

SEED = 3
EPOCHS = 5
TASKS: Mapping[str, Callable[[], Tiny]] = {
    "images": partial(TinyImages, SEED),
    "language": partial(TinyText, SEED),
    "documents": partial(TinyDocuments, SEED),
}


@dataclass(frozen=True)
class Trial:
    """How a plugin is tried: settings under which it acts, settings under which it must change nothing, and on what.

    `task` is a name of `TASKS` or a function that makes a task; left out, it is chosen by what the plugin looks at.
    `reset_at` are boundaries beyond those of documents, as in `train.reset_at`.
    """

    active: Mapping[str, Any] = field(default_factory=dict)
    inert: Mapping[str, Any] | None = None
    task: str | Callable[[], Any] = ""
    reset_at: Sequence[Any] = ()

    @classmethod
    def of(cls, plugin: Any, **over: Any) -> Trial:
        """Return what a plugin class says in its `trial`, a mapping of these names, with `over` laid over it.

        Raises `UsageError` for a trial that is no such mapping.
        """
        said = getattr(plugin, "trial", {})
        about = f"plugin class {plugin.__name__}: trial"
        if not isinstance(said, Mapping):
            raise UsageError(f"{about} must be a mapping, not {printable(said, 80)}")
        known = [one.name for one in fields(cls)]
        for name in said:
            if name not in known:
                raise UsageError(
                    f"{about} holds {printable(name, 80)}; there are {', '.join(known)}.{guess(name, known)}"
                )
        trial = cls(**{**said, **{name: value for name, value in over.items() if value is not None}})
        if isinstance(trial.task, str) and trial.task and trial.task not in TASKS:
            raise UsageError(f"{about}: no task {printable(trial.task, 80)}; there are {', '.join(TASKS)}")
        return trial


class Neighbour:
    """A plugin that uses three hooks, its generator and a memory: who shares a run with the one that is tried."""

    def __init__(self, config: Any = None, generator: torch.Generator | None = None) -> None:
        self.generator = generator or torch.Generator()
        self.count = 0
        self.drawn = 0.0

    @hookimpl
    def extra_loss(self, forward: Any) -> list[LossTerm]:
        weight = torch.rand((), generator=self.generator, device=self.generator.device)
        return [LossTerm("shrink", forward.outputs.loss * weight, 0.1)]

    @hookimpl
    def schedule_lr(self, step: Any) -> LrAdvice:
        self.count += 1
        return LrAdvice(scale=0.8 if self.count % 2 else 1.1, ceiling=0.09, why="in turn")

    @hookimpl
    def on_epoch_end(self, epoch: Any) -> EpochAdvice | None:
        self.drawn += float(torch.rand((), generator=self.generator, device=self.generator.device))
        epoch.log("drawn", self.drawn)
        return EpochAdvice(grad_accum=2) if epoch.kind == "epoch" and epoch.epoch == 1 else None

    def state(self) -> dict[str, Any]:
        return {"count": self.count, "drawn": self.drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.count, self.drawn = state["count"], state["drawn"]


@dataclass
class Subject:
    """A plugin class under its name, with what it is tried with. `sources` holds the runs that a replay reads."""

    name: str
    kind: Any
    trial: Trial
    sources: Path | None = None

    @cached_property
    def hooks(self) -> Mapping[str, Sequence[str]]:
        return implementations(self.kind)

    def config(self, which: str = "active") -> Any:
        """Return validated settings; raises what pydantic raises."""
        return self.kind.Config.model_validate(dict(getattr(self.trial, which) or {}))

    @property
    def needs(self) -> dict[str, frozenset[int]]:
        """What the plugin asks of a forward pass under its active settings."""
        asked = self.kind.needs(self.config()) if hasattr(self.kind, "needs") else {}
        return {what: frozenset(layers) for what, layers in asked.items()}

    def task(self) -> Any:
        """Make the task of the trial; raises `UsageError` where it does not show what the plugin looks at."""
        wanted, needs = self.trial.task, self.needs
        if callable(wanted):
            return wanted()
        if not wanted:
            resets = "adapter_reset" in self.hooks or "reference" in needs
            wanted = "documents" if resets else "language" if needs else "images"
        made = TASKS[wanted]()
        lacking = sorted(set(needs) - made.provides)
        if lacking:
            has = ", ".join(sorted(made.provides)) or "nothing"
            raise UsageError(f"it needs {lacking[0]}, and the tiny task of {wanted} provides {has}; name another task")
        return made

    @property
    def reads_a_run(self) -> bool:
        return inspect.isclass(self.kind.Config) and issubclass(self.kind.Config, RunRef)

    def source(self, arm: str, folder: Path) -> Path:
        """Return a finished run for a plugin that reads one: `plain`, or `acting` with rates that somebody changed."""
        made = (self.sources or folder) / f"source-{arm}"
        if not made.is_dir():
            finish(make(made, {} if arm == "plain" else {"neighbour": Neighbour()}, epochs=EPOCHS))
        return made

    def made(self, which: str, folder: Path, device: str = "cpu", kind: Any = None) -> tuple[Any, torch.Generator]:
        """Return the plugin, made as a run makes it, and the generator that it was given."""
        config = self.config(which)
        generator = torch.Generator(device).manual_seed(mix(stream(SEED, f"plugin:{self.name}")))
        more = {"source": self.source(config.arm, folder)} if self.reads_a_run else {}
        return (kind or self.kind)(config, generator, **more), generator

    def run(
        self, folder: Path, which: str | None = "active", *, kind: Any = None, beside: Sequence[str] = (),
        first: bool = True, device: str = "cpu", **train: Any,
    ) -> Kernel:  # fmt: skip
        """Make a run with the plugin, or with none of it; `beside` names neighbours, made after it, or before it."""
        plugins: dict[str, Any] = {}
        generators: dict[str, torch.Generator] = {}

        def add_own() -> None:
            if which is not None:
                plugins[self.name], generators[self.name] = self.made(which, folder.parent, device, kind)

        def add_neighbours() -> None:
            for name in beside:
                generators[name] = torch.Generator(device)
                plugins[name] = Neighbour(None, generators[name])

        for add in (add_own, add_neighbours) if first else (add_neighbours, add_own):
            add()
        settings = {"epochs": EPOCHS, "reset_at": list(self.trial.reset_at), **train}
        needs = self.needs if which is not None else {}
        return make(
            folder, plugins, task=self.task(), needs=needs, device=device, generators=generators, seed=SEED, **settings
        )

    @cached_property
    def home(self) -> tuple[str, ...]:
        """Where the plugin's own code lies: the folders, or the single files, of its class and of its bases."""
        return tuple(dict.fromkeys(_home(base) for base in self.kind.__mro__[:-1]))

    def owns(self, file: str) -> bool:
        """Say whether a source file is part of the plugin."""
        return any(file == home or file.startswith(home + "/") for home in self.home)


def _home(kind: type) -> str:
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if not file:
        return "<unknown>"
    return str(Path(file).parent) if getattr(module, "__package__", "") else file
