"""Rules that users write: functions in Python, which become programs of the engine and classes of optimizers."""

from .decorator import rule
from .symbols import sqrt

__all__ = ["rule", "sqrt"]
