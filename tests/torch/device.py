"""
Tensors that stand for tensors on a GPU, on the emulated CUDA runtime.

They lie in host memory, which the emulated kernels read and write, and say by DLPack's functions for C that they lie on
a GPU. PyTorch's own operations on them are made at once: those that a step makes wait for the emulated device before,
and for others a test waits itself. Reading a number of a tensor is refused where a test asks for that.
"""

import ctypes
from contextlib import contextmanager

import torch


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint32), ("minor", ctypes.c_uint32))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_SHOW = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(_DLTensor))
_STREAM = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


class _Exchange(ctypes.Structure):
    """DLPack's table of functions, of which two are there."""

    _fields_ = (
        ("version", _Version),
        ("older", ctypes.c_void_p),
        ("allocate", ctypes.c_void_p),
        ("managed_from_object", ctypes.c_void_p),
        ("object_from_managed", ctypes.c_void_p),
        ("tensor_from_object", _SHOW),
        ("current_stream", _STREAM),
    )


_CODES = {
    torch.float32: (2, 32),
    torch.float64: (2, 64),
    torch.float16: (2, 16),
    torch.bfloat16: (4, 16),
    torch.uint16: (1, 16),
    torch.complex64: (5, 64),
    torch.complex128: (5, 128),
}
_CUDA = 2
_current = [0]  # the handle of PyTorch's current stream


@_SHOW
def _show(tensor, out):
    found = out.contents
    found.data = torch.Tensor.data_ptr(tensor)
    found.device_type, found.device_id, found.ndim = _CUDA, 0, tensor.dim()
    found.code, found.bits = _CODES[tensor.dtype]
    found.lanes, found.byte_offset = 1, 0
    extents = ctypes.c_int64 * tensor.dim()
    tensor.extents = extents(*tensor.shape), extents(*tensor.stride())  # as long as the tensor is there
    found.shape, found.strides = tensor.extents
    return 0


@_STREAM
def _stream(kind, number, out):
    assert (kind, number) == (_CUDA, 0)
    out[0] = _current[0]
    return 0


_NAME = b"dlpack_exchange_api"  # which a capsule does not copy
_exchange = _Exchange(_Version(1, 3), None, None, None, None, _show, _stream)
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class OnGpu(torch.Tensor):
    """A tensor that says that it is on a GPU."""

    __dlpack_c_exchange_api__ = _new_capsule(ctypes.addressof(_exchange), _NAME, None)
    is_cuda = True
    may_be_read = True
    wait = None  # waits for the device: PyTorch's operations come after what was queued before

    def copy_(self, *arguments, **named):
        OnGpu.wait()
        return super().copy_(*arguments, **named)

    def cpu(self):
        OnGpu.wait()
        return super().cpu()

    def _refuse_to_be_read(self):
        if not OnGpu.may_be_read:
            raise AssertionError("a number on the GPU is read, so that the host waits for it")

    def item(self):
        self._refuse_to_be_read()
        return super().item()

    def __float__(self):
        self._refuse_to_be_read()
        return super().__float__()

    def __bool__(self):
        self._refuse_to_be_read()
        return super().__bool__()


def on_gpu(tensor):
    """Return a tensor with the same memory that says that it is on a GPU; it requires a gradient if the other does."""
    return tensor.detach().as_subclass(OnGpu).requires_grad_(tensor.requires_grad)


def in_memory_of(array):
    """Return a tensor on a GPU in the memory of an array of CuPy's stand-in."""
    memory = (ctypes.c_char * array.nbytes).from_address(array.data.ptr)
    tensor = torch.frombuffer(memory, dtype=getattr(torch, str(array.dtype))).reshape(array.shape)
    tensor.keeps = array
    return on_gpu(tensor)


@contextmanager
def current_stream(stream):
    """Let a stream of CuPy's stand-in be PyTorch's current one."""
    before, _current[0] = _current[0], stream.ptr
    try:
        yield
    finally:
        _current[0] = before


@contextmanager
def unread():
    """Refuse to read numbers on the GPU."""
    OnGpu.may_be_read = False
    try:
        yield
    finally:
        OnGpu.may_be_read = True
