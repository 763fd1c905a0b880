"""
Servers and workers that are processes of MPI: the last ranks serve, and answer whoever comes.

Messages from a worker: a header (what, the number of its push), and gradients behind it. Answers: parameters, if they
were asked for, and a status behind them, 0 or the length of the text of an error that follows. Sizes never depend on
what a server finds, so that receives can be started before it has answered.
"""

import builtins
import hashlib
import os
import pickle
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedstep.core.arrays import Array
from fusedstep.core.optimizer import Optimizer

from .journal import saved
from .servers import Work
from .shard import Form, Log, Options, Shard, forms_of

__all__ = ["Ranks"]

Bytes = npt.NDArray[np.uint8]

_PULL, _PUSH, _LEAVE, _END, _QUIT = range(5)  # a worker that ends waits for the end of the run, one that quits does not
_CALL, _DATA = 1, 2  # tags
_SMALL = 1 << 16  # bytes up to which arrays travel together, in one message
_MOST = 1 << 30  # bytes of a message: some libraries refuse 2 GiB
_EAGER, _NAP = 2e-4, 5e-5  # seconds of waiting without naps, and of a nap: the server may need this core
_POLLS, _SERVER_NAP = 200, 50e-6  # calls of a server that find nobody before it naps, and seconds of its nap
_GRACE = 10.0  # seconds that a worker waits longer than a server, which knows whom it waits for


class Parcel:
    """Arrays as messages: small ones together in a buffer, and each large one from and to where it lies."""

    def __init__(self, forms: Mapping[Hashable, Form]) -> None:
        self.forms = forms
        self._large = []
        self._place: dict[Hashable, slice] = {}
        total = 0
        for key, form in forms.items():
            size = int(np.prod(form.shape, dtype=np.int64)) * form.dtype.itemsize
            if size > _SMALL:
                self._large.append(key)
            else:
                self._place[key] = slice(total, total + size)
                total += -(-size // 16) * 16  # so that each array is aligned
        self._buffer = np.empty(total, np.uint8)

    def send(self, arrays: Mapping[Hashable, Array]) -> list[Bytes]:
        """Return the messages that arrays are sent in, which may share their memory."""
        for key, place in self._place.items():
            self._buffer[place] = _bytes(np.ascontiguousarray(arrays[key]))
        return self._messages({key: np.ascontiguousarray(arrays[key]) for key in self._large})

    def receive(self, arrays: Mapping[Hashable, Array]) -> tuple[list[Bytes], Callable[[], None]]:
        """Return the messages that arrays are received in, and what fills the arrays once they are there."""
        large = {
            key: arrays[key] if arrays[key].flags.c_contiguous else np.empty(*self.forms[key]) for key in self._large
        }

        def fill() -> None:
            for key, place in self._place.items():
                shape, dtype = self.forms[key]
                np.copyto(arrays[key], self._buffer[place].view(dtype).reshape(shape))
            for key, array in large.items():
                if array is not arrays[key]:
                    np.copyto(arrays[key], array)

        return self._messages(large), fill

    def _messages(self, large: Mapping[Hashable, Array]) -> list[Bytes]:
        messages = [self._buffer, *map(_bytes, large.values())]
        return [message[at : at + _MOST] for message in messages for at in range(0, message.size, _MOST)]


def _bytes(array: Array) -> Bytes:
    return array.reshape(-1).view(np.uint8)


class Ranks:
    """
    Servers on the last ranks of MPI, and what the other ranks ask of them.

    Every rank makes this object at the same time. Parameters and errors are those of `Asynchronous`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        world: Any,
        params: Mapping[Hashable, Array],
        keys: Sequence[Sequence[Hashable]],
        options: Options,
        path: str | None,
        timeout: float,
    ) -> None:
        from mpi4py import MPI  # late, since its import starts MPI

        comm = MPI.COMM_WORLD
        if (comm.rank, comm.size) != (world.rank, world.size):
            raise ValueError(
                f"world is rank {world.rank} of {world.size}, expected rank {comm.rank} of {comm.size}, one of "
                "MPI: start the program by mpiexec, or give world=None and let `run` start workers"
            )
        if len(keys) >= comm.size:
            raise ValueError(f"shards is {len(keys)} with {comm.size} ranks, expected less, so that some are workers")
        self._mpi, self._comm = MPI, comm.Dup()
        self._keys, self._options, self._timeout = tuple(map(tuple, keys)), options, timeout
        self._workers = comm.size - len(keys)
        self._servers = range(self._workers, comm.size)
        self.serves = comm.rank in self._servers
        forms = forms_of(params)
        self._parcels = [Parcel({key: forms[key] for key in some}) for some in keys]
        self._final: dict[Hashable, Array] | None = None
        self._logs: list[Any] = []
        self._check_same(params, forms)
        self._shard: Shard | None = None
        newcomer, error = 0, None
        if self.serves:
            k = comm.rank - self._workers
            try:
                self._shard = saved(optimizer, {key: params[key] for key in keys[k]}, options, path, k)
                newcomer = self._shard.newcomer
            except Exception as found:  # the others are told before it is raised
                newcomer, error = -1, found
        told = [int(np.frombuffer(some, np.int64)[0]) for some in self._all(np.int64(newcomer).tobytes())]
        if error is not None:
            raise error
        if -1 in told:
            raise RuntimeError(f"rank {told.index(-1)} could not begin to serve, expected all servers: see its error")
        first = max(told)
        self._first, self._number = first, first + int(comm.rank)
        if self._shard is not None:
            self._shard.empty(first)
            for rank in range(self._workers):
                self._shard.join(first + rank, 0)

    # Workers. Servers know a worker by its rank.

    def join(self) -> int:
        return self._number

    def pull(self, worker: int, params: Mapping[Hashable, Array]) -> None:  # noqa: ARG002
        self._ask(_PULL, 0, receive=params)

    def push(self, worker: int, number: int, grads: Mapping[Hashable, Array]) -> None:  # noqa: ARG002
        self._ask(_PUSH, number, send=grads)

    def leave(self, worker: int) -> None:
        if worker != self._number:
            raise RuntimeError(f"worker {worker} is another rank, expected {self._number}: ranks do not die alone")
        self._ask(_LEAVE, 0)

    def _ask(
        self,
        what: int,
        number: int,
        send: Mapping[Hashable, Array] | None = None,
        receive: Mapping[Hashable, Array] | None = None,
    ) -> None:
        """Ask all servers for something, wait for their answers, and raise the first error among them."""
        comm, requests, fills = self._comm, [], []
        header = np.array([what, number], np.int64)
        statuses = np.zeros((len(self._keys), 1), np.int64)
        for server, parcel, status in zip(self._servers, self._parcels, statuses, strict=True):
            if receive is not None:
                messages, fill = parcel.receive(receive)
                fills.append(fill)
                requests += [comm.Irecv(message, server, _DATA) for message in messages]
            requests.append(comm.Irecv(status, server, _DATA))
        for server, parcel in zip(self._servers, self._parcels, strict=True):
            requests.append(comm.Isend(header, server, _CALL))
            if send is not None:
                requests += [comm.Isend(message, server, _DATA) for message in parcel.send(send)]
        self._wait(requests, f"servers {', '.join(map(str, self._servers))}", self._timeout + _GRACE)
        errors = []
        for server, status in zip(self._servers, statuses[:, 0], strict=True):
            if status:
                text = np.empty(status, np.uint8)
                self._wait([comm.Irecv(text, server, _DATA)], f"server {server}", self._timeout)
                errors.append(_error(text.tobytes().decode()))
        if errors:
            raise errors[0]
        for fill in fills:
            fill()

    # Servers.

    def _serve(self, shard: Shard) -> None:
        """Answer workers until all have left, and tell those that wait for it how the run has ended."""
        comm, status, header = self._comm, self._mpi.Status(), np.empty(2, np.int64)
        parcel = self._parcels[comm.rank - self._workers]
        grads = {key: np.empty_like(p) for key, p in shard.params.items()}
        waiting: dict[int, float] = {}  # rank -> until when it waits at most
        staying: list[int] = []  # ranks that wait for the end of the run
        ended = 0
        idle, heard = 0, time.monotonic()
        while ended < self._workers:
            if not comm.Iprobe(self._mpi.ANY_SOURCE, _CALL, status):
                idle += 1
                if idle > _POLLS:
                    self._check_times(shard, parcel, waiting, heard)
                    time.sleep(_SERVER_NAP)  # or a server that waits would take a core from the workers
                continue
            rank, idle, heard = status.source, 0, time.monotonic()
            comm.Recv(header, rank, _CALL)
            what, number = header.tolist()
            worker = self._first + rank
            if what == _PULL:
                waiting[rank] = heard + self._timeout
            elif what == _PUSH:
                messages, fill = parcel.receive(grads)
                self._wait([comm.Irecv(some, rank, _DATA) for some in messages], f"rank {rank}", self._timeout)
                fill()
                self._answer(rank, [], self._tried(partial(shard.push, worker, number, grads)))
            else:
                shard.leave(worker)
                self._answer(rank, [], None)
                ended += what != _LEAVE
                if what == _END:
                    staying.append(rank)
            for rank in list(waiting):
                worker = self._first + rank
                if shard.may_pull(worker):
                    del waiting[rank]
                    error = self._tried(partial(shard.pull, worker))
                    self._answer(rank, parcel.send(shard.params), error)
        self._end(shard, staying)

    def _check_times(self, shard: Shard, parcel: Parcel, waiting: dict[int, float], heard: float) -> None:
        """Tell who has waited too long for slower workers, and give up where nobody has come for too long."""
        now = time.monotonic()
        for rank, deadline in list(waiting.items()):
            if now > deadline:
                del waiting[rank]
                worker = self._first + rank
                text = f"rank {rank} has waited {self._timeout:g} s {shard.waits_for(worker)}"
                self._answer(rank, parcel.send(shard.params), TimeoutError(text))
        if now > heard + self._timeout + _GRACE:
            workers = ", ".join(map(str, sorted(shard.clock)))
            raise TimeoutError(f"rank {self._comm.rank} has waited {now - heard:.0f} s for workers {workers}")

    @staticmethod
    def _tried(action: Callable[[], Any]) -> Exception | None:
        try:
            action()
        except Exception as error:  # it is the worker's, who is told
            return error
        return None

    def _answer(self, rank: int, messages: Sequence[Bytes], error: Exception | None) -> None:
        text = b"" if error is None else f"{type(error).__name__}: {error}".encode()
        texts = [np.frombuffer(text, np.uint8)] if text else []
        parts = [*messages, np.array([len(text)], np.int64), *texts]
        self._wait([self._comm.Isend(part, rank, _DATA) for part in parts], f"rank {rank}", self._timeout)

    # The end.

    def run(self, opt: Any, work: Work, workers: int | None, may_fail: int) -> Any:
        if workers is not None or may_fail:
            raise ValueError("workers and may_fail are given, expected none: all ranks that do not serve are workers")
        if self._shard is not None:
            self._serve(self._shard)
            return None
        try:
            result = work(opt)
        except BaseException:
            self._ask(_QUIT, 0)  # so that others do not wait for this rank, should it be the only one to end
            raise
        finally:
            opt.end()
        self._ask(_END, 0)
        self._receive_end([])
        return result

    def _end(self, shard: Shard, staying: Sequence[int]) -> None:
        """Send the last parameters and the log to the workers that stay and to the other servers."""
        comm = self._comm
        own = np.frombuffer(pickle.dumps((tuple(shard.entries), shard.digest())), np.uint8)
        messages = [np.array([own.size], np.int64), own]
        messages += self._parcels[comm.rank - self._workers].send(shard.params)
        others = [rank for rank in [*staying, *self._servers] if rank != comm.rank]
        self._receive_end([comm.Isend(message, rank, _DATA) for rank in others for message in messages])

    def _receive_end(self, sends: list[Any]) -> None:
        comm, shard, final = self._comm, self._shard, dict[Hashable, Array]()
        for server, parcel in zip(self._servers, self._parcels, strict=True):
            if shard is not None and server == comm.rank:
                self._logs.append((tuple(shard.entries), shard.digest()))
                final |= shard.params
                continue
            size = np.empty(1, np.int64)
            # A worker that is done waits as long as others are at work; a server that hears of none ends the job.
            self._wait([comm.Irecv(size, server, _DATA)], f"server {server}", None)
            text = np.empty(size[0], np.uint8)
            part = {key: np.empty(*form) for key, form in parcel.forms.items()}
            messages, fill = parcel.receive(part)
            receives = [comm.Irecv(some, server, _DATA) for some in (text, *messages)]
            self._wait(receives, f"server {server}", self._timeout)
            fill()
            self._logs.append(pickle.loads(text.tobytes()))  # noqa: S301 (of a rank of this job)
            final |= part
        self._wait(sends, "the other ranks", self._timeout)
        self._final = final

    def final(self, params: Mapping[Hashable, Array]) -> None:
        for key, p in (self._final or {}).items():
            np.copyto(params[key], p)

    def log(self) -> Log:
        if self._final is None:
            raise RuntimeError("log is asked for before the end of `run`, expected after it, on ranks of MPI")
        entries, digests = zip(*self._logs, strict=True)
        return Log(self._keys, entries, digests, self._options)

    # Waiting.

    def _check_same(self, params: Mapping[Hashable, Array], forms: Mapping[Hashable, Form]) -> None:
        digest = hashlib.sha256(repr((forms, self._keys, self._options)).encode())
        for p in params.values():
            digest.update(_bytes(np.ascontiguousarray(p)).data)
        told = self._all(digest.digest())
        if other := [rank for rank, some in enumerate(told) if some != told[0]]:
            raise ValueError(
                f"params on ranks {', '.join(map(str, other))} are others than on rank 0, expected the same on all "
                "ranks, and the same shards, staleness and dampen"
            )

    def _all(self, data: bytes) -> list[bytes]:
        """Return what each rank gives, which is of one size."""
        found = np.empty((self._comm.size, len(data)), np.uint8)
        request = self._comm.Iallgather(np.frombuffer(data, np.uint8), found)
        self._wait([request], "the other ranks, which have to make their Asynchronous too", self._timeout)
        return [row.tobytes() for row in found]

    def _wait(self, requests: Sequence[Any], whom: str, timeout: float | None) -> None:
        """Wait for requests: at first without naps, since those cost more than short messages do."""
        begin = time.monotonic()
        while not self._mpi.Request.Testall(requests):
            waited = time.monotonic() - begin
            if timeout is not None and waited > timeout:
                raise TimeoutError(f"rank {self._comm.rank} has waited {waited:.1f} s for {whom}")
            if waited > _EAGER:
                time.sleep(_NAP)
            else:
                os.sched_yield()


def _error(text: str) -> Exception:
    """Return the error that a server tells of, of its type where Python has it."""
    name, _, words = text.partition(": ")
    kind = getattr(builtins, name, RuntimeError)
    is_plain = isinstance(kind, type) and issubclass(kind, Exception)
    return kind(words) if is_plain else RuntimeError(text)
