"""For those who write plugins: tiny tasks, whole runs in milliseconds, and the laws that a plugin keeps.

`PluginLaws` is the class that an author's tests subclass; `make` builds a run on a tiny task with a host of the given
plugins alone, and `finish` trains it. This package loads torch.
"""

from .documents import TinyDocuments
from .language import TinyText
from .laws import LAWS, Broken, Law, NotTried, stop_in
from .plugin_laws import PluginLaws, try_law
from .runs import bits, close_all, finish, make, train_spec
from .subject import Neighbour, Subject, Trial
from .tiny import Tiny, TinyImages

__all__ = [
    "LAWS", "Broken", "Law", "Neighbour", "NotTried", "PluginLaws", "Subject", "Tiny", "TinyDocuments", "TinyImages",
    "TinyText", "Trial", "bits", "close_all", "finish", "make", "stop_in", "train_spec", "try_law",
]  # fmt: skip
