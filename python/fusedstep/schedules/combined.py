"""Schedules that are made of other schedules."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .schedule import Member, Schedule, one_more

__all__ = ["product", "sequential", "warmup"]


@dataclass(frozen=True)
class warmup(Schedule):
    r"""
    Go to the first value of another schedule in a straight line, then begin it.

    .. math:: start + (inner(0) - start) \cdot done / steps \text{ while } done < steps, \quad
        \text{then } inner(done - steps)

    The warm-up comes before the other schedule, as in Keras; optax counts the warm-up as the first part of it.

    Parameters
    ----------
    start : float
        The first value, at least 0.
    inner : schedule, function or float
        What follows the warm-up, and counts its updates from 0. A number stands for `constant`.
    steps : int
        Updates of the warm-up; with 0 there is none.

    References
    ----------
    Goyal et al. 2017, "Accurate, large minibatch SGD: training ImageNet in 1 hour", section 2.2.
    """

    start: float
    inner: Member
    steps: int
    lowest: ClassVar = {}

    def _at(self, done: int) -> float:
        inner: Any = self.inner
        if done < self.steps:
            return float(self.start + (inner(0) - self.start) * (done / self.steps))
        return float(inner(done - self.steps))


@dataclass(frozen=True, init=False, repr=False)
class product(Schedule):
    r"""
    Multiply schedules.

    .. math:: s_1(done) \cdot s_2(done) \cdots

    Parameters
    ----------
    *schedules : schedule, function or float
        At least one schedule. The values are multiplied from the first to the last.
    """

    schedules: Sequence[Member]

    def __init__(self, *schedules: Member) -> None:
        object.__setattr__(self, "schedules", schedules)
        self.__post_init__()
        if not schedules:
            raise ValueError("schedules has 0 elements, expected at least 1")

    def __repr__(self) -> str:
        return f"product({', '.join(map(repr, self.schedules))})"

    def _at(self, done: int) -> float:
        schedules: Sequence[Any] = self.schedules
        return float(math.prod([schedule(done) for schedule in schedules]))


@dataclass(frozen=True)
class sequential(Schedule):
    r"""
    Follow one schedule after the other: PyTorch's `SequentialLR`, `join_schedules` of optax.

    .. math:: s_i(done - m_i), \qquad m_0 = 0, \qquad i \text{ the number of milestones } m_1, m_2, \dots \le done

    Parameters
    ----------
    schedules : sequence of schedules, functions or floats
        One schedule more than there are milestones. Each counts its updates from 0.
    milestones : sequence of int
        Numbers of finished updates, increasing, at least 0: at each of them, the next schedule has its first update.
    """

    schedules: Sequence[Member]
    milestones: Sequence[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        one_more("schedules", self.schedules, "milestones", self.milestones)

    def _at(self, done: int) -> float:
        i = bisect_right(self.milestones, done)
        schedule: Any = self.schedules[i]
        return float(schedule(done - self.milestones[i - 1] if i else done))
