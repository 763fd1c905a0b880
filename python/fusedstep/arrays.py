"""Arrays that belong to parameters: of which dtype, where in memory, and as NumPy sees them."""

from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "MASTERS",
    "MASTER_DTYPES",
    "Array",
    "as_numpy",
    "fits",
    "is_bfloat16",
    "is_half",
    "new_array",
    "number",
]

Array: TypeAlias = npt.NDArray[Any]

_LINE = 64  # bytes
# What the master of a parameter is called, and its dtype.
MASTERS: dict[Any, str] = {True: "master", "split": "remainder"}
MASTER_DTYPES: dict[str, np.dtype[Any]] = {"master": np.dtype(np.float32), "remainder": np.dtype(np.uint16)}


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is float16, or the bfloat16 of `ml_dtypes`."""
    return dtype == np.float16 or is_bfloat16(dtype)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is the bfloat16 of `ml_dtypes`, which need not be there, in native byte order."""
    registered = dtype.isbuiltin == 2 and dtype.isnative  # bytes, and classes of them, are not
    return registered and dtype.name == "bfloat16" and dtype.type.__module__ == "ml_dtypes"


def new_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return zeros, aligned to cache lines."""
    # A view: nobody can resize it, and the plan's reference to its owner keeps that as it is.
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    owner = np.zeros(size + _LINE, np.uint8)
    start = -owner.ctypes.data % _LINE
    return owner[start : start + size].view(dtype).reshape(shape)


def fits(param: np.dtype[Any], name: str, state: np.dtype[Any]) -> bool:
    """Return whether a state called `name`, or an average, may belong to a parameter of a dtype."""
    if name in MASTER_DTYPES:
        return is_half(param) and state == MASTER_DTYPES[name] and (name == "master" or is_bfloat16(param))
    return param == state or (is_half(param) and state == np.float32)


def as_numpy(value: Any, label: str) -> Array:
    """Return a NumPy array, or a NumPy view of one of another library, or refuse it."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        raise TypeError(f"{label} is of type {type(value).__name__}, expected an array")
    return _viewed(
        value, label, "ml_dtypes.bfloat16, as from tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)"
    )


def _viewed(value: Any, label: str, wanted: str) -> Array:
    """Return a NumPy view of an array of another library, or say what is wanted in place of bfloat16."""
    try:
        array: Array = np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:  # by the version of NumPy, and by the library
        if not str(getattr(value, "dtype", "")).endswith("bfloat16"):
            raise
        found = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{label} is bfloat16 of {found}, which NumPy cannot view, expected {wanted}") from error
    return array


def number(value: Any, label: str) -> Any:
    """Return a number, also one that another library keeps in an array without dimensions, or refuse it."""
    if not isinstance(value, Real) and hasattr(value, "__dlpack__"):
        array = _viewed(value, label, "a number, as from float(tensor)")
        value = array[()] if array.shape == () else value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{label} is {value!r}, expected a number")
    return value
