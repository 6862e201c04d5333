"""The class that an author's tests subclass: one test a law, the same for built-ins and for strangers."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ctr.engine.errors import UsageError
from ctr.engine.host import find

from .laws import LAWS, Broken, Law, NotTried
from .runs import close_all
from .subject import Subject, Trial
from .watch import TimeUp, place_of, place_of_error, time_limit

LIMIT = 120.0


class PluginLaws:
    """Tries a plugin by every law; under pytest, a subclass is a test class.

        class TestFocal(PluginLaws):
            plugin = FocalLoss
            active = {"gamma": 2.0}
            inert = {"weight": 0.0}

    What is left out is taken from the `trial` of the plugin class, a mapping with the same names. A law that cannot be
    tried on this machine or on this plugin is skipped, with the reason.
    """

    plugin: ClassVar[Any]
    name: ClassVar[str | None] = None
    active: ClassVar[Mapping[str, Any] | None] = None
    inert: ClassVar[Mapping[str, Any] | None] = None
    task: ClassVar[str | Callable[[], Any] | None] = None
    reset_at: ClassVar[Sequence[Any] | None] = None
    limit: ClassVar[float] = LIMIT

    @classmethod
    def subject(cls) -> Subject:
        """Return what is tried: the class under its entry point's name, with its trial."""
        task = cls.__dict__.get("task", cls.task)
        task = task.__func__ if isinstance(task, staticmethod) else task
        over = {"active": cls.active, "inert": cls.inert, "task": task, "reset_at": cls.reset_at}
        return Subject(cls.name or name_of(cls.plugin), cls.plugin, Trial.of(cls.plugin, **over))


def name_of(plugin: Any) -> str:
    """Return the name under which a plugin class is installed, its own in small letters where it is not."""
    named = (found.name for found in find("ctr.plugins") if found.value is plugin)
    return next(named, plugin.__name__.lower())


def try_law(law: Law, subject: Subject, folder: Path, limit: float = LIMIT) -> str | None:
    """Try one law within a time limit, in seconds; raises `Broken` with the line, or `NotTried` with the reason."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for each other in several
    try:
        with time_limit(limit):
            return law.check(subject, folder)
    except TimeUp as error:
        close_all()
        raise Broken(str(error), place_of_error(error, subject.owns) or place_of(subject.kind)) from error
    except UsageError as error:
        raise Broken(str(error), place_of(subject.kind)) from error
    finally:
        torch.set_num_threads(threads)


def _test(law: Law) -> Callable[..., None]:
    def test(self: PluginLaws, tmp_path: Path) -> None:
        try:
            try_law(law, self.subject(), tmp_path, self.limit)
        except NotTried as reason:
            raise unittest.SkipTest(str(reason)) from None

    test.__doc__ = f"{law.claim[0].upper()}{law.claim[1:]}."
    return test


for _law in LAWS:
    setattr(PluginLaws, "test_" + _law.name.replace("-", "_"), _test(_law))
