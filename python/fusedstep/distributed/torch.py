"""The world of a process group of `torch.distributed`, for programs that PyTorch has started."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from .world import TIMEOUT, Bytes, Message, as_bytes, too_late, until

__all__ = ["TorchWorld"]


def _torch() -> Any:
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        advice = 'python -m pip install "fusedstep[torch]"'
        raise ImportError(f"a process group of PyTorch needs PyTorch: {advice} ({error})") from error
    return torch


class _Transfer:
    """Messages that were started together: the ranks, their works, and the copies that they travel from and to."""

    def __init__(self, ranks: list[int], tensors: list[Any], targets: list[tuple[Bytes, Any]]) -> None:
        self.ranks = ranks
        self.tensors = tensors  # keeps the memory while somebody may still write to it
        self.targets = targets
        self.works: list[Any] = []


class TorchWorld:
    """
    The ranks of a process group of `torch.distributed`.

    With gloo, arrays travel from and to where they lie; read-only ones, which PyTorch cannot look at, are copied
    first. With NCCL, arrays of NumPy are copied to the GPU and back, and all ranks have to start the same messages in
    the same calls. Neither tells of a message that is shorter than the array that it is received in.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        The process group; by default all processes.
    timeout : float, default 600
        How many seconds `wait` waits for other ranks. With gloo, the process group cannot be used after a timeout.

    Raises
    ------
    ImportError
        If PyTorch is not installed.
    RuntimeError
        If PyTorch has no process group.
    ValueError
        If this process is not in the group.
    """

    def __init__(self, group: Any = None, timeout: float = TIMEOUT) -> None:
        self._torch = _torch()
        dist = self._torch.distributed
        if not dist.is_available() or not dist.is_initialized():
            raise RuntimeError("PyTorch has no process group, expected torch.distributed.init_process_group before")
        self.rank: int = dist.get_rank(group)
        self.size: int = dist.get_world_size(group)
        self.timeout = timeout
        if self.rank < 0:
            raise ValueError("group is one that this process is not in, expected a group of this process")
        self._group = dist.group.WORLD if group is None else group
        self._device: Any = None  # where arrays travel from and to, if that is not host memory
        if "cpu:" not in dist.get_backend_config(self._group):
            self._device = self._torch.device("cuda", self._torch.cuda.current_device())
        self._lost: list[_Transfer] = []

    def start(self, sends: Sequence[Message], receives: Sequence[Message]) -> _Transfer:
        """Start to send and to receive arrays of NumPy; see `World.start`."""
        sent, received = as_bytes(self, sends, receives)
        dist = self._torch.distributed
        targets = [(array, self._room(array)) for _, array in received]
        sources = [self._source(array) for _, array in sent]
        ranks = [rank for rank, _ in (*received, *sent)]
        transfer = _Transfer(ranks, [*(tensor for _, tensor in targets), *sources], targets)
        calls = [dist.irecv] * len(received) + [dist.isend] * len(sent)
        works = zip(calls, transfer.tensors, ranks, strict=True)
        batch = [dist.P2POp(call, tensor, group=self._group, group_peer=rank) for call, tensor, rank in works]
        transfer.works = dist.batch_isend_irecv(batch) if batch else []
        return transfer

    def wait(self, handle: _Transfer) -> None:
        """Wait until what was started has been sent and received; see `World.wait`."""
        try:
            if self._device is None or self._device.type == "cpu":
                self._wait_for_each(handle)
            else:
                self._wait_for_stream(handle)
        except BaseException:
            self._lost.append(handle)
            raise
        if self._device is not None:
            for array, tensor in handle.targets:
                self._torch.from_numpy(array).copy_(tensor)

    def _room(self, array: Bytes) -> Any:
        """Return the tensor that an array is received in."""
        if self._device is None:
            return self._torch.from_numpy(array)
        return self._torch.empty(array.size, dtype=self._torch.uint8, device=self._device)

    def _source(self, array: Bytes) -> Any:
        """Return the tensor that an array is sent from."""
        host = self._torch.from_numpy(array if array.flags.writeable else array.copy())
        return host if self._device is None else host.to(self._device, copy=True)

    def _wait_for_each(self, handle: _Transfer) -> None:
        """Wait for works of gloo, which cannot be asked whether they are done."""
        end = time.monotonic() + self.timeout
        late: list[int] = []
        for rank, work in zip(handle.ranks, handle.works, strict=True):
            left = max(end - time.monotonic(), 0.001)
            try:
                work.wait(timedelta(seconds=left))
            except RuntimeError as error:
                if time.monotonic() < end and not late:
                    error.add_note(f"Rank {self.rank} of {self.size} was told this while it waited for rank {rank}.")
                    raise
                late.append(rank)
        if late:
            raise too_late(self, late)

    def _wait_for_stream(self, handle: _Transfer) -> None:
        """Wait for works of NCCL, which are done when the stream is."""
        for work in handle.works:
            work.wait()
        done = self._torch.cuda.Event()
        done.record()
        if not until(done.query, self.timeout):
            raise too_late(self, handle.ranks)
