"""
The specification: every optimizer in plain NumPy, as its paper writes it, in the order in which it is rounded.

The classes take the same arguments as those of `fusedstep` and share nothing with them. They do not check what they are
given. float32 arithmetic flushes subnormal numbers to zero, as the kernels' does; float64 is full IEEE.
"""

from . import optimizers
from .optimizer import Optimizer, Result, float_mode
from .optimizers import *  # noqa: F403 (its __all__ is the list of optimizers)

__all__ = ["Optimizer", "Result", "float_mode"]
__all__ += optimizers.__all__
