"""The world of the ranks of MPI, by mpi4py, which is imported when a world is made: that starts MPI."""

import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from .world import TIMEOUT, Bytes, Message, as_bytes, too_late, unequal, until

__all__ = ["MPIWorld", "launched_size"]

_LARGEST = 1 << 30  # bytes of a message: Open MPI refuses more than 2^31
_BUFFERED = 1 << 16  # bytes of a message that every MPI takes over, so that it travels while nobody waits
_PERIOD = 0.0005  # seconds between two looks at messages that nobody waits for yet

# Variables that launchers set for each rank: how many ranks there are. Slurm's has the last word, since an mpiexec may
# run within a task of Slurm.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def launched_size() -> int | None:
    """Return how many ranks a launcher such as mpiexec says that it has started, or None without one."""
    for variable in _SIZES:
        if os.environ.get(variable, "").isdecimal():
            return int(os.environ[variable])
    loaded = sys.modules.get("mpi4py.MPI")  # other launchers are known to MPI itself
    size: int = loaded.COMM_WORLD.size if loaded is not None and loaded.Is_initialized() else 1
    return size if size > 1 else None


def _mpi() -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # a RuntimeError where the library of MPI is missing
        advice = 'python -m pip install "fusedstep[mpi]"'
        raise ImportError(f"the ranks of MPI need mpi4py and a library of MPI: {advice} ({error})") from error
    return MPI


class _Transfer:
    """Messages that were started together, in pieces that MPI takes, and how far they are."""

    def __init__(
        self, mpi: Any, comm: Any, rank: int, sends: list[tuple[int, Bytes]], receives: list[tuple[int, Bytes]]
    ) -> None:
        self._mpi = mpi
        self._rank = rank
        self.is_done = False
        self.is_large = any(array.size > _BUFFERED for _, array in (*sends, *receives))
        incoming, outgoing = _pieces(receives), _pieces(sends)
        self._received = [(rank, piece.size) for rank, piece in incoming]
        self._ranks = [rank for rank, _ in (*incoming, *outgoing)]
        self._requests = [comm.Irecv([piece, mpi.BYTE], rank) for rank, piece in incoming]
        self._requests += [comm.Isend([piece, mpi.BYTE], rank) for rank, piece in outgoing]
        self._statuses = [mpi.Status() for _ in self._requests]
        self._error: Exception | None = None

    def look(self) -> bool:
        """Let MPI go on, and return whether all has been sent and received; an error is raised each time."""
        if self._error is not None:
            raise self._error
        if not self.is_done:
            try:
                self.is_done = self._mpi.Request.Testall(self._requests, self._statuses)
            except self._mpi.Exception as error:
                self._error = error
                self._check()
                raise
            if self.is_done:
                self._check()
        return self.is_done

    def late(self) -> list[int]:
        """Return the ranks of the messages that are not done."""
        tests = zip(self._ranks, self._requests, strict=True)
        return [rank for rank, request in tests if not request.Get_status()]

    def _check(self) -> None:
        """Refuse messages of another size than their arrays; of a longer one, MPI has written what fits."""
        for (sender, expected), status in zip(self._received, self._statuses, strict=False):
            if status.error == self._mpi.SUCCESS:
                sent = str(status.Get_count(self._mpi.BYTE))
            elif self._mpi.Get_error_class(status.error) == self._mpi.ERR_TRUNCATE:
                sent = f"more than {expected}"
            else:  # not done, or an error of MPI
                continue
            if sent != str(expected):
                self._error = ValueError(unequal(sender, sent, self._rank, expected))
                raise self._error


def _pieces(messages: list[tuple[int, Bytes]]) -> list[tuple[int, Bytes]]:
    """Return messages, of which those that are too long for MPI are cut."""
    if all(array.size <= _LARGEST for _, array in messages):
        return messages
    starts = [(rank, array, begin) for rank, array in messages for begin in range(0, array.size, _LARGEST)]
    return [(rank, array[begin : begin + _LARGEST]) for rank, array, begin in starts]


class _Progress:
    """
    The transfers that nobody waits for yet, and a thread that lets MPI go on with them.

    A large message makes no headway while its ranks compute, unless somebody calls MPI. Small ones need nobody, so the
    thread, which sleeps without large ones, is not woken for them.
    """

    def __init__(self, has_thread: bool) -> None:
        self.lock = threading.Lock()
        self._open: list[_Transfer] = []  # keeps arrays that MPI still writes to, even where the handle is lost
        self._is_wanted = threading.Event()
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress of MPI", daemon=True) if has_thread else None

    def add(self, transfer: _Transfer) -> None:
        self._open.append(transfer)
        if transfer.is_large and self._thread is not None:
            if self._thread.ident is None:
                self._thread.start()
            self._is_wanted.set()

    def take(self, transfer: _Transfer) -> None:
        """Leave a transfer to the caller."""
        with self.lock:
            if transfer in self._open:
                self._open.remove(transfer)

    def give(self, transfer: _Transfer) -> None:
        """Take a transfer back that the caller does not wait for any longer."""
        with self.lock:
            self.add(transfer)

    def _run(self) -> None:
        while self._is_wanted.wait() and not self._has_ended.wait(_PERIOD):
            with self.lock:
                left = [transfer for transfer in self._open if transfer.is_large and not transfer.is_done]
                if not left:
                    self._is_wanted.clear()
                for transfer in left:
                    try:
                        transfer.look()
                    except Exception:  # whoever waits for the transfer looks again, and is told
                        transfer.is_large = False

    def end(self) -> None:
        self._has_ended.set()
        self._is_wanted.set()
        if self._thread is not None and self._thread.ident is not None:
            self._thread.join()


class MPIWorld:
    """
    The ranks of an MPI communicator.

    All ranks of the communicator have to make their worlds in the same order. The world has a communicator of its own,
    so its messages are never taken for those of the program. Where MPI allows calls from several threads, a thread
    keeps large messages going while the rank computes.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        The communicator; by default all ranks that were started together.
    timeout : float, default 600
        How many seconds `wait` waits for other ranks.

    Raises
    ------
    ImportError
        If mpi4py or a library of MPI is not installed.
    RuntimeError
        If a launcher has started another number of ranks than MPI knows of: it belongs to another implementation of
        MPI, and each rank would train alone.
    TimeoutError
        If another rank does not make its world within `timeout` seconds.
    """

    def __init__(self, comm: Any = None, timeout: float = TIMEOUT) -> None:
        self._mpi = mpi = _mpi()
        if comm is None:
            comm = mpi.COMM_WORLD
            launched = launched_size()
            if launched not in (None, comm.size):
                library = mpi.Get_library_version().split("\n")[0].strip(" \0")
                raise RuntimeError(
                    f"{launched} ranks were started and MPI knows of {comm.size}, expected the mpiexec that belongs to "
                    f"the library that mpi4py has loaded: {library}"
                )
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.timeout = timeout
        self._comm, request = comm.Idup()
        if not until(request.Test, timeout):
            raise too_late(self, [rank for rank in range(self.size) if rank != self.rank])
        self._progress = _Progress(mpi.Query_thread() >= mpi.THREAD_MULTIPLE)
        weakref.finalize(self, self._progress.end)  # also at exit, before MPI ends

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> _Transfer:
        """Start to send and to receive arrays of NumPy; see `World.start`."""
        sent, received = as_bytes(self, sends, receives)
        with self._progress.lock:  # so that messages start in one order on all threads
            transfer = _Transfer(self._mpi, self._comm, self.rank, sent, received)
            self._progress.add(transfer)
        return transfer

    def wait(self, handle: _Transfer) -> None:
        """
        Wait until what was started has been sent and received; see `World.wait`.

        After an error or an interrupt, the messages are still under way, and may be waited for again.
        """
        self._progress.take(handle)
        try:
            if not until(handle.look, self.timeout):
                raise too_late(self, handle.late())
        except BaseException:
            self._progress.give(handle)
            raise
