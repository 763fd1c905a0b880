"""
Schedules: hyperparameters that change from update to update.

A schedule is a function of the number of finished updates, which is 0 at the first update. Any such callable will do.
The schedules here are the usual ones, as objects that can be compared, pickled and written into checkpoints. Only
`plateau` has a memory. All of them compute in float64, in the order of their formulas, with powers and a cosine that
have the same bits on every platform: nothing is asked of the C library. The first argument is called `lr`, but may
stand for any hyperparameter that is not negative.
"""

from .combined import product, sequential, warmup
from .decays import (
    cosine,
    cosine_restarts,
    exponential,
    inverse_sqrt,
    inverse_time,
    multistep,
    piecewise,
    polynomial,
    step,
)
from .plateau import plateau
from .schedule import Schedule, constant

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "multistep",
    "piecewise",
    "plateau",
    "polynomial",
    "product",
    "sequential",
    "step",
    "warmup",
]
