"""The tiny task and its runs, which are part of the kit for plugin authors, under the name that these tests use."""

from ctr.engine.testing.runs import bits, close_all, finish, make, train_spec
from ctr.engine.testing.tiny import LowRank, Tiny

__all__ = ["LowRank", "Tiny", "bits", "close_all", "finish", "make", "train_spec"]
