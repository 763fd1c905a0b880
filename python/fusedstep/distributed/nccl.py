"""The world of GPUs that talk by NCCL, by the `NcclCommunicator` of CuPy, which is imported when a world is made."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from fusedstep.core.arrays import is_on_gpu

from .world import TIMEOUT, Message, World, as_bytes, check_ranks, gathered, too_late, until

__all__ = ["NCCLWorld"]

_UINT8 = 1  # ncclUint8: all messages are bytes, as CuPy knows no bfloat16 of NCCL


class _Transfer:
    """Messages that were started together: what tells that they are done, and copies of arrays in host memory."""

    def __init__(self) -> None:
        self.done: Any = None
        self.ranks: list[int] = []
        self.kept: list[Any] = []  # memory that NCCL reads and writes
        self.targets: list[tuple[Any, Any]] = []  # arrays of NumPy, and the arrays on the GPU that they are copied from


class NCCLWorld:
    """
    Ranks with a GPU each, which talk by NCCL.

    Arrays of CuPy travel from GPU to GPU; those of NumPy are copied to the GPU and back. What has been done with the
    arrays in CuPy's current stream is done before they are sent. All ranks have to start the same messages in the same
    calls: NCCL begins with the messages of a call when those of the call before are done.

    Parameters
    ----------
    world : World
        A world of the same ranks by another engine, such as MPI, over which NCCL makes its acquaintance. It is not
        needed afterwards.
    timeout : float, default 600
        How many seconds `wait` waits for other ranks. NCCL cannot be used after a timeout.

    Raises
    ------
    ImportError
        If CuPy is not installed, or has no NCCL.
    TimeoutError
        If another rank does not make its world within ``world.timeout`` seconds.
    """

    def __init__(self, world: World, timeout: float = TIMEOUT) -> None:
        try:
            self._cupy: Any = import_module("cupy")
            self._nccl: Any = import_module("cupy.cuda.nccl")
            if not self._nccl.available:
                raise ImportError("CuPy has not found the library of NCCL")
        except ImportError as error:
            advice = 'python -m pip install "fusedstep[cuda13]" nvidia-nccl-cu13, or cuda12 and cu12'
            raise ImportError(f"ranks that talk by NCCL need CuPy and NCCL: {advice} ({error})") from error
        self.rank = world.rank
        self.size = world.size
        self.timeout = timeout
        name = np.array(self._nccl.get_unique_id() if self.rank == 0 else (), np.int64)
        names = gathered(world, name.tobytes())  # numbers of a type that holds char, signed or not
        self._comm = self._nccl.NcclCommunicator(
            self.size, tuple(np.frombuffer(names[0], np.int64).tolist()), self.rank
        )
        self._device = self._cupy.cuda.Device()
        self._stream = self._cupy.cuda.Stream(non_blocking=True)
        self._lost: list[_Transfer] = []

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> _Transfer:
        """Start to send and to receive arrays of CuPy or NumPy; see `World.start`."""
        self._check(sends, receives)
        transfer = _Transfer()
        with self._device:
            calls = [(self._comm.recv, rank, self._target(array, transfer)) for rank, array in receives if array.size]
            calls += [(self._comm.send, rank, self._source(array)) for rank, array in sends if array.size]
            transfer.ranks = [rank for _, rank, _ in calls]
            transfer.kept = [array for _, _, array in calls]
            ready = self._cupy.cuda.Event(disable_timing=True)
            ready.record()  # in the current stream, which may still make what is sent, or read what is written
            self._stream.wait_event(ready)
            self._nccl.groupStart()
            try:
                for call, rank, array in calls:
                    call(array.data.ptr, array.nbytes, _UINT8, rank, self._stream.ptr)
            finally:
                self._nccl.groupEnd()
            transfer.done = self._cupy.cuda.Event(disable_timing=True)
            transfer.done.record(self._stream)
        return transfer

    def wait(self, handle: _Transfer) -> None:
        """Wait until what was started has been sent and received; see `World.wait`."""
        try:
            if not until(lambda: handle.done.done, self.timeout):
                raise too_late(self, handle.ranks)
        except BaseException:
            self._lost.append(handle)
            raise
        for target, array in handle.targets:
            target[...] = array.get()

    def _check(self, sends: Sequence[Message], receives: Sequence[Message]) -> None:
        check_ranks(self, sends, receives)
        for name, messages in (("sends", sends), ("receives", receives)):
            for i, (_, array) in enumerate(messages):
                if is_on_gpu(array) and not array.flags.c_contiguous:
                    raise ValueError(f"{name}[{i}] has strides {array.strides}, expected a C-contiguous array")
                if is_on_gpu(array) and array.device != self._device:
                    mine = self._device.id
                    raise ValueError(f"{name}[{i}] is on GPU {array.device.id}, expected GPU {mine}, that of the world")
        hosted = [[each for each in messages if not is_on_gpu(each[1])] for messages in (sends, receives)]
        as_bytes(self, *hosted)

    def _target(self, array: Any, transfer: _Transfer) -> Any:
        """Return the array on the GPU that a message is received in."""
        if is_on_gpu(array):
            return array
        room = self._cupy.empty(array.nbytes, np.uint8)
        transfer.targets.append((array.reshape(-1).view(np.uint8), room))
        return room

    def _source(self, array: Any) -> Any:
        """Return the array on the GPU that a message is sent from."""
        return array if is_on_gpu(array) else self._cupy.asarray(array.reshape(-1).view(np.uint8))
