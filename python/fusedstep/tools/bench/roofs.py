"""What a roofline needs besides bytes: how much a rule computes, and how much a machine can compute at most."""

from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from fusedstep import reference

from .cases import Case
from .gpu import cupy, gpu_time
from .harness import Entry, host_time, race

__all__ = ["flop_per_s", "functions", "operations"]

OPERATIONS = ("add", "subtract", "multiply", "divide", "sqrt", "negative", "absolute")  # selections count as free


class _Counted(np.ndarray):
    """An array that counts, by name, the functions of NumPy that compute with it."""

    counts: ClassVar[Counter[str]] = Counter()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        _Counted.counts[ufunc.__name__] += 1
        if "out" in options:
            options["out"] = tuple(map(_plain, options["out"]))
        return np.asarray(getattr(ufunc, method)(*map(_plain, inputs), **options)).view(_Counted)

    def __array_function__(self, function: Any, *arguments: Any) -> Any:
        found = super().__array_function__(function, *arguments)
        # A view that counts, so that operations on the selected elements count too.
        return found.view(_Counted) if isinstance(found, np.ndarray) else found


def _plain(x: Any) -> Any:
    return x.view(np.ndarray) if isinstance(x, _Counted) else x


@cache
def functions(rule: str) -> Counter[str]:
    """Return how often the reference calls each function of NumPy in an update of one parameter."""
    optimizer = Case(rule).optimizer(reference)
    scalars = {name: np.float32(value) for name, value in optimizer.host(optimizer.lr, 1, {}).items()}
    g, *states = (np.ones(1, np.float32).view(_Counted) for _ in ("g", *optimizer.states()))
    _Counted.counts = Counter(subtract=1)  # the subtraction p - u
    optimizer.elem(SimpleNamespace(**scalars), g, **dict(zip(optimizer.states(), states, strict=True)))
    return _Counted.counts


def operations(rule: str) -> int:
    """Return how often a rule adds, subtracts, multiplies, divides, takes a root or a sign per parameter."""
    return sum(functions(rule)[name] for name in OPERATIONS)


def flop_per_s(device: str) -> float:
    """Return how many float32 operations per second a product of matrices reaches, on all threads."""
    n, xp, clock = (1024, np, host_time) if device == "cpu" else (8192, cupy(), gpu_time)
    a, b, c = (xp.ones((n, n), np.float32) for _ in "abc")
    (timing,) = race([Entry(lambda: xp.matmul(a, b, out=c))], 5, clock=clock)
    return 2 * n**3 / min(timing.seconds)
