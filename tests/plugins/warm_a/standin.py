"""Documents that come to an adapter one after the other, under the name that the tests of `warm_a` use."""

from ctr.engine.testing.documents import TinyDocuments as Documents

__all__ = ["Documents"]
