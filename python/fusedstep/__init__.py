"""
Optimizer steps for NumPy and CuPy arrays: one call, in place, one pass over memory, the same bits everywhere.

Examples
--------
A whole loop: batches, a schedule, clipping, averaged weights, a checkpoint after each epoch.

>>> import numpy as np, fusedstep as fs
>>> x = np.linspace(-1, 1, 50)
>>> y = 3 * x + 2
>>> params = {"slope": np.zeros(1), "offset": np.zeros(1)}
>>> batches = fs.minibatches(len(x), batch_size=8, seed=0)
>>> schedule = fs.schedules.warmup(0.0, fs.schedules.cosine(0.1, steps=400), steps=20)
>>> opt = fs.Adam(lr=schedule, clip_global_norm=1.0, skip_nonfinite=True, ema=0.9)
>>> for epoch in range(60):
...     for rows in batches:
...         error = params["slope"] * x[rows] + params["offset"] - y[rows]
...         grads = {"slope": (error * x[rows]).mean(keepdims=True), "offset": error.mean(keepdims=True)}
...         result = opt.step(params, grads)
...     fs.save(path, opt, params, extra=batches.done)
>>> {key: p.round(3).item() for key, p in params.items()}, result.skipped
({'slope': 3.0, 'offset': 2.0}, False)
>>> again = fs.Adam()
>>> batches.done = fs.load(path, again, params)
>>> again.t["slope"], again.ema["slope"].round(3).item()
(420, 3.0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusedstep.core.containers import bind
from fusedstep.core.result import Result
from fusedstep.core.settings import info, set_num_threads, use_isa

from . import _cpu, functional, optimizers, schedules
from .checkpoint import load, save
from .minibatches import minibatches
from .optimizers import *  # noqa: F403 (the __all__ of optimizers is the list of them)

if TYPE_CHECKING:
    from . import reference

__version__ = _cpu.version

__all__ = [
    "Result",
    "bind",
    "functional",
    "info",
    "load",
    "minibatches",
    "reference",
    "save",
    "schedules",
    "set_num_threads",
    "use_isa",
]
__all__ += optimizers.__all__


def __getattr__(name: str) -> Any:
    """Load `fusedstep.reference` when it is first asked for: a program that only makes steps need not wait for it."""
    if name == "reference":
        return import_module(".reference", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
