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

import fusedstep.core.interpreter  # noqa: F401 (refuses an interpreter in which the next import would hang)
from fusedstep.core.settings import info, set_num_threads, use_isa, use_rules

from . import _cpu, optimizers
from .minibatches import minibatches

if TYPE_CHECKING:
    from fusedstep.core.containers import bind
    from fusedstep.core.overrides import where
    from fusedstep.core.result import Result

    from . import functional, presets, reference, schedules
    from .checkpoint import load, save
    from .loss_scale import LossScale
    from .optimizers import *  # noqa: F403 (the __all__ of optimizers is the list of them)
    from .rules import rule, sqrt

__version__ = _cpu.version

__all__ = [
    "LossScale",
    "Result",
    "bind",
    "functional",
    "info",
    "load",
    "minibatches",
    "presets",
    "reference",
    "rule",
    "save",
    "schedules",
    "set_num_threads",
    "sqrt",
    "use_isa",
    "use_rules",
    "where",
]
__all__ += optimizers.__all__

# What is loaded when it is first asked for, since a program needs little of it: name -> the module that has it.
_PLACES = {
    "LossScale": ".loss_scale",
    "Result": ".core.result",
    "bind": ".core.containers",
    "load": ".checkpoint",
    "rule": ".rules",
    "save": ".checkpoint",
    "sqrt": ".rules",
    "where": ".core.overrides",
    **dict.fromkeys(optimizers.__all__, ".optimizers"),
}


def __getattr__(name: str) -> Any:
    if name in ("functional", "presets", "reference", "schedules"):
        return import_module(f".{name}", __name__)
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_PLACES[name], __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, "optimizers", *(name for name in globals() if name[:2] == "__")})
