"""Arrays of parameters and states: their dtypes, where in memory they are, and how NumPy, CuPy or we see them."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedstep import _cpu

__all__ = [
    "LINE",
    "MASTERS",
    "MASTER_DTYPES",
    "Array",
    "Stored",
    "as_array",
    "as_number",
    "as_numpy",
    "bits",
    "check_separate",
    "copied",
    "device_of",
    "fill",
    "fits",
    "is_bfloat16",
    "is_floating",
    "is_narrow",
    "is_on_gpu",
    "is_own",
    "new_array",
    "order_of",
    "same_order",
    "span",
    "to_host",
]

Array: TypeAlias = npt.NDArray[Any]  # also an array of CuPy, or a DeviceArray

LINE = 64  # bytes of a cache line
_OWN = "fusedstep.core.device_array"  # arrays on a GPU where CuPy is not installed
# Masters of parameters: the hyperparameter master_weights -> the name of the master among the states -> its dtype.
MASTERS: dict[Any, str] = {True: "master", "split": "remainder"}
MASTER_DTYPES: dict[str, np.dtype[Any]] = {"master": np.dtype(np.float32), "remainder": np.dtype(np.uint16)}


class Stored(NamedTuple):
    """An array in a file: what it is, and how it is read into a C-contiguous array in host memory."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    read_into: Callable[[Array], None]


@cache
def is_narrow(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is one whose numbers are computed in float32: float16, or the bfloat16 of `ml_dtypes`."""
    is_of_numpy = dtype.isnative and dtype.type.__module__ == "numpy"
    return dtype.name in _cpu.narrow and (is_of_numpy or _is_of_ml_dtypes(dtype))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether a parameter may have a dtype."""
    return dtype.kind in "fc" or is_narrow(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is the bfloat16 of `ml_dtypes`, which need not be installed, in native byte order."""
    return dtype.name == "bfloat16" and _is_of_ml_dtypes(dtype)


def _is_of_ml_dtypes(dtype: np.dtype[Any]) -> bool:
    registered = dtype.isbuiltin == 2 and dtype.isnative  # a structured dtype may have the same name
    return registered and dtype.type.__module__ == "ml_dtypes"


def is_on_gpu(value: Any) -> bool:
    """Return whether a value is an array, of whatever library, on a GPU."""
    kind = type(value)
    if isinstance(value, np.ndarray) or not hasattr(kind, "__cuda_array_interface__"):
        return False
    return not hasattr(kind, "__dlpack_device__") or value.__dlpack_device__()[0] != 1  # 1 is kDLCPU


def device_of(array: Array) -> int | None:
    """Return the number of the GPU where an array is, or None for host memory."""
    return None if isinstance(array, np.ndarray) else array.device.id


def is_own(array: Any) -> bool:
    """Return whether an array is a `DeviceArray`, whose module is loaded with the first of them."""
    module = sys.modules.get(_OWN)
    return module is not None and isinstance(array, module.DeviceArray)


def _cupy() -> Any:
    """Return CuPy, or None where it is not installed."""
    try:
        return import_module("cupy")
    except ImportError:
        return None


def _zeros_on_gpu(shape: tuple[int, ...], dtype: npt.DTypeLike, device: int) -> Any:
    if (cupy := _cupy()) is None:
        return import_module(_OWN).zeros(shape, dtype, device)
    with cupy.cuda.Device(device):
        return cupy.zeros(shape, dtype)


def new_array(
    shape: tuple[int, ...], dtype: npt.DTypeLike, device: int | None = None, order: Sequence[int] | None = None
) -> Array:
    """
    Return zeros: in host memory, aligned to cache lines, or on the GPU with the number `device`.

    The axes lie in memory in the given order, the slowest one first; by default rows are contiguous.
    """
    if order is not None and list(order) != sorted(order):
        places: list[int] = np.argsort(order).tolist()
        return new_array(tuple(shape[axis] for axis in order), dtype, device).transpose(places)
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if device is not None:
        try:
            zeros: Array = _zeros_on_gpu(shape, dtype, device)
            return zeros
        except MemoryError as error:
            raise MemoryError(
                f"states need {size:,} bytes more than GPU {device} has left: free some, as by "
                "cupy.get_default_memory_pool().free_all_blocks(), or take a smaller state_dtype"
            ) from error
    # The array is a view, so nobody can resize it, and the plan's reference to the owner keeps the memory in place.
    owner = np.zeros(size + LINE, np.uint8)
    start = -owner.ctypes.data % LINE
    return owner[start : start + size].view(dtype).reshape(shape)


def order_of(array: Array) -> list[int]:
    """Return the axes of an array, the slowest one in memory first."""
    return sorted(range(array.ndim), key=lambda axis: -array.strides[axis])


def same_order(array: Array, order: Sequence[int]) -> bool:
    """Return whether the axes of an array lie in memory in an order; an axis of length 1 may stand anywhere."""
    strides = [array.strides[axis] for axis in order if array.shape[axis] != 1]
    return strides == sorted(strides, reverse=True)


def fits(param: np.dtype[Any], name: str, state: np.dtype[Any]) -> bool:
    """Return whether a state called `name`, or an average, may belong to a parameter of a dtype."""
    if name in MASTER_DTYPES:
        return is_narrow(param) and state == MASTER_DTYPES[name] and (name == "master" or is_bfloat16(param))
    return param == state or (is_narrow(param) and state == np.float32)


def to_host(array: Array) -> Array:
    """Return an array of NumPy as it is, and a copy in host memory of one on a GPU."""
    return array if isinstance(array, np.ndarray) else array.get()


def copied(array: Array) -> Array:
    """Return a copy of an array in host memory."""
    return array.copy() if isinstance(array, np.ndarray) else array.get()


def fill(target: Array, source: Any) -> None:
    """Copy an array, also one in a file, or a number, into an array, wherever they are."""
    if isinstance(source, Stored):
        if isinstance(target, np.ndarray) and target.flags.c_contiguous:
            source.read_into(target)
            return
        host = np.empty(source.shape, source.dtype)
        source.read_into(host)
        source = host
    if isinstance(target, np.ndarray):
        target[...] = to_host(source) if is_on_gpu(source) else source
        return
    if is_own(target):
        target.set(to_host(source) if is_on_gpu(source) else source)
        return
    with target.device:
        if is_on_gpu(source) and (source.dtype, source.device) == (target.dtype, target.device):
            bits(target)[...] = bits(source)
            return
        order = order_of(target)  # CuPy writes contiguous rows only
        host = np.empty([target.shape[axis] for axis in order], target.dtype)
        host.transpose(np.argsort(order))[...] = to_host(source) if is_on_gpu(source) else source
        target.transpose(order).set(host)


def bits(array: Array) -> Array:
    """Return an array of which CuPy knows the dtype: it has no bfloat16."""
    return array.view(np.uint16) if is_bfloat16(array.dtype) else array


def as_array(value: Any, label: str) -> Array:
    """Return an array of NumPy or on a GPU, or such a view of an array of another library, or refuse the value."""
    if not is_on_gpu(value):
        return as_numpy(value, label)
    cupy = None if is_own(value) else _cupy()
    array: Array = import_module(_OWN).of(value) if cupy is None else cupy.asarray(value)  # a view, or the array itself
    return array


def as_numpy(value: Any, label: str) -> Array:
    """Return a NumPy array, or a NumPy view of an array of another library, or refuse the value."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        raise TypeError(f"{label} is of type {type(value).__name__}, expected an array")
    return _viewed(
        value, label, "ml_dtypes.bfloat16, as from tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)"
    )


def _viewed(value: Any, label: str, wanted: str) -> Array:
    """Return a NumPy view of an array of another library, or ask for what is `wanted` in place of bfloat16."""
    try:
        array: Array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:  # the type depends on the versions of both libraries
        if not str(getattr(value, "dtype", "")).endswith("bfloat16"):
            raise
        found = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{label} is bfloat16 of {found}, which NumPy cannot view, expected {wanted}") from error
    return array


def as_number(value: Any, label: str) -> Any:
    """Return a number, also one that another library keeps in an array without dimensions, or refuse the value."""
    if not isinstance(value, Real) and hasattr(value, "__dlpack__"):
        array = _viewed(value, label, "a number, as from float(tensor)")
        value = array[()] if array.shape == () else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} is {value!r}, expected a number")
    return value


# Where arrays lie.


def check_separate(arrays: Mapping[str, Array]) -> None:
    """Refuse arrays, by their labels, of which two elements lie in the same memory."""
    for label, array in arrays.items():
        room = array.itemsize
        for stride, count in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True)):
            if count > 1 and array.size and stride < room:
                raise ValueError(f"{label} has strides {array.strides}, expected each element in memory of its own")
            room += stride * (count - 1)
    spans = sorted((span(array), label) for label, array in arrays.items() if array.size)
    for ((device, _, end), label), ((other, begin, _), overlapping) in pairwise(spans):
        if device == other and begin < end:
            first, second = sorted((label, overlapping), key=list(arrays).index)
            raise ValueError(f"{first} overlaps {second} in memory, expected separate arrays")


def span(array: Array) -> tuple[int, int, int]:
    """Return the number of the GPU, or -1 for host memory, and the first address of an array and the one behind it."""
    device = device_of(array)
    start: int = array.ctypes.data if device is None else array.data.ptr  # type: ignore[attr-defined]
    ends = [stride * (n - 1) for stride, n in zip(array.strides, array.shape, strict=True)]
    low, high = sum(min(end, 0) for end in ends), sum(max(end, 0) for end in ends)
    return -1 if device is None else device, start + low, start + high + array.itemsize
