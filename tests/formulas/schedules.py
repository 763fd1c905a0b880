"""Schedules to try things with: examples of every class, and what they remember."""

import copy
import math

from fusedstep import schedules as s
from fusedstep.schedules.description import _plateaus, rebuild, remember
from fusedstep.schedules.description import describe as describe_all

INF = math.inf
NAMES = [name for name in s.__all__ if isinstance(getattr(s, name), type) and name != "Schedule"]
EXAMPLES = [
    s.constant(0.3),
    s.exponential(0.1, 0.9, 7, True),
    s.step(0.1, 0.5, 3),
    s.multistep(0.1, 0.5, [2, 5], "last"),
    s.piecewise([2, 5], [0.3, 0.2, 0.1]),
    s.inverse_time(0.1, 0.3, 2),
    s.inverse_sqrt(0.1, 4),
    s.polynomial(0.1, 1e-4, 10, 2.5, cycle=True),
    s.warmup(0, s.warmup(0.1, s.cosine(0.5, 10), 3), 4),
    s.product(s.cosine(0.1, 9), 0.5, s.plateau(1.0)),
    s.sequential([0.1, s.plateau(0.2, mode="max"), s.plateau(0.3)], [3, 9]),
    s.cosine(0.1, 9, 0.1, "periodic"),
    s.cosine_restarts(0.1, 9, 1.5, 0.7, 0.2),
    s.plateau(0.1, 0.5, 2, 0.01, "abs", "max", 3, 1e-3),
]


def some(start):
    """Return a value; a plain function, which is no Schedule."""
    return 2.0 * start


def observed(schedule):
    """Return a copy, all plateaus of which remember something else."""
    schedule = copy.deepcopy(schedule)
    for i, part in enumerate(_plateaus(schedule)):
        for x in [2.0 - i, *[7.0] * (11 + i)]:
            part.observe(x)
    return schedule


def describe(schedule):
    return describe_all(schedule, [])


def rebuilt(description, present=None):
    made = {}
    schedule = rebuild(description, present, made)
    remember(made)
    return schedule


def memories(schedule):
    return [(p.rate, p.best, p.bad, p.cooldown_left) for p in _plateaus(schedule)]
