"""Files of training runs with many ranks: those of one process, written and read by any number of ranks."""

from hashlib import blake2b
from typing import Any

import numpy as np

from fusedstep import checkpoint
from fusedstep.core.arrays import order_of
from fusedstep.core.containers import present

from .agreement import Agreement, agreed
from .synchronous import Synchronous
from .world import World

__all__ = ["load", "same", "save"]


def save(path: checkpoint.Path, opt: Synchronous, params: Any, *, extra: Any = None) -> None:
    """
    Write the file that one process would write by `fusedstep.save`; all ranks have to call this.

    Parameters
    ----------
    path, params, extra
        As `fusedstep.save` takes them. Rank 0 writes the file.
    opt : Synchronous
        Only read. The states of all ranks are gathered, so each rank has room for all of them meanwhile.

    Raises
    ------
    Exception
        What `fusedstep.save` raises, on rank 0; other ranks raise RuntimeError, which says what it was.
    """
    saved = opt.state_dict(params)

    def write(_: Agreement) -> None:
        if opt.world.rank == 0:
            checkpoint.save(path, opt.optimizer._with_arrays(saved["state"], saved["ema"]), params, extra=extra)

    agreed(opt.world, write)


def load(path: checkpoint.Path, opt: Synchronous, params: Any, **options: Any) -> Any:
    """
    Load a file that `save` or `fusedstep.save` has written, by any number of ranks; all ranks have to call this.

    Parameters
    ----------
    path, params, **options
        As `fusedstep.load` takes them. Every rank reads the file, and fills its parameters.
    opt : Synchronous
        Keeps the pieces of the states that its rank owns.

    Returns
    -------
    object
        The `extra` of the file.

    Raises
    ------
    Exception
        What `fusedstep.load` raises; ranks that have met no error raise RuntimeError, which says what it was. On these,
        parameters and states may be those of the file already.
    """

    def read(_: Agreement) -> Any:
        whole = type(opt.optimizer).__new__(type(opt.optimizer))  # with the same hyperparameters, and without a step
        whole._begin(opt.optimizer._arguments())
        extra = checkpoint.load(path, whole, params, **options)
        opt.load_state_dict(whole.state_dict(), params, hyperparameters=options.get("hyperparameters", "saved"))
        return extra

    return agreed(opt.world, read, "other ranks may have loaded it")


def same(params: Any, world: World) -> None:
    """
    Return if the parameters of all ranks have the same bits; all ranks have to call this.

    Parameters
    ----------
    params : array, or containers of arrays
        The parameters, in host memory. Only read.
    world : World
        The ranks.

    Raises
    ------
    ValueError
        If a parameter differs between ranks: the message names it, and a rank.
    """

    def compare(agreement: Agreement) -> None:
        for key, array in present(params).items():
            line = np.ascontiguousarray(array.transpose(order_of(array)))
            digest = blake2b(line.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()
            text = f"{array.dtype} of shape {array.shape} with digest {digest}"
            agreement.add(f"params[{key!r}]", text, text.__str__)

    agreed(world, compare)
