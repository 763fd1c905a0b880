"""Worlds: ranks that move bytes to each other, and no more. Here those of one process; other files ask an engine."""

import operator
import os
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

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
    "on_threads",
    "threads",
    "too_late",
    "unequal",
    "until",
]

Message = tuple[int, Any]  # the other rank, and an array
Bytes = npt.NDArray[np.uint8]
Result = TypeVar("Result")

TIMEOUT = 600.0  # seconds
_EAGER = 0.1  # seconds of waiting without naps: naps from the start make short steps many times slower
_NAP = 0.001
_GRACE = 10.0  # seconds that other ranks have to end after one has raised

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


# Ranks that are threads.


class _End:
    """One end of a message: what its sender or its receiver has started."""

    __slots__ = ("array", "is_done", "other", "problem", "rank")

    def __init__(self, rank: int, other: int, array: Bytes) -> None:
        self.rank = rank
        self.other = other
        self.array = array
        self.is_done = False
        self.problem = ""


class _Hall:
    """
    Where threads meet: the ends of messages whose other ends have not come yet, the ranks that have left, and memory.

    Memory is by the number of the call that has asked for it, and by rank. An error stands for memory that is missing.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ends: dict[tuple[int, int], deque[tuple[bool, _End]]] = {}
        self.rooms: defaultdict[int, dict[int, Bytes | Exception]] = defaultdict(dict)
        self.gone: dict[int, BaseException | None] = {}  # in the order in which they left

    def leave(self, rank: int, error: BaseException | None = None) -> None:
        with self.changed:
            self.gone.setdefault(rank, error)
            self.changed.notify_all()

    def match(self, is_sent: bool, end: _End) -> _End | None:
        """Return the other end of a message if it is there, or leave this one for it."""
        pair = (end.rank, end.other) if is_sent else (end.other, end.rank)
        line = self.ends.setdefault(pair, deque())
        if line and line[0][0] != is_sent:
            return line.popleft()[1]
        line.append((is_sent, end))
        return None


class _ThreadWorld:
    """A rank that is a thread of this process. Whoever comes second to a message copies it."""

    def __init__(self, rank: int, size: int, hall: _Hall) -> None:
        self.rank = rank
        self.size = size
        self.timeout = TIMEOUT
        self.windows: list[list[Bytes]] = []
        self._calls = 0
        self._hall = hall

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[_End]:
        sent, received = as_bytes(self, sends, receives)
        ends, pairs = [], []
        with self._hall.changed:
            for is_sent, messages in ((True, sent), (False, received)):
                for other, array in messages:
                    end = _End(self.rank, other, array)
                    ends.append(end)
                    if (found := self._hall.match(is_sent, end)) is not None:
                        pairs.append((end, found) if is_sent else (found, end))
        for source, target in pairs:
            if source.array.size == target.array.size:
                target.array[...] = source.array
            else:
                problem = unequal(source.rank, source.array.size, target.rank, target.array.size)
                source.problem = target.problem = problem
        if pairs:
            with self._hall.changed:
                for source, target in pairs:
                    source.is_done = target.is_done = True
                self._hall.changed.notify_all()
        return ends

    def wait(self, handle: list[_End]) -> None:
        def lost() -> list[int]:
            return [end.other for end in handle if not end.is_done and end.other in self._hall.gone]

        def may_go() -> bool:
            return all(end.is_done for end in handle) or bool(lost())

        with self._hall.changed:
            self._hall.changed.wait_for(may_go, self.timeout)
            for other in lost():
                error = self._hall.gone[other]
                how = "returned" if error is None else f"raised {type(error).__name__}: {error}"
                raise RuntimeError(f"rank {self.rank} waits for rank {other}, which has {how}") from error
            late = [end.other for end in handle if not end.is_done]
            if late:
                raise too_late(self, late)
        for end in handle:
            if end.problem:
                raise ValueError(end.problem)

    def window(self, nbytes: int) -> list[Bytes]:
        own: Bytes | Exception
        try:
            own = new_array((nbytes_of(nbytes),), np.uint8)
        except Exception as error:  # is raised when all ranks know of it
            own = error
        with self._hall.changed:
            rooms = self._hall.rooms[self._calls]
            rooms[self.rank] = own
        self._calls += 1
        gathered(self, b"")  # nobody goes on before all ranks have come
        if isinstance(own, Exception):
            raise own
        found = []
        for rank in range(self.size):
            room = rooms[rank]
            if isinstance(room, Exception):
                raise RuntimeError(f"rank {rank} has raised {type(room).__name__}: {room}; no rank has got memory")
            found.append(room)
        self.windows.append(found)
        return found


def threads(size: int) -> list[World]:
    """
    Make a world whose ranks are threads of this process.

    Parameters
    ----------
    size : int
        How many ranks.

    Returns
    -------
    list of World
        The world as each rank sees it, by rank. Each is for one thread. Ranks can have memory in common: see `Windows`.

    Raises
    ------
    ValueError
        If `size` is less than 1.
    """
    return list(_worlds(size))


def _worlds(size: int) -> list[_ThreadWorld]:
    if size < 1:
        raise ValueError(f"size is {size}, expected at least 1 rank")
    hall = _Hall()
    return [_ThreadWorld(rank, size, hall) for rank in range(size)]


def on_threads(size: int, function: Callable[[World], Result]) -> list[Result]:
    """
    Call a function on each rank of a world of threads, and wait for all.

    A rank that waits for another one that has returned or raised raises too, so all ranks end with the first error.

    Parameters
    ----------
    size : int
        How many ranks.
    function : callable
        What each rank does; it is given the world as the rank sees it.

    Returns
    -------
    list
        What each rank has returned, by rank.

    Raises
    ------
    ValueError
        If `size` is less than 1.
    BaseException
        The error of the rank that has raised first, with a note that names the rank. Ranks that go on for ten seconds
        after it are left behind, and named in the note.
    """
    worlds = _worlds(size)
    hall = worlds[0]._hall
    results: dict[int, Result] = {}

    def run(world: _ThreadWorld) -> None:
        try:
            results[world.rank] = function(world)
        except BaseException as error:
            hall.leave(world.rank, error)
        else:
            hall.leave(world.rank)

    for world in worlds:
        threading.Thread(target=run, args=(world,), name=f"rank {world.rank}", daemon=True).start()
    try:
        with hall.changed:
            hall.changed.wait_for(
                lambda: len(hall.gone) == size or any(error is not None for error in hall.gone.values())
            )
            hall.changed.wait_for(lambda: len(hall.gone) == size, _GRACE)
    except BaseException as error:  # an interrupt, say: whoever waits for another rank ends
        for world in worlds:
            hall.leave(world.rank, error)
        raise
    for rank, first in hall.gone.items():
        if first is not None:
            left = ", ".join(str(k) for k in range(size) if k not in hall.gone)
            first.add_note(f"This was raised on rank {rank} of {size}." + (f" Not ended: rank {left}." if left else ""))
            raise first
    return [results[rank] for rank in range(size)]
