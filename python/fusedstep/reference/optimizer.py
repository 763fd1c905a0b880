"""
What surrounds every rule: the step over all parameters, norms, clipping, weight decay, averages and rounding.

A rule (a class in `optimizers`) adds the names of its states, its scalars and its formula. Everything is plain NumPy,
one rounded operation after the other, in the order in which the kernels compute.
"""

import copy
import ctypes
import decimal
import math
import platform
import sys
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Real
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .arrays import compute_type, in_memory_order, items, made_like
from .storage import Noise, rounded, split, stored, unrounded, widened

__all__ = [
    "Memory",
    "Optimizer",
    "Result",
    "Scalars",
    "Scheduled",
    "State",
    "float_mode",
    "larger",
    "power",
    "rational_power",
    "with_sign_of",
]

Scheduled = Any  # a number, or a function of the number of finished updates
State = dict[str, Any]  # arrays by name
Memory = dict[str, float]  # numbers that a rule keeps from one update of a parameter to the next, by name
Scalars = dict[str, float]

# By platform: the offset in fenv_t of the word with the floating-point mode, and the bits in it that flush subnormals.
_MODE = {
    ("Linux", "x86_64"): (28, 0x8040),
    ("Darwin", "x86_64"): (4, 0x8040),
    ("Linux", "aarch64"): (0, 1 << 24),
    ("Darwin", "arm64"): (8, 1 << 24),
}


@contextmanager
def float_mode(dtype: Any) -> Iterator[None]:
    """Compute as the kernels do for this dtype: all but float64 is computed in float32, which flushes subnormals."""
    offset, bits = _MODE[platform.system(), platform.machine()]
    libm = ctypes.CDLL(None)
    before = (ctypes.c_char * 64)()
    libm.fegetenv(before)
    during = (ctypes.c_char * 64).from_buffer_copy(before)
    word = ctypes.c_uint32.from_buffer(during, offset)
    word.value = word.value & ~bits if np.dtype(dtype) == np.float64 else word.value | bits
    libm.fesetenv(during)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        libm.fesetenv(before)


def power(x: float, n: int) -> float:
    """Return x**n by squaring: the C library's pow differs between platforms."""
    r = 1.0
    while n:
        if n & 1:
            r = r * x
        n >>= 1
        if n:
            x = x * x
    return r


def rational_power(x: float, y: float) -> float:
    """Return x**y to 50 digits, rounded once."""
    if x == 0 or (x < 1 and y == math.inf):
        return 0.0
    with decimal.localcontext(decimal.Context(prec=50)):
        return float((decimal.Decimal(y) * decimal.Decimal(x).ln()).exp())


def larger(a: Any, b: Any) -> Any:
    """Return the larger number, or NaN where either is NaN. As in the kernels, of two zeros `b` is returned."""
    return np.where((a > b) | (a != a), a, b)


def smaller(a: Any, b: Any) -> Any:
    """Return the smaller number, or NaN where either is NaN."""
    return np.where((a < b) | (a != a), a, b)


def limits(bounds: Any) -> tuple[float, float]:
    """Return lower and upper bound; a side that is None has none."""
    low, high = bounds
    return -math.inf if low is None else float(low) + 0.0, math.inf if high is None else float(high) + 0.0


def with_sign_of(x: Any, y: Any) -> Any:
    """Return sign(x)*y by selection: y, -y, +0 for both zeros, or NaN."""
    return np.where(x > 0, y, np.where(x < 0, -y, x + x.dtype.type(0)))


def reduced(x: Any) -> float:
    """
    Return the sum of a float64 array, added in an order that depends on its size alone.

    Blocks of 1024 elements are added in 32 lanes, and the lanes are folded by halves to one number. The sums of the
    blocks are added in the same way, until one is left.
    """
    while True:
        blocks = -(-x.size // 1024)
        rows = np.zeros(blocks * 1024)
        rows[: x.size] = x
        lanes = np.zeros((blocks, 32))
        for row in range(32):
            lanes = lanes + rows.reshape(blocks, 32, 32)[:, row]
        for half in (16, 8, 4, 2, 1):
            lanes = lanes[:, :half] + lanes[:, half : 2 * half]
        x = lanes[:, 0]
        if x.size <= 1:
            return float(x.sum())


def has_average(p: Any) -> bool:
    """Return whether something among the parameters is an array that can be averaged, and not one of integers, say."""
    return isinstance(p, np.ndarray) and p.dtype.kind not in "biuO"


class SquareSum(NamedTuple):
    """The sum of the squares of x / unit. The unit is 2^600 where squares of finite numbers overflow, otherwise 1."""

    sum: float = 0.0
    unit: float = 1.0


def sum_of_squares(g: Any) -> SquareSum:
    """Return the sum of the squares of a gradient, in float64."""
    with float_mode(g.dtype):
        x = widened(g.reshape(-1)).astype(np.float64)
        total = SquareSum(reduced(x * x))
        if total.sum == math.inf and np.isfinite(x).all():
            x = x * 2.0**-600
            total = SquareSum(reduced(x * x), 2.0**600)
        return total


@dataclass(frozen=True)
class Result:
    """What a step found out: norm of gradients, whether it was skipped, key of a bad gradient, norm of updates."""

    grad_norm: float | None = None
    skipped: bool = False
    nonfinite: Hashable = None
    update_norm: float | None = None


@dataclass(eq=False, kw_only=True)
class Optimizer:
    """What surrounds every rule."""

    grad_scale: Scheduled = 1.0
    clip_value: Scheduled | None = None
    clip_norm: Scheduled | None = None
    clip_global_norm: Scheduled | None = None
    maximize: bool = False
    l1: Scheduled = 0.0
    weight_decay: Scheduled = 0.0
    decoupled: bool = False
    bounds: tuple[float | None, float | None] | None = None
    ema: Any = None  # an argument is the decay, which is kept as ema_decay; the attribute holds the averages by key
    zero_grad: bool = False
    frozen: bool = False
    skip_nonfinite: bool = False
    measure: str = "needed"
    state_dtype: str = "float32"
    master_weights: Any = False
    rounding: str = "nearest"
    seed: int = 0
    overrides: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state: dict[Hashable, State] = {}
        self.memory: dict[Hashable, Memory] = {}
        self.t: dict[Hashable, int] = {}
        self.ema_decay, self.ema = self.ema, {}

    # Methods that the class of a rule replaces. It also adds `elem`, which takes scalars, a gradient and the states by
    # name, writes the new states, and returns what is subtracted from the parameter.

    def states(self) -> str | tuple[str, ...]:
        """Return the names of the states: letters of one string, or a tuple."""
        return ""

    def initial(self, name: str) -> float:
        """Return the number that the state `name` starts at."""
        del name
        return 0.0

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        """
        Return the scalars of update number t.

        `memory` holds the numbers that the rule has stored in it in earlier updates; in update 1 it is empty.
        """
        raise NotImplementedError

    # The step.

    def step(self, params: Any, grads: Any, *, grad_scale: float = 1.0) -> Result:
        """Update parameters in place, once; a gradient that is None or missing leaves its parameter alone."""
        self.params = params = items(params)  # which functions in overrides are asked of
        found, grad_scale = items(grads), float(grad_scale)
        given = {key: found[key] for key in params if found.get(key) is not None and not self.of(key).frozen}
        grads = {key: Optimizer.computed(g, params[key]) for key, g in given.items()}
        h = {key: self.at(key) for key in grads}
        sums, norm = dict.fromkeys(grads, SquareSum()), None
        if self.skip_nonfinite or any(self.of(key).clips_by_norm() for key in params):
            sums = {key: sum_of_squares(g) for key, g in grads.items()}
            norm = Optimizer.norm(h, grad_scale, sums)
        nonfinite = [key for key, g in grads.items() if self.skip_nonfinite and not np.isfinite(g).all()]
        squares: list[float] = []  # of what is subtracted from each parameter, their sum
        if not nonfinite:
            for key, g in grads.items():
                u = self.step_one(key, params[key], g, h[key], Optimizer.factor(h[key], grad_scale, sums[key], norm))
                if self.measure == "update":
                    with float_mode(u.dtype):
                        x = u.reshape(-1).astype(np.float64)
                        squares.append(reduced(x * x))
            for key, p in params.items():
                if key not in grads and self.of(key).ema_decay is not None and has_average(p):
                    self.average(key, p, self.at(key))
        for key, g in given.items():
            if h[key].zero_grad:
                g[...] = 0
        update_norm = math.sqrt(reduced(np.array(squares))) if self.measure == "update" else None
        return Result(norm, bool(nonfinite), nonfinite[0] if nonfinite else None, update_norm)

    @staticmethod
    def computed(g: Any, p: Any) -> Any:
        """Return a gradient in the order of the parameter's memory, rounded once to the type of the computation."""
        with float_mode(compute_type(p)):
            return in_memory_order(g, p).astype(compute_type(p))

    def clips_by_norm(self) -> bool:
        """Return whether the norm of a gradient, or of all gradients together, is limited."""
        return self.clip_norm is not None or self.clip_global_norm is not None

    @staticmethod
    def norm(h: dict[Hashable, Any], grad_scale: float, sums: dict[Hashable, SquareSum]) -> float:
        """
        Return the norm of all gradients, each times its factor; `sums` are their sums of squares, in order.

        Factors are divided by the largest of them, so that their squares stay in the range of float64.
        """
        with float_mode(np.float64):
            largest = max((abs(each.grad_scale) for each in h.values()), default=0.0)
            weights = {key: each.grad_scale / largest if largest else 1.0 for key, each in h.items()}
            for unit in (1.0, 2.0**600):  # the larger unit is for sums that overflow
                ratios = {key: sums[key].unit / unit for key in h}
                shares = [sums[key].sum * (weights[key] * weights[key]) * ratios[key] * ratios[key] for key in h]
                total = reduced(np.array(shares))
                if total != math.inf:
                    break
            return math.sqrt(total) * float(abs(largest * grad_scale)) * unit

    @staticmethod
    def factor(h: Any, grad_scale: float, squares: SquareSum, norm: float | None) -> float:
        """Return the factor on a gradient, from the gradient's own sum of squares and the norm of all gradients."""
        scale, coefficient = h.grad_scale * grad_scale, 1.0
        with float_mode(np.float64):
            if h.clip_norm is not None:
                own = math.sqrt(squares.sum) * abs(scale) * squares.unit
                coefficient = h.clip_norm / float(larger(own, h.clip_norm))
            if h.clip_global_norm is not None and norm is not None:
                limit = min(h.clip_global_norm, sys.float_info.max)  # an infinite one clips nothing
                coefficient = limit / max(norm, limit) if math.isfinite(norm) else math.nan
            return float(scale * coefficient)

    def step_one(self, key: Hashable, p: Any, g: Any, h: Any, factor: float) -> Any:
        """
        Update one parameter with the hyperparameters `h` and the factor `factor` on the gradient.

        Returned is what was subtracted from the parameter.
        """
        T = compute_type(p)
        made = self.made(key, p, h, T)
        like, p, s = p, in_memory_order(p, p), {name: in_memory_order(array, p) for name, array in made.items()}
        self.t[key] = t = self.t.get(key, 0) + 1
        noise = Noise(h.seed, t, key) if h.rounding == "stochastic" else None

        with float_mode(np.float64):
            scalars = h.host(h.lr, t, self.memory.setdefault(key, {}))
            k = SimpleNamespace(**{name: T(value) for name, value in scalars.items()})
            gs, wd, l1, dec = T(factor), T(h.weight_decay), T(h.l1), T(h.lr * h.weight_decay)
            decays = h.weight_decay != 0  # in the mode of float32, a subnormal float64 would compare equal to 0

        with float_mode(T):
            x, wide = unrounded(p, s), {name: widened(s[name]) for name in h.names}
            if gs != 1:
                g = g * gs
            if h.maximize:
                g = -g
            if h.clip_value is not None:
                cv = T(h.clip_value)
                g = smaller(larger(g, -cv), cv)
            if decays and not h.decoupled:
                g = g + wd * x
            if h.l1 != 0:
                g = g + with_sign_of(x, l1)
            h.param = x  # which a rule may look at
            u = h.elem(k, g, **wide)
            if decays and h.decoupled:
                u = u + dec * x
            x = x - u
            if h.bounds is not None:
                low, high = (T(side) * T(1) for side in limits(h.bounds))  # the product flushes a subnormal number
                x = smaller(larger(x, low), high)
            for array, name in zip((2, 3, 4, 6), h.names, strict=False):  # array number 5 is the average
                s[name][...] = stored(wide[name], s[name].dtype, noise, array)
            if h.ema_decay is not None:
                self.follow(key, x, like, h, noise)
            if "remainder" in s:
                p[...], s["remainder"][...] = split(x, p.dtype)
            elif "master" in s:
                p[...], s["master"][...] = rounded(x, p.dtype), x
            else:
                p[...] = stored(x, p.dtype, noise, 0)
        return u

    def average(self, key: Hashable, p: Any, h: Any) -> None:
        """Let the average of a parameter without a gradient follow it; subnormal float32 numbers count as zero."""
        T = compute_type(p)
        noise = Noise(h.seed, self.t.get(key, 0), key) if h.rounding == "stochastic" else None
        s = {name: in_memory_order(array, p) for name, array in self.state.get(key, {}).items()}
        with float_mode(T):
            x = unrounded(in_memory_order(p, p), s)
            self.follow(key, np.where(x == 0, np.copysign(T(0), x), x), p, h, noise)

    def follow(self, key: Hashable, x: Any, p: Any, h: Any, noise: Noise | None) -> None:
        """Let the average of a parameter p follow its value x; the first time, the average is x."""
        d, d1 = x.dtype.type(h.ema_decay), x.dtype.type(1 - h.ema_decay)
        begins = key not in self.ema
        e = in_memory_order(self.ema.setdefault(key, made_like(p, self.dtype(key, p, h))), p)
        e[...] = stored(x if begins else d * widened(e) + d1 * x, e.dtype, noise, 5)

    def dtype(self, key: Hashable, p: Any, h: Any) -> Any:
        """Return the dtype of states and average: that of an existing one, otherwise that of the options."""
        s = self.state.get(key, {})
        existing = [array for array in (*(s.get(name) for name in h.names), self.ema.get(key)) if array is not None]
        half = p.dtype.itemsize == 2
        return (
            existing[0].dtype if existing else np.dtype(np.float32) if half and h.state_dtype == "float32" else p.dtype
        )

    def made(self, key: Hashable, p: Any, h: Any, T: Any) -> State:
        """
        Return the state of a parameter, after making missing arrays.

        A new master is zeros: `unrounded` takes the parameter wherever the parameter is not the rounded master.
        """
        half = p.dtype.itemsize == 2
        s, D = self.state.setdefault(key, {}), self.dtype(key, p, h)
        for name in h.names:
            with np.errstate(over="ignore"):
                s.setdefault(name, made_like(p, D, T(h.initial(name))))
        master = {True: "master", "split": "remainder"}.get(h.master_weights) if half else None
        for other in {"master", "remainder"} - {master}:
            s.pop(other, None)
        if master:
            s.setdefault(master, made_like(p, np.float32 if master == "master" else np.uint16))
        return s

    # Hyperparameters.

    def at(self, key: Hashable) -> Any:
        """Return the hyperparameters of one parameter in this update, as numbers: schedules have been asked."""
        h, done = self.of(key), self.t.get(key, 0)
        h.names = h.states()
        for name, value in vars(h).items():
            if callable(value):
                setattr(h, name, float(value(done)) + 0.0)
        return h

    def of(self, key: Hashable) -> Any:
        """Return the hyperparameters of one parameter: a pattern or function overrides the optimizer, the key both."""
        h = copy.copy(self)
        vars(h)["ema"] = self.ema_decay  # overrides use the name of the argument
        exact: dict[str, Any] = {}
        for pattern, values in self.overrides.items():
            condition = getattr(pattern, "condition", pattern)  # a function or key that was wrapped to be an override
            if condition == key:
                exact |= values
            elif condition is not pattern and callable(condition):
                vars(h).update(values if condition(key, self.params[key]) else {})
            elif isinstance(condition, str) and isinstance(key, str) and fnmatchcase(key, condition):
                vars(h).update(values)
        vars(h).update(exact)
        for name, value in vars(h).items():
            if isinstance(value, Real) and not isinstance(value, bool):
                setattr(h, name, float(value) + 0.0)  # a Python float, and -0.0 is 0.0
        h.ema_decay = h.ema
        return h
