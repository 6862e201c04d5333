"""Where the time of a step goes: each of the kernel's calls, in the running loop and on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from statistics import median
from time import perf_counter, process_time, process_time_ns
from typing import Any

import torch

from ctr.engine import kernel as loop
from ctr.engine.combine import resolve_lr, same
from ctr.engine.events import Step

from .bench import Bench
from .clock import interleave, per_call, quiet, surplus
from .digits import BATCH, BLOCK, Engine, Hand, steps
from .loop import rate_plugins
from .table import Row, Section

EVERY = 50  # steps between two checkpoints
FLUSH = 64  # steps between two flushes of the log

GUARD = "_amp_foreach_non_finite_check_and_unscale_"


@contextmanager
def timed(owner: Any, name: str) -> Iterator[list[int]]:
    """Put a clock around an attribute that is called, and collect nanoseconds of CPU time."""
    call, own = getattr(owner, name), name in vars(owner)
    spent: list[int] = []

    def with_clock(*given: Any, **named: Any) -> Any:
        begin = process_time_ns()
        answer = call(*given, **named)
        spent.append(process_time_ns() - begin)
        return answer

    setattr(owner, name, with_clock)
    try:
        yield spent
    finally:
        setattr(owner, name, call) if own else delattr(owner, name)


class Empty:
    """What is timed to learn what the clock itself takes."""

    def call(self) -> None:
        return None


def in_the_loop(engine: Engine, watched: Mapping[str, Sequence[tuple[Any, str]]], blocks: int) -> dict[str, float]:
    """Return the µs per step of each group of calls while the kernel trains: medians, less that of an empty call."""
    with quiet(), ExitStack() as stack:
        empty = Empty()
        nothing = stack.enter_context(timed(empty, "call"))
        spent = {name: [stack.enter_context(timed(*at)) for at in places] for name, places in watched.items()}
        for _ in range(blocks):
            engine.train()
            for _ in range(BLOCK):
                empty.call()
    done, clock = blocks * BLOCK, median(nothing)
    return {
        name: sum((median(calls) - clock) * len(calls) for calls in lists if calls) / done / 1000
        for name, lists in spent.items()
    }


def places(engine: Engine) -> dict[str, list[tuple[Any, str]]]:
    """Name the kernel's calls of a step."""
    kernel = engine.kernel
    asked = [(kernel.hooks, "schedule_lr")] if kernel.hooks.schedule_lr is not None else []
    return {
        "seeding": [(kernel, "reseed")],
        "guard": [(torch, GUARD), (kernel.flag, "item")],
        "rate and hooks": [(kernel.rates, "at"), *asked, (loop, "same"), (loop, "resolve_lr")],
        "log, noting": [(kernel.log, "micro"), (kernel.log, "step"), (kernel.keeper, "due")],
        "log, flushing": [(kernel.keeper, "rest")],
    }


class Paused:
    """A run after one backward pass, and the same calls from there, one at a time."""

    def __init__(self, engine: Engine) -> None:
        engine.train()
        self.kernel, self.plan = engine.kernel, engine.plan
        batch = self.plan.task.batch(1, 0)
        self.kernel.optimizer.zero_grad(set_to_none=True)
        self.kernel.backward(self.plan, batch, 0, batch.count)
        self.kernel.log._clear()
        self.grads = [p.grad for p in self.kernel.parameters if p.grad is not None]
        self.loss, self.micros = torch.ones(()), count(1)
        self.rates: Any = None
        self.rates = self.ask()

    def seed(self) -> None:
        self.kernel.reseed(0, 1, 7)

    def guard(self) -> None:
        kernel = self.kernel
        getattr(torch, GUARD)([*self.grads, self.loss], kernel.flag, kernel._one)
        kernel.flag.item()

    def ask(self) -> Any:
        """Work the base rate out, ask the hook if anyone implements it, and combine."""
        kernel = self.kernel
        base, advice = kernel.rates.at(1, next(self.micros)), ()
        if kernel.hooks.schedule_lr is not None:
            event = kernel.moment(Step, self.plan, 0.5, base, *kernel._asides([], None))
            advice = kernel.hooks.schedule_lr(step=event)
        used = self.rates
        return used if used is not None and same(used, base, advice) else resolve_lr(base, advice)

    def note(self) -> None:
        kernel = self.kernel
        for _ in range(FLUSH):
            kernel.log.micro(self.loss, None, BATCH)
            kernel.log.step(kernel.position.step, 0, 1, 0, BLOCK, self.rates, None)
            kernel.position.step += 1
            kernel.keeper.due(kernel.position.step)

    def note_and_forget(self) -> None:
        self.note()
        self.kernel.log._clear()

    def note_and_rest(self) -> None:
        self.note()
        self.kernel.keeper.rest(self.kernel, "step")

    def alone(self) -> dict[str, float]:
        """Return the µs per step of each call on its own, with warm caches."""
        note = per_call(self.note_and_forget, number=4) / FLUSH
        rest = per_call(self.note_and_rest, number=4) / FLUSH - note
        single = {"seeding": self.seed, "guard": self.guard, "rate and hooks": self.ask}
        return {**{name: per_call(call) for name, call in single.items()}, "log, noting": note, "log, flushing": rest}

    def commit(self) -> None:
        self.kernel.keeper.commit(self.kernel, "bench")


ABOUT = {
    "seeding": "the default generator, by position",
    "guard": "the check over all gradients and the total, and reading its flag",
    "rate and hooks": "base rate of the step, nobody to ask, combined",
    "log, noting": "loss, rates and place of the step; whether anything is due",
    "log, flushing": f"transfer, files, status and requests, every {FLUSH} steps",
}


def measure(bench: Bench) -> Section:
    width, rounds = bench.size.width, bench.rounds(30)
    hand = Hand(width)
    bare, asked = Engine(bench.folder("bare"), width), Engine(bench.folder("rates"), width, rate_plugins())
    times = interleave({"hand": steps(hand.train), "bare": steps(bare.train)}, rounds, warm_up=3)
    whole = surplus(times, "bare", "hand")
    within, spoken = (in_the_loop(engine, places(engine), rounds) for engine in (bare, asked))
    paused, also = Paused(bare), Paused(asked)
    alone = paused.alone()
    rows = [Row(name, within[name], "µs", alone[name], note=text) for name, text in ABOUT.items()]
    rest = whole[1] - sum(within.values())
    rows.append(
        Row("everything else", rest, "µs", note="calls, lists and position; torch's own calls on colder caches")
    )
    rows.append(
        Row(
            "sum: a kernel's step over one by hand",
            whole[1],
            "µs",
            note=f"paired median; +{whole[0]:.1f} µs at the smallest",
        )
    )
    further = spoken["rate and hooks"] - within["rate and hooks"]
    apart = per_call(also.ask) - alone["rate and hooks"]
    rows.append(
        Row("hooks, further", further, "µs", apart, note="phase controller and constant scale asked for the rate")
    )
    rows += _checkpoint(paused)
    for engine in (bare, asked):
        engine.close()
    method = f"{bench.size}. CPU µs per step: medians of the calls while the kernel trains {rounds} blocks of "
    method += f"{BLOCK} steps, and beside them the smallest CPU time of each call on its own, with warm caches."
    return Section("Where the time of a step goes", method, rows, ("in the loop", "alone"))  # fmt: skip


def _checkpoint(paused: Paused) -> list[Row]:
    cpu, wall = _both_clocks(paused.commit)
    weights = sum(p.numel() for p in paused.kernel.module.parameters())
    return [
        Row(f"checkpoint every {EVERY} steps", cpu / EVERY, "µs", note=f"{cpu:.0f} µs of CPU each, {weights} weights"),
        Row(
            "the same by the wall clock",
            wall / EVERY,
            "µs",
            note=f"{wall:.0f} µs each: waiting until it is on the disk",
        ),
    ]


def _both_clocks(call: Callable[[], None], repeats: int = 30) -> tuple[float, float]:
    """Return the median CPU time and the median wall time of a call that waits for the disk, in µs."""
    cpu, wall = [], []
    with quiet():
        for _ in range(repeats):
            began, clock = process_time(), perf_counter()
            call()
            cpu.append(process_time() - began)
            wall.append(perf_counter() - clock)
    return 1e6 * median(cpu), 1e6 * median(wall)
