"""Worlds: ranks that move bytes to each other, and no more. What all of them share, and the world of one rank."""

import operator
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from fusedstep.core.arrays import is_on_gpu, new_array

__all__ = [
    "TIMEOUT",
    "Alone",
    "Bytes",
    "Message",
    "Windows",
    "World",
    "as_bytes",
    "check_ranks",
    "gathered",
    "nbytes_of",
    "too_late",
    "unequal",
    "until",
]

Message = tuple[int, Any]  # the other rank, and an array
Bytes = npt.NDArray[np.uint8]

TIMEOUT = 600.0  # seconds
_EAGER = 0.1  # seconds of waiting without naps: naps from the start make short steps many times slower
_NAP = 0.001

_pass_on: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))  # Windows has no sched_yield


class World(Protocol):
    """
    Ranks that send arrays to each other.

    Messages from one rank to another are received in the order in which `start` was called, and within a call in that
    of its lists. They are bytes: no engine is ever asked for a sum, so none has a say in the order of one.

    Attributes
    ----------
    rank : int
        Which rank this is, from 0.
    size : int
        How many ranks there are.
    timeout : float
        How many seconds `wait` waits for other ranks.
    """

    timeout: float

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> Any:
        """
        Start to send and to receive arrays, and return at once.

        Parameters
        ----------
        sends, receives : sequence of (int, array)
            The other rank, and an array of any dtype and shape whose elements lie one after another, rows first. The
            arrays in `receives` are written to, at any time until `wait` returns. Until then, nothing else may write to
            any of the arrays. An array without elements is left out, here and by the other rank.

        Returns
        -------
        object
            A handle for `wait`.

        Raises
        ------
        TypeError
            If an array is none, or holds objects.
        ValueError
            If a rank is not another rank of the world, or an array is not contiguous or, in `receives`, read-only.
            Nothing has been started then.
        """
        ...

    def wait(self, handle: Any) -> None:
        """
        Wait until what was started has been sent and received.

        Raises
        ------
        TimeoutError
            If that takes more than `timeout` seconds. The message names the ranks that have been waited for.
        ValueError
            If a message has another size than the array that it is received in.
        """
        ...


class Windows(World, Protocol):
    """
    Ranks of one machine, which can have memory in common.

    What a rank has written to such memory before it starts a message is seen by the rank that has waited for the
    message. Without a message between them, a rank may see any mixture of old and new numbers.

    Attributes
    ----------
    windows : list of list of array
        What each call of `window` has returned, in the order of the calls, which is the same on all ranks.
    """

    windows: list[list[Bytes]]

    def window(self, nbytes: int) -> list[Bytes]:
        """
        Make memory that all ranks see; all ranks have to call this.

        Parameters
        ----------
        nbytes : int
            How many bytes this rank gives. Ranks may give different numbers, also none.

        Returns
        -------
        list of array
            The memory of each rank, by rank, as uint8 arrays, zeros at first, which every rank may read and write. Each
            begins at a multiple of 64 bytes. It is there as long as the world or an array refers to it; that of ranks
            of MPI, until the program ends.

        Raises
        ------
        TypeError, ValueError
            If `nbytes` of this rank is no integer, or is negative.
        MemoryError
            If this rank finds too little memory for it.
        RuntimeError
            If another rank has raised one of these. No rank has got memory then.
        TimeoutError
            If a rank does not call this.
        """
        ...


class Alone:
    """The world of a program that runs by itself: one rank, and nobody to talk to."""

    rank = 0
    size = 1
    timeout = TIMEOUT

    def __init__(self) -> None:
        self.windows: list[list[Bytes]] = []

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        """Refuse all messages, as there is no other rank."""
        check_ranks(self, sends, receives)

    def wait(self, handle: None) -> None:
        """Return at once."""

    def window(self, nbytes: int) -> list[Bytes]:
        """Make memory; see `Windows.window`."""
        self.windows.append([new_array((nbytes_of(nbytes),), np.uint8)])
        return self.windows[-1]


# What all worlds share.


def check_ranks(world: World, sends: Sequence[Message], receives: Sequence[Message]) -> None:
    """Refuse messages to or from anybody but another rank of the world."""
    for name, messages in (("sends", sends), ("receives", receives)):
        for i, (rank, _) in enumerate(messages):
            if not 0 <= rank < world.size or rank == world.rank:
                others = f"another rank than {world.rank} of the {world.size} ranks"
                wanted = others if world.size > 1 else "no message, as there is one rank only"
                raise ValueError(f"{name}[{i}] is {'to' if name == 'sends' else 'from'} rank {rank}, expected {wanted}")


def as_bytes(world: World, sends: Sequence[Message], receives: Sequence[Message]) -> list[list[tuple[int, Bytes]]]:
    """Return messages with the bytes of their arrays of NumPy, without those that are empty, or refuse them."""
    check_ranks(world, sends, receives)
    for is_written, messages in ((False, sends), (True, receives)):
        for i, (_, array) in enumerate(messages):
            flags = array.flags if isinstance(array, np.ndarray) else None
            if flags is None or not flags.c_contiguous or array.dtype.hasobject or (is_written and not flags.writeable):
                _refuse(array, f"{'receives' if is_written else 'sends'}[{i}]")
    return [
        [(rank, array.reshape(-1).view(np.uint8)) for rank, array in messages if array.size]
        for messages in (sends, receives)
    ]


def _refuse(array: Any, label: str) -> NoReturn:
    """Tell what is wrong with an array that cannot be sent or received."""
    if is_on_gpu(array):
        raise TypeError(f"{label} is on a GPU, expected an array of NumPy; distributed.nccl sends arrays of CuPy")
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{label} is of type {type(array).__name__}, expected an array of NumPy")
    if array.dtype.hasobject:
        raise TypeError(f"{label} has dtype {array.dtype}, expected numbers: objects cannot be sent as bytes")
    if not array.flags.c_contiguous:
        raise ValueError(f"{label} has strides {array.strides}, expected a C-contiguous array")
    raise ValueError(f"{label} is read-only, expected a writable array")


def too_late(world: World, ranks: Iterable[int]) -> TimeoutError:
    """Return the error of a rank that has waited for others for too long."""
    others = sorted(set(ranks))
    who = f"rank{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
    why = "expected that they start the same messages; world.timeout is the limit"
    return TimeoutError(f"rank {world.rank} has waited {world.timeout:g} s for {who}: {why}")


def unequal(sender: int, sent: object, receiver: int, expected: int) -> str:
    """Return what is wrong with a message that does not fit the array that it is received in."""
    return f"rank {sender} has sent {sent} bytes, and rank {receiver} expected {expected}"


def nbytes_of(value: Any) -> int:
    """Return how many bytes a rank asks for, or refuse the number."""
    try:
        nbytes = operator.index(value)
    except TypeError:
        raise TypeError(f"nbytes is {value!r}, expected an integer") from None
    if nbytes < 0:
        raise ValueError(f"nbytes is {nbytes}, expected 0 or more")
    return nbytes


def until(is_done: Callable[[], bool], timeout: float) -> bool:
    """
    Ask whether something is done, again and again, and return whether it was within `timeout` seconds.

    The processor is left to other threads between two questions: ranks may well be more than processors.
    """
    begin = time.monotonic()
    while not is_done():
        waited = time.monotonic() - begin
        if waited > timeout:
            return False
        if waited < _EAGER:
            _pass_on()
        else:
            time.sleep(_NAP)
    return True


def gathered(world: World, data: bytes) -> list[bytes]:
    """
    Give every rank the bytes of all ranks.

    All ranks have to call this; their bytes may have different lengths.

    Parameters
    ----------
    world : World
        The ranks.
    data : bytes
        What this rank gives.

    Returns
    -------
    list of bytes
        What each rank has given, by rank.

    Raises
    ------
    TimeoutError
        If a rank does not take part within ``world.timeout`` seconds.
    """
    others = [rank for rank in range(world.size) if rank != world.rank]
    own = np.frombuffer(data, np.uint8)
    lengths = np.full(world.size, own.size, np.int64)
    mine = lengths[world.rank : world.rank + 1]
    world.wait(world.start([(k, mine) for k in others], [(k, lengths[k : k + 1]) for k in others]))
    found = [own if k == world.rank else np.empty(lengths[k], np.uint8) for k in range(world.size)]
    world.wait(world.start([(k, own) for k in others], [(k, found[k]) for k in others]))
    return [array.tobytes() for array in found]
