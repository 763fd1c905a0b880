"""Schedules that are formulas: steps, decays and cosines."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fusedstep.core.hyperparameters import rational_power

from .schedule import Boundary, Schedule, one_more
from .trigonometry import cos_pi

__all__ = [
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "inverse_time",
    "multistep",
    "piecewise",
    "polynomial",
    "step",
]


def _power(x: float, y: float) -> float:
    """Return x**y for x, y >= 0: by squaring where y is whole, and else to 50 digits, rounded once."""
    n = int(y)
    if n != y:
        return rational_power(x, y)
    r = 1.0
    while n:
        if n & 1:
            r *= x
        n >>= 1
        if n:
            x *= x
    return r


def _reached(boundaries: Sequence[int], boundary: Boundary, done: int) -> int:
    return (bisect_right if boundary == "first" else bisect_left)(boundaries, done)


@dataclass(frozen=True)
class exponential(Schedule):
    r"""
    Decay exponentially (Keras, optax); with ``steps=1`` this is PyTorch's `ExponentialLR`.

    .. math:: lr \cdot rate^{done / steps}, \qquad lr \cdot rate^{\lfloor done / steps \rfloor} \text{ (staircase)}

    :math:`lr \, e^{-r \, done / steps}` is this schedule with rate :math:`e^{-r}`.

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    rate : float
        Factor by which `steps` updates change the value, at least 0.
    steps : int
        Updates that `rate` belongs to, at least 1.
    staircase : bool
        Whether to change only after every `steps` updates. Otherwise a power of 50 digits is computed whenever
        ``done / steps`` is not whole, which takes some 50 times longer.
    """

    lr: float
    rate: float
    steps: int = 1
    staircase: bool = False

    def _at(self, done: int) -> float:
        return self.lr * _power(self.rate, done // self.steps if self.staircase else done / self.steps)


@dataclass(frozen=True)
class step(Schedule):
    r"""
    Change by a factor at regular intervals: PyTorch's `StepLR`.

    .. math:: lr \cdot factor^{\lfloor done / every \rfloor}

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    factor : float
        Factor of each change, at least 0.
    every : int
        Updates from change to change, at least 1.
    """

    lr: float
    factor: float
    every: int

    def _at(self, done: int) -> float:
        return self.lr * _power(self.factor, done // self.every)


@dataclass(frozen=True)
class multistep(Schedule):
    r"""
    Change by a factor at each boundary: PyTorch's `MultiStepLR`.

    .. math:: lr \cdot factor^{\text{number of boundaries reached}}

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    factor : float
        Factor of each change, at least 0.
    boundaries : sequence of int
        Numbers of finished updates, increasing, at least 0.
    boundary : {"first", "last"}
        Whether a boundary B is the first update with the new value, reached when done >= B (PyTorch, optax), or the
        last one with the old value, reached when done > B (Keras, TensorFlow).
    """

    lr: float
    factor: float
    boundaries: Sequence[int]
    boundary: Boundary = "first"

    def _at(self, done: int) -> float:
        return self.lr * _power(self.factor, _reached(self.boundaries, self.boundary, done))


@dataclass(frozen=True)
class piecewise(Schedule):
    r"""
    Take another value at each boundary: `PiecewiseConstantDecay` of Keras, there with boundary "last".

    .. math:: values_{\text{number of boundaries reached}}

    Parameters
    ----------
    boundaries : sequence of int
        Numbers of finished updates, increasing, at least 0.
    values : sequence of float
        The values, at least 0, one more than boundaries.
    boundary : {"first", "last"}
        As in `multistep`.
    """

    boundaries: Sequence[int]
    values: Sequence[float]
    boundary: Boundary = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_more("values", self.values, "boundaries", self.boundaries)

    def _at(self, done: int) -> float:
        return self.values[_reached(self.boundaries, self.boundary, done)]


@dataclass(frozen=True)
class inverse_time(Schedule):
    r"""
    Decay with the inverse of time: `InverseTimeDecay` of Keras.

    .. math:: \frac{lr}{1 + rate \cdot done / steps}, \qquad
        \frac{lr}{1 + rate \, \lfloor done / steps \rfloor} \text{ (staircase)}

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    rate : float
        Growth of the denominator in `steps` updates, at least 0.
    steps : int
        Updates that `rate` belongs to, at least 1.
    staircase : bool
        Whether to change only after every `steps` updates.

    References
    ----------
    Robbins & Monro 1951, "A stochastic approximation method".
    """

    lr: float
    rate: float
    steps: int = 1
    staircase: bool = False

    def _at(self, done: int) -> float:
        return self.lr / (1 + self.rate * (done // self.steps if self.staircase else done / self.steps))


@dataclass(frozen=True)
class inverse_sqrt(Schedule):
    r"""
    Decay with the inverse square root of time.

    .. math:: \frac{lr}{\sqrt{1 + done / steps}}

    ``warmup(0, inverse_sqrt(lr, n), n)`` is the schedule of the transformer: up in a straight line in n updates, then
    :math:`lr \sqrt{n / done}`.

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    steps : int
        Updates after which the value is :math:`lr / \sqrt 2`, at least 1.

    References
    ----------
    Vaswani et al. 2017, "Attention is all you need", section 5.3.
    """

    lr: float
    steps: int

    def _at(self, done: int) -> float:
        return self.lr / math.sqrt(1 + done / self.steps)  # a root is exact to the last bit on every platform


@dataclass(frozen=True)
class polynomial(Schedule):
    r"""
    Go to an end along a polynomial (Keras, PyTorch), then stay there, or begin again from higher up.

    .. math:: (lr - end) (1 - q)^{power} + end, \qquad q = \frac{\min(done, steps)}{steps}, \qquad
        q = \frac{done}{steps \cdot \max(1, \lceil done / steps \rceil)} \text{ (cycle)}

    Parameters
    ----------
    lr, end : float
        The first and the last value, at least 0. The last value is 1e-4 by default in Keras and always 0 in PyTorch.
    steps : int
        Updates until the end, at least 1.
    power : float
        Exponent, at least 0.
    cycle : bool
        Whether, after the end, to aim at the next multiple of `steps`.
    """

    lr: float
    end: float
    steps: int
    power: float = 1.0
    cycle: bool = False

    def _at(self, done: int) -> float:
        periods = max(1, -(-done // self.steps)) if self.cycle else 1  # the ceiling, in integers
        steps = self.steps * periods
        q = min(done, steps) / steps
        return (self.lr - self.end) * _power(1 - q, self.power) + self.end


@dataclass(frozen=True)
class cosine(Schedule):
    r"""
    Fall along half a cosine.

    .. math:: lr \left(\frac{1 - \alpha}{2} \left(1 + \cos \frac{\pi \, done}{steps}\right) + \alpha\right)

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    steps : int
        Updates until the lowest value, at least 1.
    alpha : float
        The lowest value as a share of `lr`, at least 0; PyTorch's eta_min is ``alpha * lr``.
    after : {"hold", "periodic"}
        Whether to stay at the lowest value, ``done = min(done, steps)`` (Keras, optax), or to rise and fall again
        (PyTorch).

    References
    ----------
    Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts", equation 5.
    """

    lr: float
    steps: int
    alpha: float = 0.0
    after: Literal["hold", "periodic"] = "hold"

    def _at(self, done: int) -> float:
        if self.after == "hold":
            done = min(done, self.steps)
        return self.lr * ((1 - self.alpha) / 2 * (1 + cos_pi(done / self.steps)) + self.alpha)


@dataclass(frozen=True)
class cosine_restarts(Schedule):
    r"""
    Fall along half a cosine, and again, in longer and longer periods.

    .. math:: lr \left(\frac{(1 - \alpha) \, m^i}{2} \left(1 + \cos \frac{\pi \tau}{L}\right) + \alpha\right), \qquad
        L = steps \cdot t^i, \qquad m = m\_mul, \quad t = t\_mul

    where :math:`\tau` is the number of updates since the beginning of the period i = 0, 1, ...

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    steps : int
        Updates in the first period, at least 1.
    t_mul : float
        How many times longer the next period is, at least 1. The number need not be whole.
    m_mul : float
        How many times higher the next period begins, at least 0, where `alpha` is 0.
    alpha : float
        The lowest value as a share of `lr`, at least 0.

    References
    ----------
    Loshchilov & Hutter 2017, "SGDR: stochastic gradient descent with warm restarts". `CosineDecayRestarts` of Keras;
    PyTorch's `CosineAnnealingWarmRestarts` has no `m_mul`.
    """

    lr: float
    steps: int
    t_mul: float = 1.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def _period(self, done: int) -> tuple[int, float, float]:
        """Return the number of the period, the updates into it, and its length."""
        if self.t_mul == 1:
            return *divmod(done, self.steps), self.steps
        i, tau, length = 0, float(done), float(self.steps)
        while tau >= length:  # a logarithm would be off by one period at some borders
            tau -= length
            i += 1
            length = self.steps * _power(self.t_mul, i)
        return i, tau, length

    def _at(self, done: int) -> float:
        i, tau, length = self._period(done)
        amplitude = (1 - self.alpha) * _power(self.m_mul, i) / 2
        return self.lr * (amplitude * (1 + cos_pi(tau / length)) + self.alpha)
