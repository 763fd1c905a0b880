"""A stand-in for the part of CuPy that talks by NCCL: arrays in host memory, and streams that take their time."""

import ctypes
import itertools
import queue
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np

_boxes = {}  # (name of the communicator, sender, receiver) -> messages
_lock = threading.Lock()
_names = itertools.count()
_thread = threading.local()


class Array:
    """An array on a GPU: its elements cannot be read but by `get`."""

    def __init__(self, host, device=0):
        self._host = host
        self.device = Device(device)
        self.data = SimpleNamespace(ptr=host.ctypes.data)

    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    strides = property(lambda self: self._host.strides)
    __cuda_array_interface__ = property(lambda self: self._host.__array_interface__)

    def get(self):
        return self._host.copy()


class Device:
    def __init__(self, number=0):
        self.id = number

    def __eq__(self, other):
        return self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Event:
    def __init__(self, *, disable_timing=False):
        self._work = None

    def record(self, stream=None):
        self._work = stream.work if stream else None

    @property
    def done(self):
        return self._work is None or not self._work.is_alive()


class Stream:
    """A stream whose work is a chain of threads, each of which begins when the one before it has ended."""

    def __init__(self, *, non_blocking=False):
        self.work = None
        self.ptr = id(self)
        self.waits = 0
        _streams[self.ptr] = self

    def wait_event(self, event):
        self.waits += 1

    def add(self, function):
        before = self.work

        def run():
            if before is not None:
                before.join()
            function()

        self.work = threading.Thread(target=run, daemon=True)
        self.work.start()


_streams = {}


class NcclCommunicator:
    def __init__(self, size, name, rank):
        assert len(name) == 128
        assert all(-128 <= number < 128 for number in name)
        self._name, self._size, self._rank = name, size, rank

    def _box(self, sender, receiver):
        with _lock:
            return _boxes.setdefault((self._name, sender, receiver), queue.Queue())

    def _add(self, is_sent, address, count, kind, peer, stream):
        assert kind == 1, "expected bytes"
        assert peer != self._rank
        _thread.group.append((self, is_sent, address, count, peer, stream))  # outside of a group, there is no list

    def send(self, *arguments):
        self._add(True, *arguments)

    def recv(self, *arguments):
        self._add(False, *arguments)


def group_start():
    _thread.group = []


def group_end():
    calls = _thread.group
    del _thread.group

    def run():
        time.sleep(0.001)
        for comm, is_sent, address, count, peer, _ in calls:
            if is_sent:
                comm._box(comm._rank, peer).put(ctypes.string_at(address, count))
        for comm, is_sent, address, count, peer, _ in calls:
            if not is_sent:
                data = comm._box(peer, comm._rank).get(timeout=20)
                assert len(data) == count
                ctypes.memmove(address, data, count)

    if calls:
        _streams[calls[0][-1]].add(run)


def unique_id():
    return tuple(np.random.default_rng(next(_names)).integers(-128, 128, 128).tolist())


def install(monkeypatch):
    """Put the stand-in in the place of CuPy."""
    cupy, nccl = ModuleType("cupy"), ModuleType("cupy.cuda.nccl")
    nccl.available = True
    nccl.get_unique_id, nccl.NcclCommunicator = unique_id, NcclCommunicator
    nccl.groupStart, nccl.groupEnd = group_start, group_end
    cupy.cuda = SimpleNamespace(nccl=nccl, Device=Device, Event=Event, Stream=Stream)
    cupy.empty = lambda count, dtype: Array(np.full(count, 0xAA, dtype))
    cupy.asarray = lambda host: Array(host.copy())
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", nccl)
    return cupy
