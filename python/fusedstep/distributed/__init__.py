"""
Many machines, the same bits: ranks that share a training run.

Nothing here needs an engine before it is asked for: `world` imports mpi4py where a launcher such as mpiexec has started
several ranks, and a program that runs by itself needs none.
"""

from functools import cache

from .asynchronous import Asynchronous
from .files import load, same, save
from .replay import replay
from .shard import Log
from .synchronous import Synchronous
from .windows import MPIWindows, like, shared
from .world import Alone, Windows, World, gathered, on_threads, threads

__all__ = [
    "Alone",
    "Asynchronous",
    "Log",
    "Synchronous",
    "Windows",
    "World",
    "gathered",
    "like",
    "load",
    "on_threads",
    "replay",
    "same",
    "save",
    "shared",
    "threads",
    "windows",
    "world",
]


@cache
def world() -> World:
    """
    Return the world that this program was started in.

    All ranks of a launcher have to call this. It is made once; later calls return the same world.

    Returns
    -------
    World
        The ranks of MPI, if a launcher such as mpiexec has started the program; otherwise one rank, without MPI.

    Raises
    ------
    ImportError
        If a launcher has started the program, and mpi4py or a library of MPI is not installed.
    RuntimeError
        If the launcher belongs to another implementation of MPI than the library that mpi4py has loaded.
    TimeoutError
        If another rank does not call this within ten minutes.

    Examples
    --------
    >>> from fusedstep import distributed
    >>> world = distributed.world()
    >>> world.rank, world.size
    (0, 1)
    """
    from .mpi import MPIWorld, launched_size

    return Alone() if launched_size() is None else MPIWorld()


@cache
def windows() -> Windows:
    """
    Return the world that this program was started in, with memory that all its ranks see.

    All ranks of a launcher have to call this, and all have to be on one machine. It is made once; later calls return
    the same world. It has all that `world` has.

    Returns
    -------
    Windows
        The ranks of MPI, if a launcher such as mpiexec has started the program; otherwise one rank, without MPI.

    Raises
    ------
    ImportError
        If a launcher has started the program, and mpi4py or a library of MPI is not installed.
    RuntimeError
        If the launcher belongs to another implementation of MPI than the library that mpi4py has loaded.
    TimeoutError
        If another rank does not call this within ten minutes.
    ValueError
        If the ranks are on several machines.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedstep import distributed
    >>> world = distributed.windows()
    >>> params = distributed.shared({"w": np.ones((2, 2), np.float32)}, world)  # the same memory on all ranks
    >>> grads = distributed.like(params, world)  # memory of this rank, which the others can read
    >>> params["w"].tolist(), grads["w"].tolist()
    ([[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]])
    """
    from .mpi import launched_size

    return Alone() if launched_size() is None else MPIWindows()
