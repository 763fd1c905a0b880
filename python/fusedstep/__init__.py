"""Optimizer steps for NumPy and CuPy arrays: one call, in place, one pass over memory, the same bits everywhere."""

from . import _cpu, functional, reference
from .optimizers import NAG, SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, Momentum, Nadam, Optimizer, RMSprop
from .settings import info, set_num_threads, use_isa

__version__ = _cpu.version

__all__ = [
    "NAG",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Momentum",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "functional",
    "info",
    "reference",
    "set_num_threads",
    "use_isa",
]
