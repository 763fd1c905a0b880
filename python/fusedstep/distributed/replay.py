"""Repeat an asynchronous run from its log, in one process: the same updates in the same order, and the same bits."""

import copy
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from fusedstep.core.arrays import Array
from fusedstep.core.containers import present, tell_writes
from fusedstep.core.optimizer import Optimizer

from .shard import Entry, Log, Shard, arrays_like, forms_of

__all__ = ["replay"]

Gradient = Callable[[Any, int, int], Any]


def replay(log: Log, optimizer: Optimizer, params: Any, gradient: Gradient) -> None:
    """
    Make the updates of an asynchronous run again, in the order that its log tells.

    A worker is a sequential program: it gets the parameters of all shards, computes a gradient of them, and gives it to
    all shards. A log tells the order in which each shard has served the workers. So the run follows from the log, the
    first parameters and the gradient function alone; nothing depends on times.

    Parameters
    ----------
    log : Log
        What `Asynchronous.log` returned after the run.
    optimizer : Optimizer
        Like the one that the run began with. It stays as it is.
    params : array, or containers of arrays
        The parameters that the run began with. Updated in place: afterwards, those of the end of the run.
    gradient : callable
        ``gradient(params, worker, step)`` returns what the worker with the number `worker` gave in its push number
        `step`, counted from 0, having got `params`: containers like `params`. It must be the same function of its
        arguments as in the run, down to the bits.

    Raises
    ------
    ValueError
        If the log belongs to other parameters; if it ends in the middle of a step, since it was taken while workers
        were at work; or if a shard ends with other bits than in the run: its gradients were other ones. `params` stays
        as it was then.
    TypeError, ValueError
        If a gradient has another key, shape or dtype than its parameter.

    Notes
    -----
    Each worker has a copy of the parameters while it takes part.

    A gradient that has other bits than in the run is usually a matrix product: libraries of linear algebra add in
    another order with another number of threads. `python -m fusedstep run` sets this number.
    """
    first = present(params)
    forms = forms_of(first)
    if sorted(map(repr, forms)) != sorted(repr(key) for keys in log.keys for key in keys):
        raise ValueError(f"params has the keys {list(forms)}, expected those of the log, {[*map(list, log.keys)]}")
    shards = [Shard(optimizer, {key: first[key] for key in keys}, log.options) for keys in log.keys]
    entries = [_last_pulls(some) for some in log.entries]
    last: dict[int, dict[int, int]] = {}  # worker -> shard -> behind its last entry
    for k, some in enumerate(entries):
        for i, entry in enumerate(some, 1):
            last.setdefault(entry.worker, {})[k] = i
    workers: dict[int, _Worker] = {}
    at = [0] * len(shards)
    moved = True
    while moved:
        moved = False
        for k, shard in enumerate(shards):
            while at[k] < len(entries[k]):
                kind, number = entries[k][at[k]]
                if number not in workers:
                    workers[number] = _Worker(number, len(shards), params)
                worker = workers[number]
                shard.join(number, 0)
                if kind == "pull":
                    worker.pull(k, shard)
                elif worker.may_push(k):
                    worker.push(k, shard, gradient)
                else:
                    break
                at[k] += 1
                if at[k] == last[number].get(k):
                    del last[number][k]
                    if not last[number]:
                        del workers[number]  # and its copy of the parameters
                moved = True
    if left := [k for k in range(len(shards)) if at[k] < len(entries[k])]:
        raise ValueError(f"log ends in the middle of a step for shard {left[0]}, expected one of a time without steps")
    for k, (shard, digest) in enumerate(zip(shards, log.digests, strict=True)):
        if shard.digest() != digest:
            raise ValueError(
                f"shard {k} ends with other bits than in the run, expected the gradients, the first parameters and the "
                "optimizer of the run"
            )
    for shard in shards:
        for key, p in shard.params.items():
            np.copyto(first[key], p)
    tell_writes(params)


def _last_pulls(entries: tuple[Entry, ...]) -> list[Entry]:
    """Return a log without the pulls that another pull of the same worker followed, before it pushed."""
    kept, latest = [], dict[int, str]()
    for entry in reversed(entries):
        if entry.kind == "push" or latest.get(entry.worker) != "pull":
            kept.append(entry)
        latest[entry.worker] = entry.kind
    return kept[::-1]


class _Worker:
    """A worker of the run: what it has got from each shard, and the gradients that it made of that."""

    def __init__(self, number: int, shards: int, params: Any) -> None:
        self.number = number
        self._params = copy.deepcopy(params)
        self._by_key = present(self._params)
        self._pulls = [0] * shards
        self._pushes = [0] * shards
        self._step = -1  # the push that the present gradients are of
        self._grads: dict[Hashable, Array] = {}

    def may_push(self, k: int) -> bool:
        """Return whether all shards have served the pull that the next push to a shard was computed from."""
        return min(self._pulls) > self._pushes[k]

    def pull(self, k: int, shard: Shard) -> None:
        for key, p in shard.pull(self.number).items():
            np.copyto(self._by_key[key], p)
        self._pulls[k] += 1

    def push(self, k: int, shard: Shard, gradient: Gradient) -> None:
        step = self._pushes[k]
        if self._step != step:
            grads = arrays_like(forms_of(self._by_key), gradient(self._params, self.number, step), "grads")
            self._grads = {key: g.copy() for key, g in grads.items()}  # they may share memory with the parameters
            self._step = step
        shard.push(self.number, step, {key: self._grads[key] for key in shard.params})
        self._pushes[k] += 1
