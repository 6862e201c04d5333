"""The most memory that torch holds beyond what it held before, counted from its own allocations on any system."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate


def peak(work: Callable[[], object]) -> float:
    """Return the peak of live tensors, in MiB, that `work` made while it ran; what it frees of before counts against.

    What a library takes past torch's allocator, such as packed copies of a matrix inside a product, is not seen.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler speaks of devices that are not there
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as profiler:
        work()
    assert profiler.kineto_results is not None
    changes = [event.nbytes() for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes), default=0) / 2**20
