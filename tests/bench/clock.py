"""Timing on a machine that others use too: CPU time, contestants in turn, the smallest time and the paired median.

CPU time leaves out what waits for others; it still grows when a neighbour takes the caches, and only ever grows, so
the smallest of many short blocks is the estimate. The median over rounds of the ratio within a round stands beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from time import process_time
from typing import TypeAlias

import torch

Contestant: TypeAlias = Callable[[], float]  # runs a block, returns CPU seconds per step
Times: TypeAlias = Mapping[str, Sequence[float]]


@contextmanager
def quiet() -> Iterator[None]:
    """One thread, and no garbage collection that would fall on whoever is measured just then."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def block(work: Callable[[], object], steps: int) -> Contestant:
    """Make a contestant of a function that does `steps` steps each time it is called."""

    def run() -> float:
        begin = process_time()
        work()
        return (process_time() - begin) / steps

    return run


def interleave(contestants: Mapping[str, Contestant], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """Return the CPU seconds per step of every contestant in every round after the warm-up.

    Each round starts with another contestant, so that nobody always follows the same neighbour.
    """
    names = list(contestants)
    times: dict[str, list[float]] = {name: [] for name in names}
    with quiet():
        for number in range(-warm_up, rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                spent = contestants[name]()
                if number >= 0:
                    times[name].append(spent)
            gc.collect()
    return times


def ratio(times: Times, what: str, over: str) -> tuple[float, float]:
    """Return the ratio of the smallest times, and the median of the ratios within a round."""
    paired = [one / other for one, other in zip(times[what], times[over], strict=True)]
    return min(times[what]) / min(times[over]), median(paired)


def surplus(times: Times, what: str, over: str) -> tuple[float, float]:
    """Return the microseconds per step of `what` over `over`: of the smallest times, and the paired median."""
    paired = [one - other for one, other in zip(times[what], times[over], strict=True)]
    return 1e6 * (min(times[what]) - min(times[over])), 1e6 * median(paired)


def per_call(call: Callable[[], object], number: int = 500, repeats: int = 20) -> float:
    """Return the CPU microseconds of one call: the smallest of `repeats` blocks, less that of an empty call."""
    return max(0.0, _smallest(call, number, repeats) - _smallest(lambda: None, number, repeats))


def _smallest(call: Callable[[], object], number: int, repeats: int) -> float:
    def work() -> None:
        for _ in range(number):
            call()

    run = block(work, number)
    with quiet():
        run()
        return 1e6 * min(run() for _ in range(repeats))
