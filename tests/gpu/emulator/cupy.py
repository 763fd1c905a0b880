"""A stand-in for CuPy: the part of it that the tests use, on top of an emulated CUDA runtime in a library.

An array has a NumPy array over its memory, which knows shape and strides. Reading and writing elements goes through a
stream, as in CuPy. Like the pool of CuPy, this one gives the memory of an array that has died to the next array of its
size in the same stream.
"""

import contextlib
import ctypes
import math
import re
import threading
import weakref
from collections import defaultdict
from pathlib import Path
from types import EllipsisType, SimpleNamespace

import numpy as np
from numpy import float16, float32, float64, int64, uint16

__all__ = ["float16", "float32", "float64", "int64", "uint16"]

_TYPES = {
    "void": None,
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
    "size_t": ctypes.c_size_t,
    "const char*": ctypes.c_char_p,
}
_DEVICE_MEMORY = 2  # the number of this kind of memory in DLPack and in CUDA


class _Thread(threading.local):
    """The current stream of each device."""

    def __init__(self):
        self.streams = {}


_thread = _Thread()
_library = None
_limit = math.inf
_sizes = {}  # bytes of the memory in use, by its address
_dead = defaultdict(list)  # addresses of memory to be used again, by device, stream and size


def connect(library):
    """Use the emulator in a ctypes library, and declare the types of its functions, as control.cpp has them."""
    global _library
    for result, name, parameters in re.findall(
        r"^CONTROL (.+) (emulator_\w+)\((.*)\) \{", Path(__file__).with_name("control.cpp").read_text(), re.MULTILINE
    ):
        function = getattr(library, name)
        function.restype = _TYPES.get(result, ctypes.c_void_p)
        function.argtypes = [
            _TYPES.get(each.rpartition(" ")[0], ctypes.c_void_p) for each in parameters.split(", ") if each
        ]
    if library is not _library:
        _sizes.clear()
        _dead.clear()
    _library = library


def set_limit(limit=math.inf):
    """Limit the bytes of all arrays together."""
    global _limit
    _limit = limit


class CUDARuntimeError(RuntimeError):
    def __init__(self, status):
        self.status = status
        super().__init__(f"CUDA error {status}")


class OutOfMemoryError(MemoryError):
    pass


def _check(status):
    if status:
        raise CUDARuntimeError(status)


class Device:
    def __init__(self, device=None):
        self.id = _library.emulator_get_device() if device is None else int(device)
        self._before = []

    def __eq__(self, other):
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self):
        return hash(self.id)

    def __enter__(self):
        self._before.append(_library.emulator_get_device())
        return self.use()

    def __exit__(self, *error):
        _check(_library.emulator_set_device(self._before.pop()))

    def use(self):
        _check(_library.emulator_set_device(self.id))
        return self

    def synchronize(self):
        _check(_library.emulator_device_synchronize(self.id))


class Event:
    def __init__(self, *, block=False, disable_timing=False, interprocess=False):
        self.ptr = _library.emulator_event_create(Device().id)
        weakref.finalize(self, _library.emulator_event_destroy, self.ptr).atexit = False

    def record(self, stream=None):
        stream = stream or get_current_stream()
        _check(_library.emulator_event_record(self.ptr, *stream._place()))


class Graph:
    def __init__(self, ptr):
        self._ptr = ptr
        weakref.finalize(self, _library.emulator_graph_destroy, ptr).atexit = False

    def launch(self, stream=None):
        _check(_library.emulator_graph_launch(self._ptr, *(stream or get_current_stream())._place()))


class ExternalStream:
    def __init__(self, ptr, device_id=-1):
        self.ptr = ptr
        self.device_id = device_id
        self._before = []

    def __eq__(self, other):
        return isinstance(other, ExternalStream) and self.ptr == other.ptr

    def __hash__(self):
        return hash(self.ptr)

    def __cuda_stream__(self):
        return 0, self.ptr

    def __enter__(self):
        device = self._place()[1]
        self._before.append((device, get_current_stream(device)))
        return self.use()

    def __exit__(self, *error):
        device, stream = self._before.pop()
        _thread.streams[device] = stream

    def _place(self):
        """Return handle and device; a default stream is that of the current device."""
        return self.ptr, Device().id if self.device_id < 0 else self.device_id

    def use(self):
        _thread.streams[self._place()[1]] = self
        return self

    def synchronize(self):
        _check(_library.emulator_stream_synchronize(*self._place()))

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        _check(_library.emulator_stream_wait(*self._place(), event.ptr))

    def is_capturing(self):
        return bool(_library.emulator_is_capturing(*self._place()))

    def begin_capture(self, mode=None):
        relaxed = 2
        _check(_library.emulator_begin_capture(self.ptr, relaxed if mode is None else mode))

    def end_capture(self):
        graph = _library.emulator_end_capture(self.ptr)
        if graph is None:
            invalidated = 901
            raise CUDARuntimeError(invalidated)
        return Graph(graph)


class Stream(ExternalStream):
    def __init__(self, null=False, non_blocking=False, ptds=False, priority=None):
        if null or ptds:
            super().__init__(0 if null else 2)
            return
        device = Device().id
        super().__init__(_library.emulator_stream_create(device, non_blocking), device)
        weakref.finalize(self, _library.emulator_stream_destroy, self.ptr).atexit = False


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


def get_current_stream(device_id=None):
    device = Device().id if device_id is None else device_id
    return _thread.streams.get(device, Stream.null)


class _Memory:
    """The memory of an array, allocated on the current device in the current stream."""

    def __init__(self, nbytes):
        self.device = Device().id
        self.size = -(-nbytes // 512) * 512
        self.ptr = 0
        if not nbytes:
            return
        if sum(list(_sizes.values())) + self.size > _limit:
            raise OutOfMemoryError(f"Out of memory allocating {self.size:,} bytes.")
        stream = get_current_stream()
        with contextlib.suppress(IndexError):
            self.ptr = _dead[self.device, stream.ptr, self.size].pop()
        self.ptr = self.ptr or _library.emulator_malloc(self.size, self.device)
        if not self.ptr:
            raise OutOfMemoryError(f"Out of memory allocating {self.size:,} bytes.")
        _sizes[self.ptr] = self.size
        weakref.finalize(self, self._die, _library, self.ptr, self.size, stream, self.device).atexit = False

    @property
    def __array_interface__(self):
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.ptr, False), "version": 3}

    @staticmethod
    def _die(library, ptr, size, stream, device):
        if library is not _library:
            return
        library.emulator_poison(ptr, size, stream.ptr, device)
        del _sizes[ptr]
        _dead[device, stream.ptr, size].append(ptr)


class _Pointer:
    def __init__(self, ptr, mem):
        self.ptr = ptr
        self.mem = mem
        self.device_id = mem.device

    def copy_from_device_async(self, source, size, stream=None):
        stream = stream or get_current_stream(self.device_id)
        _check(_library.emulator_copy(self.ptr, source.ptr, size, stream.ptr, self.device_id))


class ndarray:  # noqa: N801
    __slots__ = ("__weakref__", "_host", "_memory")

    def __init__(self, memory, host):
        self._memory = memory
        self._host = host

    shape = property(lambda self: self._host.shape)
    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    ndim = property(lambda self: self._host.ndim)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    flags = property(lambda self: self._host.flags)
    device = property(lambda self: Device(self._memory.device))

    @property
    def data(self):
        ptr = self._host.__array_interface__["data"][0] if self._memory.ptr else 0
        return _Pointer(ptr, self._memory)

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "data": (self.data.ptr, False),
            "strides": None if self.flags.c_contiguous else self.strides,
            "version": 3,
            "stream": get_current_stream().ptr or 1,
        }

    def __dlpack_device__(self):
        return _DEVICE_MEMORY, self._memory.device

    def __dlpack__(self, **options):
        raise NotImplementedError

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __len__(self):
        return len(self._host)

    def __float__(self):
        return float(self.item())

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __getitem__(self, key):
        if isinstance(key, ndarray):
            return array(self.get()[key.get()])
        keys = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(each, int | slice | EllipsisType | None) for each in keys):
            raise NotImplementedError
        return ndarray(self._memory, self._host[keys if Ellipsis in keys else (*keys, ...)])

    def __setitem__(self, key, value):
        target = self[key]
        if not isinstance(value, ndarray):
            target.set(np.array(np.broadcast_to(value, target.shape), target.dtype, order="C"))
        elif value.shape == target.shape and value.dtype == target.dtype:
            if value.flags.c_contiguous and target.flags.c_contiguous:
                target._write(value.data.ptr)
            else:
                order = sorted(range(len(target.shape)), key=lambda axis: -target.strides[axis])
                target.transpose(order).set(value.get().transpose(order))
        else:
            raise NotImplementedError

    def _write(self, address):
        if not self.flags.c_contiguous:
            raise NotImplementedError
        device = self._memory.device
        stream = get_current_stream(device)
        _check(_library.emulator_copy(self.data.ptr, address, self.nbytes, stream.ptr, device))

    def get(self, stream=None):
        stream = stream or get_current_stream(self._memory.device)
        _check(_library.emulator_stream_synchronize(stream.ptr, self._memory.device))
        return self._host.copy()

    def set(self, host):
        if host.dtype != self.dtype:
            raise TypeError(f"{host.dtype} array cannot be set to {self.dtype} array")
        if host.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {host.shape}")
        source = np.ascontiguousarray(host)  # lives until it has been copied
        self._write(source.ctypes.data)

    def item(self):
        return self.get().item()

    def fill(self, value):
        self[...] = value

    def copy(self):
        result = empty(self.shape, self.dtype)
        result[...] = self
        return result

    def _seen(self, method, *arguments):
        if not self.flags.c_contiguous:
            raise NotImplementedError
        return ndarray(self._memory, getattr(self._host, method)(*arguments))

    def reshape(self, *shape):
        return self._seen("reshape", *shape)

    def ravel(self):
        return self._seen("ravel")

    def transpose(self, axes):
        return ndarray(self._memory, self._host.transpose(axes))

    def view(self, dtype):
        if np.dtype(dtype).itemsize == self.dtype.itemsize:
            return ndarray(self._memory, self._host.view(dtype))
        return self._seen("view", dtype)


def empty(shape, dtype=float):
    dtype = np.dtype(dtype)
    count = math.prod(shape) if isinstance(shape, tuple | list) else shape
    memory = _Memory(count * dtype.itemsize)
    host = np.asarray(memory)[: count * dtype.itemsize] if memory.ptr else np.empty(0, np.uint8)
    return ndarray(memory, host.view(dtype).reshape(shape))


def zeros(shape, dtype=float):
    result = empty(shape, dtype)
    stream = get_current_stream()
    _check(_library.emulator_fill(result.data.ptr, 0, result.nbytes, stream.ptr, result._memory.device))
    return result


def zeros_like(array, dtype=None):
    return zeros(array.shape, dtype or array.dtype)


def full(shape, value, dtype=None):
    return array(np.full(shape, value, dtype))


def array(source, dtype=None):
    if isinstance(source, ndarray):
        if dtype is not None and np.dtype(dtype) != source.dtype:
            raise NotImplementedError
        return source.copy()
    host = np.array(source, dtype, order="C")
    result = empty(host.shape, host.dtype)
    result.set(host)
    return result


def asarray(source, dtype=None):
    return source if isinstance(source, ndarray) and dtype in (None, source.dtype) else array(source, dtype)


def concatenate(arrays):
    return array(np.concatenate([each.get() for each in arrays]))


def asnumpy(source):
    return source.get() if isinstance(source, ndarray) else np.asarray(source)


def from_dlpack(source):
    raise NotImplementedError


def is_available():
    return _library.emulator_device_count() > 0


cuda = SimpleNamespace(
    Device=Device,
    Event=Event,
    ExternalStream=ExternalStream,
    Graph=Graph,
    Stream=Stream,
    get_current_stream=get_current_stream,
    is_available=is_available,
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=lambda: _library.emulator_device_count()),
)
