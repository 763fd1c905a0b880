"""Rows of arrays along their first axis: which ones an index stands for, and arrays with fewer or more of them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Array, as_array, bits, device_of, fill, is_bfloat16, is_own, new_array, order_of, to_host

__all__ = ["Index", "broadcast", "checked", "grown", "numbers", "taken"]

Index = slice | npt.NDArray[Any]  # of one axis: a slice, or an array of integers or of bools


def checked(index: Any) -> Index:
    """Return an index of rows, in host memory, or refuse what is none."""
    if isinstance(index, slice):
        try:
            index.indices(0)
        except (TypeError, ValueError) as error:
            raise TypeError(f"index is {index}, expected integers or None in a slice: {error}") from error
        return index
    found = np.asarray(index) if isinstance(index, (list, tuple, range)) else to_host(as_array(index, "index"))
    if found.ndim == 1 and not found.size and isinstance(index, (list, tuple, range)):
        found = found.astype(np.intp)
    if found.dtype.kind not in "iub":
        raise TypeError(f"index is of dtype {found.dtype}, expected integers, bools or a slice")
    if found.ndim != 1:
        raise ValueError(f"index has shape {found.shape}, expected one dimension")
    return found


def numbers(index: Index, rows: int, label: str) -> npt.NDArray[np.intp]:
    """Return the numbers of the rows that an index stands for, in the array that a label names."""
    if not isinstance(index, slice) and index.dtype.kind == "b" and index.size != rows:
        raise IndexError(f"index has {index.size} bools, expected {rows}, one for each row of {label}")
    try:
        found: npt.NDArray[np.intp] = np.arange(rows)[index]
    except IndexError as error:
        bad = next(i for i in np.asarray(index).tolist() if not -rows <= i < rows)
        raise IndexError(f"index has {bad}, expected rows from {-rows} to {rows - 1} like {label}") from error
    return found


def taken(array: Array, rows: npt.NDArray[np.intp]) -> Array:
    """Return an array of some rows of another, whose axes lie in memory in the same order."""
    made = _like(array, rows.size)
    if isinstance(array, np.ndarray):
        made[...] = array[rows]
        return made
    if is_own(array):
        fill(made, to_host(array)[rows])
        return made
    there = new_array(rows.shape, rows.dtype, device_of(array))
    fill(there, rows)
    with array.device:
        bits(made)[...] = bits(array)[there]
    return made


def grown(array: Array, n: int) -> Array:
    """Return an array with `n` rows of zeros behind its own, whose axes lie in memory in the same order."""
    made = _like(array, len(array) + n)
    fill(made[: len(array)], array)
    return made


def broadcast(values: Any, array: Array, n: int, label: str) -> Array:
    """Return values in host memory as `n` rows of an array, or refuse what does not fit."""
    found = np.asarray(values) if np.isscalar(values) else to_host(as_array(values, label))
    if found.dtype.kind not in "fiu" and not is_bfloat16(found.dtype) and found.dtype.kind != array.dtype.kind:
        raise TypeError(f"{label} is {found.dtype}, expected numbers that {array.dtype} can hold")
    shape = (n, *array.shape[1:])
    try:
        return np.broadcast_to(found, shape)
    except ValueError as error:
        raise ValueError(f"{label} has shape {found.shape}, expected {shape}, or one that broadcasts to it") from error


def _like(array: Array, rows: int) -> Array:
    return new_array((rows, *array.shape[1:]), array.dtype, device_of(array), order_of(array))
