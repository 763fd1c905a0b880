"""What a roofline needs besides bytes: the operations of a rule, and what a machine can compute at most."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fusedstep import reference

from .cases import Case
from .gpu import cupy, gpu_time
from .harness import Entry, host_time, race

__all__ = ["flop_per_s", "operations"]

COUNTED = (np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.negative, np.absolute)


class _Counted(np.ndarray):
    """An array that counts what is computed with it."""

    count = 0

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        _Counted.count += ufunc in COUNTED
        plain = (x.view(np.ndarray) if isinstance(x, _Counted) else x for x in inputs)
        return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(_Counted)


@cache
def operations(rule: str) -> int:
    """Return how often a rule adds, multiplies, divides or takes a root per parameter, as the reference does it."""
    optimizer = Case(rule).optimizer(reference)
    scalars = {name: np.float32(value) for name, value in optimizer.host(optimizer.lr, 1, {}).items()}
    g, *states = (np.ones(1, np.float32).view(_Counted) for _ in ("g", *optimizer.states()))
    _Counted.count = 1  # p - u
    optimizer.elem(SimpleNamespace(**scalars), g, **dict(zip(optimizer.states(), states, strict=True)))
    return _Counted.count


def flop_per_s(device: str) -> float:
    """Return how many float32 operations per second a product of matrices reaches, on all threads."""
    n, xp, clock = (1024, np, host_time) if device == "cpu" else (8192, cupy(), gpu_time)
    a, b, c = (xp.ones((n, n), np.float32) for _ in "abc")
    (timing,) = race([Entry(lambda: xp.matmul(a, b, out=c))], 5, clock=clock)
    return 2 * n**3 / min(timing.seconds)
