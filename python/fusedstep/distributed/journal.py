"""
A shard that outlives its process: a checkpoint, and beside it a journal of all that has happened since.

What a shard is told is written to the journal before it is answered. A new process loads the checkpoint and makes the
updates of the journal again, which gives the same bits, so that nothing that has been answered is lost.
"""

import base64
import os
import struct
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import numpy as np

from fusedstep.checkpoint import load, save
from fusedstep.core.arrays import Array
from fusedstep.core.optimizer import Optimizer

from .shard import Options, Shard

__all__ = ["SavedShard", "saved"]

_MAGIC = b"fusedstep journal 1\n".ljust(24)
_HEAD = struct.Struct("<24sq")  # magic, and the number of the first record
_RECORD = struct.Struct("<qqqq")  # what, worker, its clock or the number of its push, and bytes of gradients behind
_JOIN, _LEAVE, _PULL, _PUSH = range(4)
_LEAST = 1 << 24  # bytes of a journal before a checkpoint is worth its time
_RATIO = 8  # bytes of a journal over those of parameters and states, before the next checkpoint


class SavedShard(Shard):
    """
    A `Shard` that keeps itself in the files PATH.npz, a checkpoint of its parameters and optimizer, and PATH.journal.

    Parameters
    ----------
    optimizer, params, options
        As of `Shard`. Where the files exist, `params` are replaced by theirs, and so is all that the optimizer
        remembers; its hyperparameters stay.
    path : str
        Where the files are, without the endings.

    Raises
    ------
    ValueError
        If the files are damaged, or belong to other parameters: to another number of shards, say.
    OSError
        If the files cannot be read or written.

    Notes
    -----
    What has been answered is in the memory of the operating system, and outlives the process, however it ends. It is
    not forced onto the disk with each answer: a machine that loses its power may lose the last answers.
    """

    def __init__(self, optimizer: Optimizer, params: Mapping[Hashable, Array], options: Options, path: str) -> None:
        super().__init__(optimizer, params, options)
        self._path = path
        self._records = 0  # over all times
        self._file: int | None = None
        self._size = 0
        if os.path.exists(f"{path}.npz"):
            self._load()
            self._repeat()
        self._begin()

    # What is told is written down first.

    def join(self, worker: int, clock: int) -> None:
        if worker in self.clock:
            return
        self._written(_JOIN, worker, clock, {}, lambda: super(SavedShard, self).join(worker, clock))

    def leave(self, worker: int) -> None:
        self._written(_LEAVE, worker, 0, {}, lambda: super(SavedShard, self).leave(worker))

    def pull(self, worker: int) -> dict[Hashable, Array]:
        self._written(_PULL, worker, 0, {}, lambda: super(SavedShard, self).pull(worker))
        return self.params

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:
        if self.has_made(worker, number):
            return
        self._written(_PUSH, worker, number, grads, lambda: super(SavedShard, self).push(worker, number, grads))
        if self._size > _LEAST and self._size > _RATIO * self._state_bytes():
            self._begin()

    def _written(self, what: int, worker: int, value: int, grads: Mapping[Hashable, Array], action: Any) -> None:
        """Write a record and do what it says, or neither."""
        arrays = [np.ascontiguousarray(grads[key]).reshape(-1).view(np.uint8) for key in self.params if key in grads]
        file = self._file
        assert file is not None  # noqa: S101 (for mypy: the constructor opens it)
        record = _RECORD.pack(what, worker, value, sum(a.nbytes for a in arrays))
        try:
            for data in (record, *arrays):
                _write_all(file, data)
            action()
        except BaseException:
            os.ftruncate(file, self._size)
            os.lseek(file, self._size, os.SEEK_SET)
            raise
        self._size += len(record) + sum(a.nbytes for a in arrays)
        self._records += 1

    def _state_bytes(self) -> int:
        states = (array.nbytes for some in self.optimizer.state.values() for array in some.values())
        return sum(p.nbytes for p in self.params.values()) + sum(states)

    # The files.

    def _begin(self) -> None:
        """Write a checkpoint, and begin a new journal."""
        log = np.array([2 * entry.worker + (entry.kind == "push") for entry in self.entries], np.int64)
        extra = {
            "records": self._records,
            "log": base64.b64encode(log.tobytes()).decode(),
            "version": self.version,
            "newcomer": self.newcomer,
            "gone": sorted(self._gone),
            "clock": [*self.clock.items()],
            "finished": [*self._finished.items()],
            "seen": [*self._seen.items()],
        }
        save(f"{self._path}.npz", self.optimizer, self.params, extra=extra)
        # A process that ends here leaves the old journal, whose records are all older than the checkpoint.
        draft = f"{self._path}.journal.new"
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        _write_all(file, _HEAD.pack(_MAGIC, self._records))
        os.replace(draft, f"{self._path}.journal")
        self.close()
        self._file, self._size = file, _HEAD.size

    def close(self) -> None:
        """Close the journal."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            self.close()

    def _load(self) -> None:
        extra = load(f"{self._path}.npz", self.optimizer, self.params, hyperparameters="mine")
        self._records, self.version, self.newcomer = extra["records"], extra["version"], extra["newcomer"]
        self._gone = set(extra["gone"])
        self.clock, self._finished, self._seen = (dict(map(tuple, extra[n])) for n in ("clock", "finished", "seen"))
        for number in np.frombuffer(base64.b64decode(extra["log"]), np.int64).tolist():
            self._note("push" if number % 2 else "pull", number // 2)

    def _repeat(self) -> None:
        """Do again what the journal tells beyond the checkpoint."""
        act: dict[int, Callable[..., Any]] = {
            _JOIN: lambda worker, clock, _: Shard.join(self, worker, clock),
            _LEAVE: lambda worker, *_: Shard.leave(self, worker),
            _PULL: lambda worker, *_: Shard.pull(self, worker),
            _PUSH: lambda worker, number, data: Shard.push(self, worker, number, self._split(data)),
        }
        for number, what, worker, value, data in _records(f"{self._path}.journal"):
            if number > self._records:
                raise ValueError(
                    f"{self._path}.journal begins with record {number}, expected at most {self._records}, where the "
                    "checkpoint beside it ends"
                )
            if number == self._records:
                act[what](worker, value, data)
                self._records += 1

    def _split(self, data: bytes) -> dict[Hashable, Array]:
        found, at = {}, 0
        for key, p in self.params.items():
            found[key] = np.empty_like(p)
            found[key].reshape(-1).view(np.uint8)[...] = np.frombuffer(data, np.uint8, p.nbytes, at)
            at += p.nbytes
        return found


def saved(optimizer: Optimizer, params: Mapping[Hashable, Array], options: Options, path: str | None, k: int) -> Shard:
    """Return the shard with the number `k`: one that saves itself where there is a path."""
    return Shard(optimizer, params, options) if path is None else SavedShard(optimizer, params, options, f"{path}.{k}")


def _records(path: str) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield number, what, worker, value and data of each record that is complete: the last may have been cut off."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[: len(_MAGIC)] != _MAGIC:
            raise ValueError(f"{path} is no journal of a shard, expected a file of an earlier run or none")
        number = _HEAD.unpack(head)[1]
        while len(record := file.read(_RECORD.size)) == _RECORD.size:
            what, worker, value, size = _RECORD.unpack(record)
            data = file.read(size)
            if len(data) < size:
                return
            yield number, what, worker, value, data
            number += 1


def _write_all(file: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
