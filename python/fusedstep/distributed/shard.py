"""
A shard of an asynchronous parameter server: some of the parameters, their optimizer, and the log of who came when.

A shard knows no threads, processes or messages. Whoever owns it calls it for one worker at a time, so that its updates
come one after the other, each an ordinary step; between shards nothing is promised.
"""

import copy
import hashlib
import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal, NamedTuple

import numpy as np

from fusedstep import _cpu
from fusedstep.core.arrays import Array, as_array
from fusedstep.core.optimizer import Optimizer
from fusedstep.core.overrides import where
from fusedstep.core.progress import listed

__all__ = ["Entry", "Form", "Log", "Options", "Shard", "arrays_like", "check_options", "dealt", "forms_of"]


class Form(NamedTuple):
    """What an array of a parameter or gradient has to be."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class Entry(NamedTuple):
    """A line of a log: a worker has got the parameters of a shard, or has given a gradient that updated them."""

    kind: Literal["pull", "push"]
    worker: int


@dataclass(frozen=True)
class Options:
    """How the shards of a run treat workers. `staleness` and `dampen` are those of `Asynchronous`."""

    staleness: int | None = None
    dampen: bool = False


@dataclass(frozen=True)
class Log:
    """
    Who came to each shard, in which order: with the first parameters and the gradient function, all of a run.

    Attributes
    ----------
    keys : tuple of tuple
        The keys of the parameters of each shard.
    entries : tuple of tuple of (kind, worker)
        For each shard, "pull" or "push" and the number of the worker, in the order in which the shard served them.
    digests : tuple of str
        For each shard, a SHA-256 of its parameters, states and averages after its last entry.
    options : Options
        `staleness` and `dampen` of the run.
    """

    keys: tuple[tuple[Hashable, ...], ...]
    entries: tuple[tuple[Entry, ...], ...]
    digests: tuple[str, ...]
    options: Options

    def lateness(self) -> list[list[int]]:
        """
        Return how late each gradient was: how many updates others have made between its pull and its push.

        Returns
        -------
        list of list of int
            For each shard, a number for each push, in the order in which the shard served them.
        """
        return [_lateness(some) for some in self.entries]


def _lateness(entries: tuple[Entry, ...]) -> list[int]:
    late: list[int] = []
    seen: dict[int, int] = {}  # worker -> updates of the shard at its last pull
    for kind, worker in entries:
        if kind == "pull":
            seen[worker] = len(late)
        else:
            late.append(len(late) - seen[worker])
    return late


def forms_of(params: Mapping[Hashable, Array]) -> dict[Hashable, Form]:
    """Return the shape and dtype of each parameter. Refuse what is not in host memory."""
    for key, p in params.items():
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"params[{key!r}] is of type {type(p).__name__}, expected an array in host memory: servers of "
                "asynchronous runs compute on CPUs"
            )
    return {key: Form(p.shape, p.dtype) for key, p in params.items()}


def arrays_like(forms: Mapping[Hashable, Form], arrays: Any, label: str) -> dict[Hashable, Array]:
    """
    Return the arrays in a container by key, in the order of `forms`.

    Raises
    ------
    TypeError, ValueError
        If keys, shapes or dtypes are others than those of `forms`.
    """
    keys, values = _cpu.leaves(arrays)
    found = {}
    for key, value in zip(keys, values, strict=True):
        if isinstance(value, (Number, np.generic)) and key in forms and forms[key].shape == ():
            # Arithmetic of NumPy makes numbers of arrays without dimensions.
            found[key] = np.asarray(value, None if isinstance(value, np.generic) else forms[key].dtype)
        elif value is not None:
            found[key] = as_array(value, f"{label}[{key!r}]")
    for key in [*forms, *found]:
        if key not in found:
            raise ValueError(f"{label} lacks the key {key!r}, expected all keys of the servers: {listed(forms)}")
        if key not in forms:
            raise ValueError(f"{label} has the key {key!r}, expected only those of the servers: {listed(forms)}")
        array, form = found[key], forms[key]
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{label}[{key!r}] is of type {type(array).__name__}, expected an array in host memory")
        if array.dtype != form.dtype:
            raise TypeError(f"{label}[{key!r}] is {array.dtype}, expected {form.dtype} like that of the servers")
        if array.shape != form.shape:
            raise ValueError(
                f"{label}[{key!r}] has shape {array.shape}, expected {form.shape} like that of the servers"
            )
    return {key: found[key] for key in forms}


def dealt(forms: Mapping[Hashable, Form], shards: int) -> tuple[tuple[Hashable, ...], ...]:
    """
    Return the keys of each shard: whole tensors, the largest first, each to the shard that has the fewest bytes.

    Tensors are not cut, so that whatever is computed by tensor (clipping by its norm, random bits, overrides that look
    at its shape) has the meaning and the bits that it has in one process.

    Raises
    ------
    ValueError
        If there are fewer tensors than shards.
    """
    if not 1 <= shards <= max(1, len(forms)):
        raise ValueError(
            f"shards is {shards}, expected 1 to {max(1, len(forms))}, the number of tensors, since tensors are not cut"
        )
    bytes_of = {key: max(1, int(np.prod(f.shape, dtype=np.int64)) * f.dtype.itemsize) for key, f in forms.items()}
    load, shard_of = [0] * shards, {}
    for key in sorted(forms, key=lambda key: -bytes_of[key]):
        shard_of[key] = k = load.index(min(load))
        load[k] += bytes_of[key]
    return tuple(tuple(key for key in forms if shard_of[key] == k) for k in range(shards))


def check_options(optimizer: Optimizer, shards: int, options: Options) -> None:
    """
    Refuse options that shards cannot keep.

    Raises
    ------
    TypeError
        If `staleness` is no integer, or `dampen` no bool.
    ValueError
        If `staleness` is below 0; if several shards are to clip by a norm of all gradients; if gradients are to be
        zeroed; or if `dampen` meets overrides that set `lr`.
    """
    if options.staleness is not None and operator.index(options.staleness) < 0:
        raise ValueError(f"staleness is {options.staleness}, expected at least 0, or None for no bound")
    if not isinstance(options.dampen, bool):
        raise TypeError(f"dampen is {options.dampen!r}, expected True or False")
    own = list(optimizer.overrides.values())
    limits = [optimizer.clip_global_norm, *(some.get("clip_global_norm") for some in own)]
    if shards > 1 and any(limit is not None for limit in limits):
        raise ValueError(
            f"clip_global_norm is {next(x for x in limits if x is not None)!r} with {shards} shards, expected None: no "
            "shard sees all gradients of a push; clip_norm clips each tensor by its own norm, and one shard clips by "
            "the norm of all"
        )
    if optimizer.zero_grad or any(some.get("zero_grad") for some in own):
        raise ValueError("zero_grad is True, expected False: servers have copies of the gradients")
    if options.dampen and any("lr" in some for some in own):
        raise ValueError("overrides sets lr beside dampen, expected one of the two: dampen divides the lr of all")


def _own(optimizer: Optimizer, keys: Sequence[Hashable]) -> Optimizer:
    """Return a copy of an optimizer for some of its parameters, whose overrides may stand for parameters elsewhere."""
    own = copy.deepcopy(optimizer)
    if gone := [key for key in own.t if key not in keys]:
        own.forget(*gone)
    own.overrides = {
        where(o.condition if isinstance(o, where) else o, optional=True): some for o, some in own.overrides.items()
    }
    return own


class Shard:
    """
    Some of the parameters, and the optimizer that updates them by the gradients of many workers.

    Parameters
    ----------
    optimizer : Optimizer
        Copied. What it knows of other parameters than these is left out of the copy.
    params : mapping
        Key -> array in host memory, of the types that `step` takes. Copied, in C order.
    options : Options
        With a bound on staleness, a worker that has finished more updates than that beyond the slowest one has to wait;
        with `dampen`, an update is made with lr divided by its lateness: the number of updates by others since its
        worker's pull, but at least 1.

    Attributes
    ----------
    params : dict
        The parameters, updated in place by `push`.
    optimizer : Optimizer
        Its own.
    entries : list of Entry
        The log.
    version : int
        The number of updates.
    clock : dict
        Worker -> the number of updates that it has finished, counted from the clock that it joined with.
    """

    def __init__(self, optimizer: Optimizer, params: Mapping[Hashable, Array], options: Options) -> None:
        self.params = {key: np.array(p, order="C") for key, p in params.items()}
        self.optimizer = _own(optimizer, list(params))
        self.options = options
        self.entries: list[Entry] = []
        self.version = 0
        self.clock: dict[int, int] = {}
        self.newcomer = 0  # the number of the next worker: none is given twice, or a replay could not tell them apart
        self._gone: set[int] = set()
        self._finished: dict[int, int] = {}  # updates of each worker that is there
        self._seen: dict[int, int] = {}  # the version of each worker's last pull, if it has not been pushed to since
        self._entry: dict[tuple[str, int], Entry] = {}  # one object for all equal lines of the log

    # Workers come and go.

    def admit(self) -> tuple[int, int]:
        """Let a new worker in. Return its number and its clock, with which it joins the other shards."""
        worker, clock = self.newcomer, min(self.clock.values(), default=0)
        self.join(worker, clock)
        return worker, clock

    def join(self, worker: int, clock: int) -> None:
        """
        Let a worker in that another shard has admitted. A worker that is there already stays as it is.

        Raises
        ------
        ValueError
            If the worker has been there and has left.
        """
        if worker in self.clock:
            return
        if worker in self._gone:
            raise ValueError(f"worker {worker} has left, expected a new number: a worker that comes back is a new one")
        self.newcomer = max(self.newcomer, worker + 1)
        self.clock[worker], self._finished[worker] = clock, 0

    def leave(self, worker: int) -> None:
        """Let a worker go, so that nobody waits for it. Who has left may be told so twice."""
        self.newcomer = max(self.newcomer, worker + 1)
        self._gone.add(worker)
        for known in (self.clock, self._finished, self._seen):
            known.pop(worker, None)

    def empty(self, newcomer: int) -> None:
        """Let all workers of an earlier process go, and give numbers from `newcomer` on."""
        for worker in [*self.clock, *([newcomer - 1] if newcomer > self.newcomer else [])]:
            self.leave(worker)

    def may_pull(self, worker: int) -> bool:
        """Return whether a worker is at most `staleness` updates ahead of the slowest one."""
        self._check_is_here(worker)
        bound = self.options.staleness
        return bound is None or self.clock[worker] <= min(self.clock.values()) + bound

    def waits_for(self, worker: int) -> str:
        """Return, for a message, whom a worker waits for that may not pull."""
        bound, own = self.options.staleness or 0, self.clock[worker]
        slow = [f"worker {other}, at {at}" for other, at in sorted(self.clock.items()) if at + bound < own]
        return f"for {'; '.join(slow)}: it is at update {own}, and staleness is {bound}"

    # Parameters and gradients.

    def pull(self, worker: int) -> dict[Hashable, Array]:
        """Return the parameters themselves, to be copied before the next `push`."""
        self._check_is_here(worker)
        self._seen[worker] = self.version
        self._note("pull", worker)
        return self.params

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:
        """
        Update the parameters in place.

        Parameters
        ----------
        worker : int
            Who has computed the gradients, of the parameters of its last pull.
        number : int
            How many pushes this worker has finished before. A push that has been made already, and is sent again since
            its sender has not heard so, is not made twice.
        grads : mapping
            Key -> array, of the shape and dtype of its parameter.

        Raises
        ------
        TypeError, ValueError
            What `step` raises. Nothing has changed then.
        RuntimeError
            If the worker is not there, or has not pulled since its last push.
        """
        if self.has_made(worker, number):
            return
        base = self.optimizer.lr
        late = self.version - self._seen[worker]
        if self.options.dampen and late > 1:
            t = max(self.optimizer.t.values(), default=0)
            self.optimizer.lr = (base(t) if callable(base) else base) / late
        try:
            self.optimizer.step(self.params, dict(grads))
        finally:
            if self.optimizer.lr is not base:
                self.optimizer.lr = base
        self.version += 1
        self.clock[worker] += 1
        self._finished[worker] += 1
        del self._seen[worker]
        self._note("push", worker)

    def has_made(self, worker: int, number: int) -> bool:
        """Return whether a push has been made before, and refuse one that cannot come next."""
        self._check_is_here(worker)
        finished = self._finished[worker]
        if number == finished - 1 and worker not in self._seen:
            return True
        if number != finished:
            raise RuntimeError(f"worker {worker} sends its push {number}, expected push {finished}")
        if worker not in self._seen:
            raise RuntimeError(f"worker {worker} pushes before it has pulled, expected a pull before each push")
        return False

    def digest(self) -> str:
        """Return a SHA-256 of parameters, states and averages."""
        digest = hashlib.sha256()
        for key, p in self.params.items():
            states = self.optimizer.state.get(key, {})
            average = self.optimizer.ema.get(key)
            for array in (p, *(states[name] for name in sorted(states)), *([] if average is None else [average])):
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def _check_is_here(self, worker: int) -> None:
        if worker not in self.clock:
            raise RuntimeError(f"worker {worker} is not among the workers {listed(self.clock)}, expected one of them")

    def _note(self, kind: Literal["pull", "push"], worker: int) -> None:
        self.entries.append(self._entry.setdefault((kind, worker), Entry(kind, worker)))
