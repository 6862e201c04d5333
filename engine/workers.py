"""Runs of a study in parallel processes on one machine.

Each worker trains one run after another in a process of its own. A worker that dies fails its run and is replaced.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from .order import Order, Outcome

if TYPE_CHECKING:
    from .planning import Planned

REQUESTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Worker:
    """One process and the run it trains, if any."""

    process: Any
    pipe: Connection
    planned: Planned | None = None


class Pool:
    """Keeps up to `size` workers busy; `stop` asks all of them to commit a checkpoint and leave."""

    def __init__(self, size: int, stop: threading.Event) -> None:
        self._size, self._stop = size, stop
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[Worker] = []

    def run(self, waiting: list[tuple[Planned, Order]], done: dict[str, Outcome]) -> None:
        """Execute every order, runs after the runs they read, and put outcomes into `done`."""
        left, told = list(waiting), False
        try:
            while left or any(worker.planned for worker in self._workers):
                if self._stop.is_set():
                    left = self._give_up(left, done)
                    told = told or self._tell_to_stop()
                else:
                    left = self._hand_out(left, done)
                self._collect(done)
        finally:
            self._close()

    def _hand_out(self, left: list[tuple[Planned, Order]], done: dict[str, Outcome]) -> list[tuple[Planned, Order]]:
        from .study import blocked

        for row in list(left):
            planned, order = row
            if not all(name in done for name in planned.after):
                continue
            failed = blocked(planned, done)
            if failed:
                done[planned.name] = failed
                left.remove(row)
                continue
            worker = self._idle()
            if worker is None:
                break
            try:
                worker.pipe.send(order)
            except OSError:  # it died while it had nothing to do; another takes its place
                self._workers.remove(worker)
                worker.process.join()
                continue
            worker.planned = planned
            left.remove(row)
        return left

    def _idle(self) -> Worker | None:
        free = next((worker for worker in self._workers if worker.planned is None), None)
        if free is None and len(self._workers) < self._size:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs,), daemon=False)
            with deaf():  # until it has its own handlers, a signal waits for it instead of killing it
                process.start()
            theirs.close()
            free = Worker(process, ours)
            self._workers.append(free)
        return free

    def _collect(self, done: dict[str, Outcome]) -> None:
        busy = {worker.pipe: worker for worker in self._workers if worker.planned}
        if not busy:
            return
        for pipe in wait(list(busy), timeout=0.2):
            worker = busy[pipe]  # type: ignore[index]
            assert worker.planned is not None
            try:
                outcome = worker.pipe.recv()
            except (EOFError, OSError):
                outcome = self._died(worker)
            done[worker.planned.name] = outcome
            worker.planned = None

    def _died(self, worker: Worker) -> Outcome:
        from .study import write_end

        worker.process.join()
        self._workers.remove(worker)
        assert worker.planned is not None
        code = worker.process.exitcode
        text = f"its process was killed by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        outcome = Outcome(worker.planned.name, "failed", 1, text)
        write_end(worker.planned, outcome)
        return outcome

    def _give_up(self, left: list[tuple[Planned, Order]], done: dict[str, Outcome]) -> list[tuple[Planned, Order]]:
        for planned, _ in left:
            done[planned.name] = Outcome(planned.name, "stopped", 130)
        return []

    def _tell_to_stop(self) -> bool:
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        return True

    def _close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=30)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Let the signals that ask to stop wait; a process started meanwhile inherits this."""
    resource_tracker.ensure_running()  # its start, which comes with the first process, would end our blocking
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(pipe: Connection) -> None:
    """Train what comes through the pipe until it closes; the life of a worker process."""
    from .execute import execute
    from .host import discover
    from .study import stopping

    with stopping() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
        while True:
            try:
                order: Order = pipe.recv()
            except (EOFError, OSError):
                return
            outcome = execute(order, discover(), stop)
            try:
                pipe.send(outcome)
            except OSError:
                return
