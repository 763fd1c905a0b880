"""The arrays of a step: in containers of any depth, and with elements in the order of a parameter's memory."""

from collections.abc import Hashable, Mapping, ValuesView
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

__all__ = ["compute_type", "in_memory_order", "items", "made_like"]


def items(tree: Any, path: tuple[Any, ...] = ()) -> dict[Hashable, Any]:
    """Return arrays by key: at the top its own key, or 0 for a single array, and below that the path, as "a/0/b"."""
    if isinstance(tree, Mapping):
        children = dict(tree)
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        children = dict(zip(tree._fields, tree, strict=True))
    elif is_dataclass(tree) and not isinstance(tree, type):
        children = {f.name: getattr(tree, f.name) for f in fields(tree)}
    elif isinstance(tree, (list, tuple, ValuesView)):
        children = dict(enumerate(tree))
    else:
        return {(0 if not path else path[0] if len(path) == 1 else "/".join(map(str, path))): tree}
    return {key: array for name, child in children.items() for key, array in items(child, (*path, name)).items()}


def compute_type(p: Any) -> Any:
    """Return the dtype in which a parameter is computed: float64, or float32 for all that is narrower."""
    return np.float64 if p.dtype in (np.float64, np.complex128) else np.float32


def in_memory_order(array: Any, p: Any) -> Any:
    """
    Return a view of an array whose axes are those of a parameter, the slowest one in the parameter's memory first.

    Complex numbers are seen as pairs of real ones, along a further axis, the fastest one.
    """
    axes = sorted(range(p.ndim), key=lambda axis: -p.strides[axis])
    view = np.asarray(array).transpose(axes)
    if view.dtype.kind != "c":
        return view
    real = view.real
    return np.lib.stride_tricks.as_strided(real, (*real.shape, 2), (*real.strides, real.itemsize))


def made_like(p: Any, dtype: Any, start: Any = 0) -> Any:
    """Return an array that lies in memory like a parameter, each of its real numbers equal to `start`."""
    array = np.empty_like(p, dtype=dtype)
    in_memory_order(array, p)[...] = start
    return array
