"""What workers ask of the servers of a run, and servers for workers that are threads of one process."""

import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fusedstep.core.arrays import Array

from .shard import Log, Shard

__all__ = ["Failure", "InProcess", "Servers", "Work", "outcome"]

Work = Callable[[Any], Any]  # what a worker does, with its Asynchronous


class Servers(Protocol):
    """The shards of a run, wherever they are. A worker is known by its number."""

    serves: bool  # whether this process is a server, and no worker

    def join(self) -> int:
        """Let a new worker in at every shard, and return its number."""
        ...

    def pull(self, worker: int, params: Mapping[Hashable, Array]) -> None:
        """Fill arrays with the parameters of all shards. Wait while staleness forbids it, at most `timeout` seconds."""
        ...

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:
        """Give gradients to all shards; all have been updated when this returns."""
        ...

    def leave(self, worker: int) -> None:
        """Let a worker go."""
        ...

    def final(self, params: Mapping[Hashable, Array]) -> None:
        """Fill arrays with the parameters as they are, without an entry in a log."""
        ...

    def log(self) -> Log:
        """Return the log."""
        ...

    def run(self, opt: Any, work: Work, workers: int | None, may_fail: int) -> Any:
        """Let workers work, and return what they have returned when all are done."""
        ...


class InProcess:
    """
    Servers of workers that are threads of this process: shards, and a lock for each.

    Parameters
    ----------
    shards : sequence of Shard
        At least one.
    timeout : float
        How many seconds a pull waits at most for slower workers.
    """

    serves = False

    def __init__(self, shards: Sequence[Shard], timeout: float) -> None:
        self._shards = shards
        self._turns = [threading.Condition() for _ in shards]
        self._timeout = timeout
        self._stopped = False

    def join(self) -> int:
        with self._turns[0]:
            worker, clock = self._shards[0].admit()
        for turn, shard in zip(self._turns[1:], self._shards[1:], strict=True):
            with turn:
                shard.join(worker, clock)
        return worker

    def pull(self, worker: int, params: Mapping[Hashable, Array]) -> None:
        deadline = time.monotonic() + self._timeout
        for turn, shard in zip(self._turns, self._shards, strict=True):
            with turn:
                while not shard.may_pull(worker) or self._stopped:
                    if self._stopped:
                        raise RuntimeError("the run has been interrupted, expected no further pull")
                    if time.monotonic() >= deadline:
                        waits = shard.waits_for(worker)
                        raise TimeoutError(f"worker {worker} has waited {self._timeout:g} s {waits}")
                    turn.wait(max(0.0, deadline - time.monotonic()))
                _fill(params, shard.pull(worker))

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:
        for turn, shard in zip(self._turns, self._shards, strict=True):
            with turn:
                shard.push(worker, number, {key: grads[key] for key in shard.params})
                turn.notify_all()

    def leave(self, worker: int) -> None:
        for turn, shard in zip(self._turns, self._shards, strict=True):
            with turn:
                shard.leave(worker)
                turn.notify_all()

    def final(self, params: Mapping[Hashable, Array]) -> None:
        for turn, shard in zip(self._turns, self._shards, strict=True):
            with turn:
                _fill(params, shard.params)

    def log(self) -> Log:
        for turn in self._turns:  # all at once: the log then holds no push without the pulls that it came from
            turn.acquire()
        try:
            return Log(
                tuple(tuple(shard.params) for shard in self._shards),
                tuple(tuple(shard.entries) for shard in self._shards),
                tuple(shard.digest() for shard in self._shards),
                self._shards[0].options,
            )
        finally:
            for turn in self._turns:
                turn.release()

    def run(self, opt: Any, work: Work, workers: int | None, may_fail: int) -> list[Any]:
        outcomes: list[Any] = [None] * (workers or 1)
        own = [opt.another() for _ in outcomes]
        numbers = [mine.worker for mine in own]  # all join before the first begins, so that nobody runs ahead

        def one(i: int) -> None:
            try:
                outcomes[i] = work(own[i])
            except BaseException as error:  # who started the run hears of it
                error.add_note(f"raised by worker {numbers[i]}; all others have come to their end")
                outcomes[i] = Failure(error)
            finally:
                own[i].leave()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(outcomes))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # an interrupt by the user, which comes to this thread alone
            self._stopped = True
            for turn in self._turns:
                with turn:
                    turn.notify_all()
            raise
        return outcome(outcomes, may_fail)


class Failure:
    """Stands for the result of a worker that has raised or died."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def outcome(outcomes: Sequence[Any], may_fail: int) -> list[Any]:
    """Return the results of workers, with errors in place of the missing, or raise the first if there are too many."""
    errors = [some.error for some in outcomes if isinstance(some, Failure)]
    if len(errors) > may_fail:
        raise errors[0]
    return [some.error if isinstance(some, Failure) else some for some in outcomes]


def _fill(targets: Mapping[Hashable, Array], params: Mapping[Hashable, Array]) -> None:
    for key, p in params.items():
        np.copyto(targets[key], p)
