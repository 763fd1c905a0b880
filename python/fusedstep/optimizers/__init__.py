"""
The optimizers: a class for each, in a file of its name.

A class holds hyperparameters and their explanation. The formula in its docstring is computed by a rule of the engine
and, in plain NumPy, by the class of the same name in `fusedstep.reference`.
"""

from fusedstep import _cpu
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


def classes() -> list[type[Optimizer]]:
    """Return the optimizers in the order of their rules, from simple to complex."""
    found = [globals()[name] for name in __all__ if name != "Optimizer"]
    return sorted(found, key=lambda cls: (_cpu.rules[cls.rule].id, cls.__name__))
