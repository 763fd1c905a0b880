"""Files of training runs with many ranks: those of one process, written and read by any number of ranks."""

from hashlib import blake2b
from typing import Any

import numpy as np

from fusedstep import checkpoint
from fusedstep.core.arrays import order_of
from fusedstep.core.containers import present
from fusedstep.core.optimizer import Optimizer

from .agreement import Agreement, agree
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
    agreement = Agreement()
    with agreement.noting():
        if opt.world.rank == 0:
            whole = _unused(opt.optimizer)
            whole.load_state_dict(saved, hyperparameters="mine")
            checkpoint.save(path, whole, params, extra=extra)
    agree(opt.world, agreement)


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
    agreement = Agreement()
    extra = None
    with agreement.noting():
        whole = _unused(opt.optimizer)
        extra = checkpoint.load(path, whole, params, **options)
        opt.load_state_dict(whole.state_dict(), params, hyperparameters=options.get("hyperparameters", "saved"))
    agree(opt.world, agreement)
    return extra


def _unused(opt: Optimizer) -> Optimizer:
    """Return an optimizer with the same hyperparameters that has made no step."""
    found = type(opt).__new__(type(opt))
    found._begin(opt._arguments())
    return found


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
    agreement = Agreement()
    with agreement.noting():
        for key, array in present(params).items():
            line = np.ascontiguousarray(array.transpose(order_of(array)))
            digest = blake2b(line.reshape(-1).view(np.uint8).data, digest_size=8).hexdigest()
            text = f"{array.dtype} of shape {array.shape} with digest {digest}"
            agreement.add(f"params[{key!r}]", text, text.__str__)
    agree(world, agreement)
