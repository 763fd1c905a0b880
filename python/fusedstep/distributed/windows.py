"""Memory that all ranks of one machine see: the world of MPI that has it, and parameters and gradients in it."""

import ctypes
import errno
import mmap
import os
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from fusedstep.core.arrays import LINE, Array, is_on_gpu, new_array, order_of, same_order, span
from fusedstep.core.containers import arrays_by_key, refilled

from .agreement import Agreement, agreed
from .mpi import MPIWorld
from .world import TIMEOUT, Bytes, Message, Windows, World, gathered, nbytes_of

__all__ = ["MPIWindows", "Place", "array_at", "like", "place_of", "shared"]

_SO_FAR = "no rank has got memory"
_FOLDER = "/dev/shm"  # noqa: S108 (where MPI puts the memory that ranks share)
_MADV_POPULATE_WRITE = 23  # Linux 5.14


class MPIWindows(MPIWorld):
    """
    The ranks of an MPI communicator that are all on one machine, with memory that all of them see.

    All ranks of the communicator have to make their worlds in the same order.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The communicator; by default all ranks that were started together.
    timeout : float, default 600
        How many seconds `wait` waits for other ranks.

    Raises
    ------
    ValueError
        If MPI knows of no memory that all ranks can share, as where they are on several machines.
    ImportError, RuntimeError, TimeoutError
        As `MPIWorld` does.

    Notes
    -----
    A window of MPI can be freed by all its ranks together only. These are not: their memory, files in /dev/shm that no
    longer have a name, is there until the ranks end, however they end. Who trains several models in one program keeps
    the memory of the first one, and writes new numbers to it.

    MPI promises the order of memory and messages to those who call `MPI_Win_sync` between them, inside an epoch that
    `MPI_Win_lock_all` begins. So each window is in one such epoch for all its life, and `start` and `wait` make these
    calls. They cost less than a microsecond for each window.
    """

    def __init__(self, comm: Any = None, timeout: float = TIMEOUT) -> None:
        super().__init__(comm, timeout)
        self.windows: list[list[Bytes]] = []
        self._wins: list[Any] = []
        names = [name.decode() for name in gathered(self, self._mpi.Get_processor_name().encode())]
        # The ranks have met, so nobody waits for long in what MPI offers without a limit of time.
        machine = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        count = machine.size
        machine.Free()
        if count != self.size:
            hosts = ", ".join(f"{ranks} on {name}" for name, ranks in Counter(names).items())
            raise ValueError(
                f"ranks share no memory: {hosts}, expected all ranks on one machine; distributed.world() has the ranks "
                "of several"
            )

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> Any:
        """Start to send and to receive arrays of NumPy; see `World.start` and `Windows`."""
        self._sync()
        return super().start(sends, receives)

    def wait(self, handle: Any) -> None:
        """Wait until what was started has been sent and received; see `World.wait` and `Windows`."""
        super().wait(handle)
        self._sync()

    def _sync(self) -> None:
        for win in self._wins:
            win.Sync()

    def window(self, nbytes: int) -> list[Bytes]:
        """Make memory that all ranks see; see `Windows.window`."""
        own = agreed(self, lambda _: nbytes_of(nbytes), _SO_FAR)
        if self.size == 1:
            self.windows.append([new_array((own,), np.uint8)])
            return self.windows[-1]
        sizes = [int.from_bytes(data, "little") for data in gathered(self, own.to_bytes(8, "little"))]
        # Open MPI waits for ever where one rank finds too little room, so all of them look before they ask.
        agreed(self, lambda _: _check_room(sum(sizes)), _SO_FAR)
        win = self._mpi.Win.Allocate_shared(own + LINE, 1, _options(self._mpi), self._comm)
        found = [_aligned(win.Shared_query(rank)[0], size) for rank, size in enumerate(sizes)]
        try:
            agreed(self, lambda _: _make_present(found[self.rank]), _SO_FAR)
        except TimeoutError:
            raise
        except Exception:  # on every rank
            win.Free()
            raise
        win.Lock_all(self._mpi.MODE_NOCHECK)
        self._wins.append(win)
        self.windows.append(found)
        return found


def _options(mpi: Any) -> Any:
    """Return options of a window: each rank's memory begins in a page of its own, close to the rank that fills it."""
    info = mpi.Info.Create()
    info["alloc_shared_noncontig"] = "true"
    return info


def _aligned(buffer: Any, nbytes: int) -> Bytes:
    """Return the bytes that begin at a cache line; pages are mapped as a whole, so it is the same one on all ranks."""
    room: Bytes = np.frombuffer(buffer, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + nbytes]


def _check_room(nbytes: int) -> None:
    """Refuse to ask for more shared memory than there is: writing to what is not there would end the program."""
    folder = os.environ.get("OMPI_MCA_osc_sm_backing_directory", _FOLDER)  # noqa: SIM112 (its name)
    try:
        found = os.statvfs(folder)
    except (AttributeError, OSError):  # another system, where shared memory is no file
        return
    free = found.f_bavail * found.f_frsize
    free -= free // 16  # messages of MPI need some of it too, and Open MPI leaves a twentieth
    if found.f_blocks and nbytes > free:
        raise MemoryError(_too_little(f"nbytes of all ranks are {nbytes:,}", f"{folder} has {free:,} left", nbytes))


def _too_little(wanted: str, found: str, nbytes: int) -> str:
    size = f"{-(-nbytes // (1 << 30)) + 1}g"
    return (
        f"{wanted} and {found}, expected more: docker run --shm-size={size}, or mount -o remount,size={size} {_FOLDER}"
    )


def _make_present(own: Bytes) -> None:
    """Take memory for all pages of this rank, and fill them with zeros, or raise where there is too little."""
    if sys.platform == "linux" and own.size:
        page = mmap.PAGESIZE
        begin = own.ctypes.data // page * page
        count = ctypes.c_size_t(own.ctypes.data + own.size - begin)
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.madvise(ctypes.c_void_p(begin), count, _MADV_POPULATE_WRITE)
        # An older kernel does not know this call. There is room then, as has been looked at.
        if failed and ctypes.get_errno() in (errno.EFAULT, errno.ENOMEM):
            raise MemoryError(_too_little(f"nbytes is {own.size:,}", "shared memory has come to its end", own.size))
    own[...] = 0


# Parameters and gradients.


class _Plan(NamedTuple):
    """Where arrays lie in a window: for each array or None its first byte, and the array that is like it."""

    nbytes: int
    places: list[tuple[int, Array] | None]

    def arrays(self, memory: Bytes) -> Iterator[Array | None]:
        """Yield arrays in memory, one for each place."""
        for place in self.places:
            yield None if place is None else _laid(memory, *place)


def _planned(params: Any, agreement: Agreement | None = None) -> _Plan:
    """Return where arrays like the parameters lie, each from a cache line on, and add what they are to an agreement."""
    arrays = arrays_by_key(params)
    if agreement is not None:
        agreement.add("keys of params", list(arrays))
    places: list[tuple[int, Array] | None] = []
    end = 0
    for key, array in arrays.items():
        if array is None:
            places.append(None)
        else:
            _check(key, array)
            places.append((end, array))
            end += -(-array.nbytes // LINE) * LINE
        if agreement is not None:
            words = _words(array)
            agreement.add(f"params[{key!r}]", words, partial(str, words))
    return _Plan(end, places)


def _check(key: Hashable, array: Array) -> None:
    if is_on_gpu(array):
        raise TypeError(f"params[{key!r}] is on a GPU, expected host memory: ranks of GPUs send messages")
    if array.dtype.hasobject:
        raise TypeError(f"params[{key!r}] has dtype {array.dtype}, expected numbers")


def _words(array: Array | None) -> str:
    if array is None:
        return "None"
    order = _order(array)
    slowest_first = "" if order == sorted(order) else f", axes from slow to fast {order}"
    return f"{array.dtype} of shape {array.shape}{slowest_first}"


def _order(array: Array) -> list[int]:
    """Return the axes, the slowest one first; strides of axes of length 1, which mean nothing, have no say."""
    axes = list(range(array.ndim))
    if array.size == 0 or same_order(array, axes):
        return axes
    short = [axis for axis in axes if array.shape[axis] == 1]
    return short + [axis for axis in order_of(array) if axis not in short]


def _laid(memory: Bytes, begin: int, array: Array) -> Array:
    """Return an array in memory that is like another one."""
    order = _order(array)
    line = memory[begin : begin + array.nbytes].view(array.dtype)
    return line.reshape([array.shape[axis] for axis in order]).transpose(np.argsort(order).tolist())


def shared(params: Any, world: World) -> Any:
    """
    Return parameters that are the same memory on all ranks, with the numbers of rank 0; all ranks have to call this.

    Whoever writes to such an array writes to that of all ranks, so ranks write to different places, or one at a time
    with messages between. `distributed.Synchronous` does so.

    Parameters
    ----------
    params : array, or containers of arrays
        The parameters, as `step` takes them, with the same keys, shapes, dtypes and orders in memory on all ranks. They
        stay as they are. Only the numbers of rank 0 are read.
    world : Windows
        The ranks: `windows()`, or those of `on_threads`.

    Returns
    -------
    array, or containers of arrays
        Containers of the same kinds and keys, with arrays of NumPy of the same shapes, dtypes and orders in memory,
        each from a multiple of 64 bytes on.

    Raises
    ------
    TypeError
        If ranks of the world have no memory in common, or an array is on a GPU or holds objects.
    ValueError
        If ranks have different parameters: the message names a rank and what differs.
    MemoryError
        If there is too little memory.
    RuntimeError
        If another rank has raised an error.
    TimeoutError
        If a rank does not call this.

    Examples
    --------
    >>> import numpy as np
    >>> from fusedstep import distributed
    >>> def see(world):
    ...     params = distributed.shared({"w": np.full(2, world.rank)}, world)
    ...     if world.rank == 1:
    ...         params["w"][0] = 7
    ...     distributed.gathered(world, b"")  # each rank waits for all
    ...     return params["w"].tolist()
    >>> distributed.on_threads(2, see)
    [[7, 0], [7, 0]]
    """
    windows = _with_windows(world)
    plan = agreed(world, lambda agreement: _planned(params, agreement), _SO_FAR)
    memory = windows.window(plan.nbytes if world.rank == 0 else 0)[0]
    arrays = list(plan.arrays(memory))
    if world.rank == 0:
        for array, place in zip(arrays, plan.places, strict=True):
            if array is not None and place is not None:
                array[...] = place[1]
    gathered(world, b"")  # nobody reads before rank 0 has written
    return refilled(params, arrays)


def like(params: Any, world: World) -> Any:
    """
    Return zeros like the parameters, in memory of this rank that others can read; all ranks have to call this.

    It is for gradients: `distributed.Synchronous` reads them where they lie. Write to them by ``out=`` in NumPy, or let
    them be those of PyTorch: ``p.grad = torch.from_numpy(grads["w"])``.

    Parameters
    ----------
    params : array, or containers of arrays
        The parameters, as `step` takes them.
    world : Windows
        The ranks: `windows()`, or those of `on_threads`.

    Returns
    -------
    array, or containers of arrays
        Containers of the same kinds and keys, with arrays of NumPy of the same shapes, dtypes and orders in memory,
        each from a multiple of 64 bytes on.

    Raises
    ------
    TypeError
        If ranks of the world have no memory in common, or an array is on a GPU or holds objects.
    MemoryError
        If there is too little memory.
    RuntimeError
        If another rank has raised an error.
    TimeoutError
        If a rank does not call this.
    """
    windows = _with_windows(world)
    plan = agreed(world, lambda _: _planned(params), _SO_FAR)
    return refilled(params, plan.arrays(windows.window(plan.nbytes)[world.rank]))


def _with_windows(world: Any) -> Windows:
    if not hasattr(world, "window"):
        raise TypeError(
            f"world is {type(world).__name__}, whose ranks have no memory in common, expected distributed.windows()"
        )
    windows: Windows = world
    return windows


# Where arrays lie, as ranks tell each other.


class Place(NamedTuple):
    """Where the first element of an array lies: in whose memory of which window, and how many bytes from its begin."""

    rank: int
    window: int
    offset: int


def place_of(array: Array, world: World) -> Place | None:
    """
    Return where an array lies in the windows of a world, so that another rank can make an array of the same memory.

    Parameters
    ----------
    array : array
        Any array, also a view whose elements do not lie one after another.
    world : World
        The ranks, with windows or not.

    Returns
    -------
    Place or None
        The place of the array's first element, or None if not all of the array lies in one rank's memory of one window,
        or it has no elements.
    """
    windows: list[list[Bytes]] = getattr(world, "windows", [])
    if not windows or not array.size:
        return None
    device, begin, end = span(array)
    if device >= 0:
        return None
    for number, memory in enumerate(windows):
        for rank, room in enumerate(memory):
            first = room.ctypes.data
            if first <= begin and end <= first + room.size:
                return Place(rank, number, array.ctypes.data - first)
    return None


def array_at(
    world: Windows, place: Place, dtype: Any, shape: Sequence[int], strides: Sequence[int] | None = None
) -> Array:
    """
    Return the array that lies at a place, which `place_of` has told on this or another rank.

    Parameters
    ----------
    world : Windows
        The ranks.
    place : Place
        Where the first element lies.
    dtype : dtype
        What the elements are.
    shape : sequence of int
        The shape.
    strides : sequence of int, optional
        Bytes from one element to the next along each axis; by default, rows are contiguous.

    Returns
    -------
    array
        An array of NumPy, in the same memory as the other rank's.

    Raises
    ------
    TypeError
        If the elements are objects.
    ValueError
        If the world has no such window, or the array would not lie in it.
    """
    rank, number, offset = place
    if not (0 <= number < len(world.windows) and 0 <= rank < world.size and offset >= 0):
        raise ValueError(f"place is {place}, expected one in {len(world.windows)} windows of {world.size} ranks")
    if np.dtype(dtype).hasobject:
        raise TypeError(f"dtype is {np.dtype(dtype)}, expected numbers")
    room = world.windows[number][rank]
    try:
        return np.ndarray(shape, dtype, room.data, offset, strides)
    except (TypeError, ValueError) as error:  # its buffer ends too early
        raise ValueError(
            f"place is {place}, and the window has {room.size} bytes there, expected more for {np.dtype(dtype)} of "
            f"shape {tuple(shape)} ({error})"
        ) from None
