"""Arrays on a GPU where CuPy is not installed: memory with a shape, which other libraries can look at."""

import math
from importlib import import_module
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

__all__ = ["DeviceArray", "of", "zeros"]

_LEGACY = 1  # the default stream, in whose order memory is taken and copied
_CODES = {"u": 1, "f": 2, "V": 4, "c": 5}  # kinds of dtypes in DLPack; V is bfloat16


class _Device(NamedTuple):
    """A GPU, by its number."""

    id: int


class _Pointer(NamedTuple):
    """An address on a GPU."""

    ptr: int


class _Addresses:
    """Bytes at an address, from which NumPy makes views without looking at the bytes."""

    def __init__(self, address: int, size: int, owner: Any) -> None:
        self.owner = owner
        self.__array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


class DeviceArray:
    """
    An array on a GPU: what CuPy's `ndarray` is where CuPy is installed.

    It offers its memory by ``__cuda_array_interface__`` and ``__dlpack__``, so that PyTorch (`torch.from_dlpack`), JAX,
    Warp and others can look at it and write to it. `get` copies it to the host, and `set` copies from there. Slices,
    transposed arrays and other views share the memory.
    """

    __slots__ = ("__weakref__", "_device", "_stream", "_view")

    def __init__(self, view: Any, device: int, stream: int = _LEGACY) -> None:
        self._view = view  # an array of NumPy with addresses on the GPU, whose elements must not be read
        self._device = device
        self._stream = stream

    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    size = property(lambda self: self._view.size)
    ndim = property(lambda self: self._view.ndim)
    itemsize = property(lambda self: self._view.itemsize)
    nbytes = property(lambda self: self._view.nbytes)
    device = property(lambda self: _Device(self._device))
    data = property(lambda self: _Pointer(self._view.__array_interface__["data"][0] if self.size else 0))

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype}, device={self._device})"

    def __len__(self) -> int:
        return len(self._view)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError("an array on a GPU is not converted to one of NumPy by itself, expected array.get()")

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": self.strides,
            "version": 3,
            "stream": self._stream,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device  # 2 is kDLCUDA

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: Any = None,
        copy: Any = None,
    ) -> Any:
        """Return a capsule of DLPack; what has been done with the array is done before what `stream` does next."""
        from fusedstep import _cuda

        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("an array of fusedstep on a GPU is shared, and copied only by array.get()")
        if stream not in (None, -1, self._stream):
            _cuda.order(self._device, self._stream, stream)
        steps = [step // self.itemsize for step in self.strides]
        kind = _CODES[self.dtype.kind], 8 * self.itemsize
        versioned = max_version is not None and max_version[0] >= 1
        return _cuda.to_dlpack(self, self.data.ptr, self._device, kind, list(self.shape), steps, versioned)

    # Views.

    def _seen(self, view: Any) -> Self:
        return type(self)(view, self._device, self._stream)

    def __getitem__(self, key: slice | tuple[slice, ...]) -> Self:
        if not all(isinstance(each, slice) for each in (key if isinstance(key, tuple) else (key,))):
            raise TypeError(f"index is {key!r}, expected slices; array.get() copies the array to the host")
        return self._seen(self._view[key])

    def view(self, dtype: npt.DTypeLike) -> Self:
        """Return the same memory as an array of another dtype."""
        return self._seen(self._view.view(dtype))

    def transpose(self, axes: Any) -> Self:
        """Return the same memory with its axes in another order."""
        return self._seen(self._view.transpose(axes))

    # Copies.

    def _span(self) -> tuple[int, int]:
        """Return the first address of the elements, and the number of bytes from there to the end of the last one."""
        low, size = _span(self.shape, self.strides, self.itemsize)
        return self.data.ptr + low, size

    def _on_host(self, span: npt.NDArray[np.uint8]) -> Any:
        """Return bytes in host memory as an array that lies there as this one lies on the GPU."""
        raw = np.dtype((np.void, self.itemsize))
        return np.ndarray(self.shape, raw, span, self.data.ptr - self._span()[0], self.strides).view(self.dtype)

    def get(self) -> Any:
        """Return a copy in host memory, an array of NumPy, after all that has been done with the array."""
        from fusedstep import _cuda

        if not self.size:
            return np.empty(self.shape, self.dtype)
        start, size = self._span()
        span = np.empty(size, np.uint8)
        _cuda.read(span, start, self._device, self._stream)
        return self._on_host(span).copy()

    def set(self, values: Any) -> None:
        """Copy an array of NumPy with as many elements along each axis to this one."""
        from fusedstep import _cuda

        if not self.size:
            return
        start, size = self._span()
        span = np.empty(size, np.uint8)
        if size != self.nbytes:  # what lies between the elements stays
            _cuda.read(span, start, self._device, self._stream)
        self._on_host(span)[...] = values
        _cuda.write(start, span, self._device, self._stream)


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, device: int) -> DeviceArray:
    """Return zeros on the GPU with the number `device`; rows are contiguous."""
    from fusedstep import _cuda

    wanted = np.dtype(dtype)
    size = math.prod(shape) * wanted.itemsize
    memory = _cuda.DeviceMemory(size, device)
    return DeviceArray(_view_at(memory.address, size, memory).view(wanted).reshape(shape), device)


def of(array: Any) -> DeviceArray:
    """Return a view of an array of another library that has a `__cuda_array_interface__`."""
    from fusedstep import _cuda

    if isinstance(array, DeviceArray):
        return array
    interface = array.__cuda_array_interface__
    shape, strides, address = interface["shape"], interface.get("strides"), interface["data"][0]
    dtype = _dtype_of(interface["typestr"], getattr(array, "dtype", None))
    if not math.prod(shape):
        return DeviceArray(np.empty(shape, dtype), 0)
    low, size = 0, math.prod(shape) * dtype.itemsize
    if strides is not None:
        low, size = _span(shape, strides, dtype.itemsize)
    elements = np.dtype((np.void, dtype.itemsize))  # bfloat16 cannot be asked for otherwise
    view = np.ndarray(shape, elements, _view_at(address + low, size, array), -low, strides).view(dtype)
    return DeviceArray(view, _cuda.device_of(address), interface.get("stream") or _LEGACY)


def _span(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return where the first byte of an array lies beside its first element, and the bytes from there to the last."""
    ends = [step * (n - 1) for step, n in zip(strides, shape, strict=True)]
    low = sum(min(end, 0) for end in ends)
    return low, sum(max(end, 0) for end in ends) - low + itemsize


def _view_at(address: int, size: int, owner: Any) -> Any:
    return np.asarray(_Addresses(address, size, owner)) if size else np.empty(0, np.uint8)


def _dtype_of(typestr: str, known: Any) -> np.dtype[Any]:
    """Return the dtype of an array of another library; bfloat16, which a typestr cannot express, by its name."""
    if isinstance(known, np.dtype):
        return known
    return np.dtype(import_module("ml_dtypes").bfloat16 if str(known).endswith("bfloat16") else typestr)
