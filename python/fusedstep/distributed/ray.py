"""Servers and workers that are actors of Ray, on one machine or many: workers come and go, and servers come back."""

import time
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fusedstep.core.arrays import Array
from fusedstep.core.optimizer import Optimizer

from .journal import saved
from .servers import Failure, Work, outcome
from .shard import Entry, Log, Options

__all__ = ["Actors"]

_NAP, _LONGEST_NAP = 1e-3, 0.05  # seconds between two questions of a worker that has to wait
_START = 120.0  # seconds that a server has at least to start: its process, imports, and its files


class _Server:
    """A shard in a process of its own. Ray calls it for one worker at a time, and makes it anew when it has died."""

    def __init__(
        self, optimizer: Optimizer, params: Mapping[Hashable, Array], options: Options, path: str | None, k: int
    ) -> None:
        self._shard = saved(optimizer, params, options, path, k)

    def newcomer(self) -> int:
        return self._shard.newcomer

    def empty(self, newcomer: int) -> None:
        self._shard.empty(newcomer)

    def admit(self) -> tuple[int, int]:
        return self._shard.admit()

    def join(self, worker: int, clock: int) -> None:
        self._shard.join(worker, clock)

    def leave(self, worker: int) -> None:
        self._shard.leave(worker)

    def pull(self, worker: int) -> list[Array] | str:
        """Return the parameters, or whom the worker has to wait for."""
        if not self._shard.may_pull(worker):
            return self._shard.waits_for(worker)
        return list(self._shard.pull(worker).values())

    def push(self, worker: int, number: int, grads: list[Array]) -> None:
        self._shard.push(worker, number, dict(zip(self._shard.params, grads, strict=True)))

    def final(self) -> list[Array]:
        return list(self._shard.params.values())

    def log(self) -> tuple[tuple[Entry, ...], str]:
        return tuple(self._shard.entries), self._shard.digest()


class _Worker:
    """A worker in a process of its own."""

    def ready(self) -> None:
        pass

    def run(self, opt: Any, number: int, work: Work) -> Any:
        opt._worker = number
        try:
            return work(opt)
        finally:
            opt.leave()


class Actors:
    """
    Servers that are actors of Ray. Can be pickled: who has a copy, on any machine of the cluster, can be a worker.

    Parameters and errors are those of `Asynchronous`. Where there is a path, a server that dies is made anew and goes
    on from its files: workers ask again, and a push that it had made already is not made twice.
    """

    serves = False

    def __init__(
        self,
        optimizer: Optimizer,
        params: Mapping[Hashable, Array],
        keys: Sequence[Sequence[Hashable]],
        options: Options,
        path: str | None,
        timeout: float,
    ) -> None:
        ray = _ray()
        if not ray.is_initialized():
            ray.init(include_dashboard=False)
        self._keys, self._options, self._timeout = tuple(map(tuple, keys)), options, timeout
        self._comes_back = path is not None
        kind = ray.remote(num_cpus=0, max_restarts=-1 if self._comes_back else 0, max_task_retries=0)(_Server)
        parts = [{key: params[key] for key in some} for some in keys]
        self._servers = [kind.remote(optimizer, part, options, path, k) for k, part in enumerate(parts)]
        newcomer = max(self._ask("newcomer", timeout=max(timeout, _START)))
        self._ask("empty", newcomer)

    # Workers.

    def join(self) -> int:
        ((worker, clock),) = self._ask("admit", servers=[0])
        self._ask("join", worker, clock, servers=range(1, len(self._servers)))
        return int(worker)

    def pull(self, worker: int, params: Mapping[Hashable, Array]) -> None:
        deadline, nap = time.monotonic() + self._timeout, _NAP
        left = list(range(len(self._servers)))
        while left:
            waits = []
            for k, answer in zip(left, self._ask("pull", worker, servers=left), strict=True):
                if isinstance(answer, str):
                    waits.append((k, answer))
                else:
                    self._fill(k, answer, params)
            if waits and time.monotonic() > deadline:
                raise TimeoutError(f"worker {worker} has waited {self._timeout:g} s {waits[0][1]}")
            if waits:
                time.sleep(nap)
                nap = min(2 * nap, _LONGEST_NAP)
            left = [k for k, _ in waits]

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:
        self._ask("push", worker, number, each=[[grads[key] for key in some] for some in self._keys])

    def leave(self, worker: int) -> None:
        self._ask("leave", worker)

    def final(self, params: Mapping[Hashable, Array]) -> None:
        for k, answer in enumerate(self._ask("final")):
            self._fill(k, answer, params)

    def log(self) -> Log:
        entries, digests = zip(*self._ask("log"), strict=True)
        return Log(self._keys, entries, digests, self._options)

    def _fill(self, k: int, answer: list[Array], params: Mapping[Hashable, Array]) -> None:
        for key, p in zip(self._keys[k], answer, strict=True):
            np.copyto(params[key], p)

    def _ask(
        self,
        method: str,
        *arguments: Any,
        servers: Sequence[int] | None = None,
        each: Sequence[Any] | None = None,
        timeout: float | None = None,
    ) -> list[Any]:
        """Call a method of all servers at once, with an argument of its own for each, and return their answers."""
        numbers = range(len(self._servers)) if servers is None else servers
        calls = [(k, (*arguments, *([] if each is None else [each[k]]))) for k in numbers]
        sent = [getattr(self._servers[k], method).remote(*given) for k, given in calls]
        seconds = self._timeout if timeout is None else timeout
        return [self._answer(k, method, given, ref, seconds) for (k, given), ref in zip(calls, sent, strict=True)]

    def _answer(self, k: int, method: str, arguments: tuple[Any, ...], ref: Any, timeout: float) -> Any:
        """Return the answer of a server. One that has died is asked again until it is back."""
        ray = _ray()
        deadline = time.monotonic() + timeout
        while True:
            try:
                return ray.get(ref, timeout=max(0.1, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                raise TimeoutError(f"server {k} has not answered for {timeout:g} s") from None
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except ray.exceptions.RayActorError as error:
                if not self._comes_back or time.monotonic() > deadline:
                    wanted = "it to come back" if self._comes_back else "one that comes back: with path=, servers do"
                    raise RuntimeError(f"server {k} is gone, expected {wanted}") from error
                time.sleep(_LONGEST_NAP)
                ref = getattr(self._servers[k], method).remote(*arguments)

    def run(self, opt: Any, work: Work, workers: int | None, may_fail: int) -> list[Any]:
        ray = _ray()
        kind = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(_Worker)
        actors = [kind.remote() for _ in range(workers or 1)]
        # A worker joins when it has a place to run on, or others would wait for one that is yet to begin.
        pending: dict[Any, tuple[int, int | None]] = {actor.ready.remote(): (i, None) for i, actor in enumerate(actors)}
        outcomes: list[Any] = [None] * len(actors)
        try:
            while pending:
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                i, number = pending.pop(ref)
                try:
                    answer = ray.get(ref)
                    if number is None:
                        number = self.join()
                        pending[actors[i].run.remote(opt, number, work)] = i, number
                        continue
                    outcomes[i] = answer
                except Exception as error:
                    outcomes[i] = Failure(self._loss(error, number))
                ray.kill(actors[i])  # its core may be what another worker waits for
        finally:
            for actor in actors:
                ray.kill(actor)
        return outcome(outcomes, may_fail)

    def _loss(self, error: Exception, number: int | None) -> Exception:
        """Return what has ended a worker, after it has been made to leave, so that nobody waits for it."""
        if number is not None:
            self.leave(number)
        cause = getattr(error, "cause", None)
        found = cause if isinstance(cause, Exception) else error
        found.add_note(f"raised by worker {number}; all others have come to their end")
        return found


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError('ray is not installed: python -m pip install "fusedstep[ray]"', name="ray") from error
    return ray
