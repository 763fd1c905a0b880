"""The world of ranks that are threads of one process, for trials and tests."""

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fusedstep.core.arrays import new_array

from .world import TIMEOUT, Bytes, Message, World, as_bytes, gathered, nbytes_of, too_late, unequal

__all__ = ["on_threads", "threads"]

Result = TypeVar("Result")

_GRACE = 10.0  # seconds that other ranks have to end after one has raised


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
