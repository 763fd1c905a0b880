"""Optimizer steps for NumPy and CuPy arrays: one call, in place, one pass over memory, the same bits everywhere."""

from . import _cpu, functional, optimizers, reference, schedules
from .checkpoint import load, save
from .minibatches import minibatches
from .optimizers import *  # noqa: F403 (its __all__ is the list of optimizers)
from .settings import info, set_num_threads, use_isa

__version__ = _cpu.version

__all__ = ["functional", "info", "load", "minibatches", "reference", "save", "schedules", "set_num_threads", "use_isa"]
__all__ += optimizers.__all__
