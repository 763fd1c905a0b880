"""Asynchronous training: workers that pull parameters from servers and push gradients to them, each at its own pace."""

import math
from collections.abc import Hashable
from os import PathLike, fspath
from typing import Any, Literal, Self

from fusedstep.core.arrays import Array
from fusedstep.core.containers import check_kept, present, tell_writes
from fusedstep.core.hyperparameters import integer
from fusedstep.core.optimizer import Optimizer

from .journal import saved
from .servers import InProcess, Servers, Work
from .shard import Log, Options, arrays_like, check_options, dealt, forms_of

__all__ = ["Asynchronous"]


class Asynchronous:
    """
    A parameter server: workers pull the parameters, compute gradients of them, and push these, without a common beat.

    The parameters are dealt to shards, whole tensors, the largest first. A shard makes an ordinary step of `optimizer`
    with each gradient that is pushed, one after the other, whoever it comes from. So gradients are late: others may
    have updated the parameters since the pull. In which order workers come is up to chance; but each shard writes a
    log of it, and `replay` makes the same updates again, to the same bits.

    Parameters
    ----------
    optimizer : Optimizer
        Copied, for each shard. It stays as it is.
    world : World or None
        The ranks that take part. On several processes of MPI, the last `shards` ranks are servers and all others are
        workers; every rank makes this object with the same arguments. With one rank, or None, servers and workers are
        in this process: the workers of `run` are threads.
    params : array, or containers of arrays
        The first parameters, the same on all ranks, in host memory. At the end of `run` they are the last ones, in
        place.
    shards : int
        How many servers share the parameters, at most as many as there are tensors.
    staleness : int or None
        How many finished updates a worker may be ahead of the slowest one: what is faster waits in its pull. 0 lets all
        workers make their updates side by side; None is no bound.
    dampen : bool
        Whether an update that is late is made with less lr: lr / lateness, where lateness is the number of updates that
        others have made since the pull, but at least 1.
    path : str or os.PathLike, optional
        Where the servers keep files, ``PATH.0.npz``, ``PATH.0.journal`` and so on, of all that they have answered. A
        server that starts anew goes on from its files, and so does a later run with the same path. On the machine of
        the server, or where all machines see it.
    engine : {None, "ray"}
        With "ray", servers are actors of Ray and `run` starts workers as such, on all machines of the cluster that
        ``ray.init`` has joined; without it, one is started on this machine. `world` is None then.
    timeout : float
        Seconds after which a pull that waits for others, or a call that no server answers, raises.

    Raises
    ------
    TypeError
        If a parameter is not in host memory, or an argument has a wrong type.
    ValueError
        If `shards` is no number of servers for these tensors and ranks; if `clip_global_norm` is set with several
        shards, none of which sees all gradients of a push, `dampen` with overrides of lr, or `zero_grad`; if the
        optimizer's options do not fit the parameters; if ranks begin with different parameters; or if the files at
        `path` belong to others.
    ImportError
        If a package of the engine is missing.
    TimeoutError
        If a rank does not come.

    Notes
    -----
    All options of optimizers hold by tensor as in one process. `skip_nonfinite` skips the step of the shards whose
    gradients are not finite; others make theirs.

    A worker is told apart by its number, `worker`, and its pushes by theirs, `done`: a program that chooses its rows
    as a function of the two can be replayed.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedstep as fs
    >>> from fusedstep import distributed
    >>> def gradient(params, worker, step):
    ...     return {"w": params["w"] - worker - step % 2, "b": params["b"] - 1}
    >>> def work(opt):
    ...     params = {"w": np.zeros(3), "b": np.zeros(1)}
    ...     while opt.done < 50:
    ...         opt.pull(params)
    ...         opt.push(gradient(params, opt.worker, opt.done))
    >>> params = {"w": np.zeros(3), "b": np.zeros(1)}
    >>> opt = distributed.Asynchronous(fs.SGD(lr=0.05), None, params, shards=2, staleness=2)
    >>> results = opt.run(work, workers=3)
    >>> again = {"w": np.zeros(3), "b": np.zeros(1)}
    >>> distributed.replay(opt.log(), fs.SGD(lr=0.05), again, gradient)
    >>> (again["w"] == params["w"]).all(), params["b"].round(3).item()
    (np.True_, 1.0)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        world: Any,
        params: Any,
        *,
        shards: int = 1,
        staleness: int | None = None,
        dampen: bool = False,
        path: str | PathLike[str] | None = None,
        engine: Literal["ray"] | None = None,
        timeout: float = 600.0,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is of type {type(optimizer).__name__}, expected an optimizer of fusedstep")
        if engine not in (None, "ray"):
            raise ValueError(f"engine is {engine!r}, expected 'ray', or None for the ranks of world or this process")
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout is {timeout!r}, expected a number of seconds above 0: nobody waits for ever")
        size = 1 if world is None else world.size
        if engine == "ray" and size > 1:
            raise ValueError(f"world has {size} ranks beside engine='ray', expected None: Ray starts its own processes")
        arrays = present(params)
        check_kept(params)
        self._params = params
        self._forms = forms_of(arrays)
        options = Options(staleness, dampen)
        check_options(optimizer, integer("shards", shards, 1), options)
        optimizer.groups(params)  # raises where overrides fit no parameter; a shard sees only some of them
        keys = dealt(self._forms, shards)
        self._worker: int | None = None
        self._done = 0
        self._has_pulled = False
        self._gone = ""  # why this worker can do no more
        place = None if path is None else fspath(path)
        self._servers = _servers(engine, optimizer, world, arrays, keys, options, place, timeout)

    @property
    def serves(self) -> bool:
        """Whether this rank is a server, which has no number and cannot pull and push."""
        return self._servers.serves

    @property
    def worker(self) -> int:
        """The number of this worker, which no other has or has had. Who asks for it, or pulls, joins the run."""
        if self.serves:
            raise RuntimeError("this rank is a server, expected a worker: give what workers do to `run`")
        if self._gone:
            raise RuntimeError(f"this worker {self._gone}, expected a new one")
        if self._worker is None:
            self._worker = self._servers.join()
        return self._worker

    @property
    def done(self) -> int:
        """The number of finished pushes of this worker."""
        return self._done

    def pull(self, params: Any) -> None:
        """
        Fill arrays with the present parameters of all servers.

        Parameters
        ----------
        params : array, or containers of arrays
            Of the keys, shapes and dtypes of the parameters that the run began with. Updated in place; each worker has
            its own.

        Raises
        ------
        TypeError, ValueError
            If a key, shape or dtype is another, or an array is read-only. Nothing has been written then.
        TimeoutError
            If slower workers have been waited for too long, or a server does not answer.
        RuntimeError
            If a server is gone, or this worker has left.
        """
        targets = arrays_like(self._forms, params, "params")
        for key, p in targets.items():
            if not p.flags.writeable:
                raise ValueError(f"params[{key!r}] is read-only, expected a writable array")
        self._servers.pull(self.worker, targets)
        self._has_pulled = True
        tell_writes(params)

    def push(self, grads: Any) -> None:
        """
        Update the parameters of the servers with gradients of what this worker has pulled last.

        When this returns, all servers have been updated.

        Parameters
        ----------
        grads : array, or containers of arrays
            Of the keys, shapes and dtypes of the parameters. Only read.

        Raises
        ------
        TypeError, ValueError
            If a key, shape or dtype is another; nothing has changed then. Or if a server refuses the step, as with a
            schedule out of range: this worker has left then.
        RuntimeError
            If nothing has been pulled since the last push, if a server is gone, or if this worker has left.
        TimeoutError
            If a server does not answer.
        """
        worker = self.worker
        arrays = arrays_like(self._forms, grads, "grads")
        if not self._has_pulled:
            raise RuntimeError("push comes before a pull, expected a pull before each push")
        try:
            self._servers.push(worker, self._done, arrays)
        except BaseException as error:
            self.leave()  # some shards may have made the update and others not, so that this worker is out of step
            self._gone = f"has left after {type(error).__name__} in a push"
            raise
        self._has_pulled = False
        self._done += 1

    def leave(self, worker: int | None = None) -> None:
        """
        Leave the run, so that nobody waits for this worker. Whoever has left may say so again.

        Parameters
        ----------
        worker : int, optional
            Another worker that is known to be dead, in place of this one.
        """
        if worker is not None:
            self._servers.leave(worker)
        elif not self._gone and not self.serves:
            self.end()
            if self._worker is not None:
                self._servers.leave(self._worker)

    def end(self) -> None:
        """Let this worker do no more; the servers are not told."""
        self._gone = self._gone or "has left"

    def log(self) -> Log:
        """
        Return the log of all shards, for `replay`.

        Raises
        ------
        RuntimeError
            On ranks of MPI before the end of `run`.

        Notes
        -----
        With Ray, ask for it when no worker is at work: servers are asked one after the other.
        """
        return self._servers.log()

    def run(self, work: Work, workers: int | None = None, *, may_fail: int = 0) -> Any:
        """
        Let workers work and servers serve until all workers have come to their end.

        Afterwards, the `params` that the run began with are those of the servers, in place.

        Parameters
        ----------
        work : callable
            What a worker does: it is called with the worker's own `Asynchronous`, to pull and push with. With Ray, it
            is sent to other processes by pickling, with all that it refers to.
        workers : int, optional
            How many workers to start, 1 by default: threads, or actors of Ray. On ranks of MPI, all ranks that do not
            serve are workers, and this is None.
        may_fail : int
            How many workers may raise or die. The others go on in any case: nobody waits for who has left.

        Returns
        -------
        object
            On ranks of MPI, what `work` returned on this rank, and None on a server. Else a list with what each worker
            returned, or its error.

        Raises
        ------
        Exception
            What a worker has raised, with a note of its number, if more than `may_fail` have: when all others have come
            to their end.
        ValueError
            If `workers` or `may_fail` is out of range, or not None where it should be.
        """
        if workers is not None:
            workers = integer("workers", workers, 1)
        if self._params is None:
            raise RuntimeError("run is called by a worker, expected the process that made this object")
        found = self._servers.run(self, work, workers, integer("may_fail", may_fail, 0))
        self._servers.final(present(self._params))
        tell_writes(self._params)
        return found

    def another(self) -> Self:
        """Return another worker of the same run, which joins with its first pull."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other._worker, other._done, other._has_pulled, other._gone = None, 0, False, ""
        return other

    def __getstate__(self) -> dict[str, Any]:
        return vars(self.another()) | {"_params": None}  # who gets a copy in another process is a worker


def _servers(
    engine: str | None,
    optimizer: Optimizer,
    world: Any,
    params: dict[Hashable, Array],
    keys: tuple[tuple[Hashable, ...], ...],
    options: Options,
    path: str | None,
    timeout: float,
) -> Servers:
    """Return the servers of a run, on the engine that fits."""
    if engine == "ray":
        from .ray import Actors

        return Actors(optimizer, params, keys, options, path, timeout)
    if world is not None and world.size > 1:
        from .ranks import Ranks

        return Ranks(optimizer, world, params, keys, options, path, timeout)
    parts = [{key: params[key] for key in some} for some in keys]
    shards = [saved(optimizer, part, options, path, k) for k, part in enumerate(parts)]
    newcomer = max(shard.newcomer for shard in shards)
    for shard in shards:
        shard.empty(newcomer)
    return InProcess(shards, timeout)
