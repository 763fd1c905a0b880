"""
The optimizers: a class for each, in a file of its name.

A class holds hyperparameters and their explanation. The formula in its docstring is computed by a rule of the engine
and, in plain NumPy, by the class of the same name in `fusedstep.reference`.
"""

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusedstep import _cpu

if TYPE_CHECKING:  # a class is loaded when it is first asked for
    from fusedstep.core.optimizer import Optimizer

    from .adabelief import AdaBelief
    from .adadelta import Adadelta
    from .adagrad import Adagrad
    from .adam import Adam
    from .adamax import Adamax
    from .adamw import AdamW
    from .lion import Lion
    from .momentum import Momentum
    from .nadam import Nadam
    from .nag import NAG
    from .radam import RAdam
    from .rmsprop import RMSprop
    from .sgd import SGD

__all__ = [
    "NAG",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Momentum",
    "Nadam",
    "Optimizer",
    "RAdam",
    "RMSprop",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "fusedstep.core.optimizer" if name == "Optimizer" else f"{__name__}.{name.lower()}"
    globals()[name] = cls = getattr(import_module(place), name)
    if name != "Optimizer":
        _document(cls)
    return cls


def __dir__() -> list[str]:
    return sorted({*__all__, "classes", *(name for name in globals() if name[:2] == "__")})


def classes() -> list[type["Optimizer"]]:
    """Return the optimizers in the order of their rules, from simple to complex."""
    found = [getattr(import_module(__name__), name) for name in __all__ if name != "Optimizer"]
    return sorted(found, key=lambda cls: (_cpu.rules[cls.rule].id, cls.__name__))


def _document(cls: type["Optimizer"]) -> None:
    """Say in the docstring of a class, for `help` and editors, what all options are that the classes share."""
    parts = re.match(r"(?s)(.*\n)    \*\*options\n.*?(    References\n.*)", cls.__doc__ or "")
    base = import_module(__name__).Optimizer
    common = re.search(r"(?s) Parameters\n    -+\n(.*?\n)\n    Raises", base.__doc__ or "")
    if parts and common:  # python -OO has no docstrings
        options, notes = common[1], "Every number may be a schedule, see `Optimizer`."
        if cls.always_decoupled:
            options = re.sub(r"    decoupled : bool\n.*\n", "", options)
            notes += " `decoupled` is always True."
        cls.__doc__ = f"{parts[1]}{options}\n    Notes\n    -----\n    {notes}\n\n{parts[2]}"
