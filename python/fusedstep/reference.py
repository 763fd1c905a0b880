"""
The specification: every optimizer in plain NumPy, as its paper writes it, in the order in which it is rounded.

`host` computes the scalars of an update in float64; each is then rounded once to the dtype of the parameter. `elem`
computes, for all elements, the update u and the new states, one rounded operation after the other; the parameter
becomes ``p - u``. The classes take the same arguments as those of `fusedstep` and share nothing with them. They do not
check what they are given.

float32 arithmetic flushes subnormal numbers to zero, as the kernels' does; float64 is full IEEE.
"""

import copy
import ctypes
import decimal
import math
import platform
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Real
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

__all__ = [
    "NAG",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Momentum",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "float_mode",
]

Rate = float | Callable[[int], float]
State = dict[str, Any]
Scalars = dict[str, float]

# Where the C library keeps the mode inside fenv_t, and the bits in it that flush subnormals.
_MODE = {
    ("Linux", "x86_64"): (28, 0x8040),
    ("Darwin", "x86_64"): (4, 0x8040),
    ("Linux", "aarch64"): (0, 1 << 24),
    ("Darwin", "arm64"): (8, 1 << 24),
}


@contextmanager
def float_mode(dtype: Any) -> Iterator[None]:
    """Compute as the kernels do for this dtype: float32 flushes subnormals, float64 does not."""
    offset, bits = _MODE[platform.system(), platform.machine()]
    libm = ctypes.CDLL(None)
    before = (ctypes.c_char * 64)()
    libm.fegetenv(before)
    during = (ctypes.c_char * 64).from_buffer_copy(before)
    word = ctypes.c_uint32.from_buffer(during, offset)
    word.value = word.value | bits if np.dtype(dtype) == np.float32 else word.value & ~bits
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
    """Return the larger, or NaN where either is; written as a selection, for the sake of signed zeros."""
    return np.where((a > b) | (a != a), a, b)


def with_sign_of(x: Any, y: Any) -> Any:
    """Return sign(x)*y by selection: y, -y, +0 for both zeros, or NaN."""
    return np.where(x > 0, y, np.where(x < 0, -y, x + x.dtype.type(0)))


def items(arrays: Any) -> dict[Hashable, Any]:
    """Return one array, a sequence or a mapping of arrays by key."""
    if isinstance(arrays, Mapping):
        return dict(arrays)
    return dict(enumerate(arrays)) if isinstance(arrays, (list, tuple)) else {0: arrays}


@dataclass(eq=False, kw_only=True)
class Optimizer:
    """What surrounds every rule."""

    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False
    overrides: Mapping[Hashable, Mapping[str, Any]] = field(default_factory=dict)

    elem: ClassVar[Callable[..., Any]]  # (k, g, states) -> the update of all elements; writes the states

    def __post_init__(self) -> None:
        self.state: dict[Hashable, State] = {}
        self.t: dict[Hashable, int] = {}

    def step(self, params: Any, grads: Any) -> None:
        """Update parameters in place, once; a gradient that is None or missing leaves its parameter alone."""
        grads = items(grads)
        for key, p in items(params).items():
            if grads.get(key) is not None:
                self.step_one(key, p, grads[key])

    def step_one(self, key: Hashable, p: Any, g: Any) -> None:
        """Update one parameter."""
        h = self.of(key)
        T = p.dtype.type
        names = h.states()
        s = self.state.setdefault(key, {})
        for name in names:
            with np.errstate(over="ignore"):
                s.setdefault(name, np.full(p.shape, h.initial(name), p.dtype))
        done = self.t.get(key, 0)
        lr = float(h.lr(done) if callable(h.lr) else h.lr) + 0.0
        self.t[key] = t = done + 1

        with float_mode(np.float64):
            k = SimpleNamespace(**{name: T(value) for name, value in h.host(lr, t, s).items()})
            wd, dec = T(h.weight_decay), T(lr * h.weight_decay)
            l2, decoupled = h.weight_decay != 0 and not h.decoupled, h.weight_decay != 0 and h.decoupled

        with float_mode(p.dtype):
            if h.maximize:
                g = -g
            if l2:
                g = g + wd * p
            u = h.elem(k, g, **{name: s[name] for name in names})
            if decoupled:
                u = u + dec * p
            p[...] = p - u

    def of(self, key: Hashable) -> Any:
        """Return the hyperparameters of one parameter: patterns first, then the exact key."""
        h = copy.copy(self)
        for pattern, values in self.overrides.items():
            if pattern != key and isinstance(pattern, str) and isinstance(key, str) and fnmatchcase(key, pattern):
                vars(h).update(values)
        vars(h).update(self.overrides.get(key, {}))
        for name, value in vars(h).items():
            if isinstance(value, Real) and not isinstance(value, bool):
                setattr(h, name, float(value) + 0.0)  # a Python float, and -0.0 is 0.0
        return h

    def states(self) -> str:
        """Return the names of the states, one letter each."""
        return ""

    def initial(self, name: str) -> float:
        """Return where the state `name` starts."""
        del name
        return 0.0

    def host(self, lr: float, t: int, s: State) -> Scalars:
        """Return the scalars of update number t."""
        raise NotImplementedError


@dataclass(eq=False)
class SGD(Optimizer):
    """Cauchy 1847; Robbins & Monro 1951."""

    lr: Rate = 0.01

    def host(self, lr: float, t: int, s: State) -> Scalars:
        return {"lr": lr}

    def elem(self, k: Any, g: Any) -> Any:
        return k.lr * g


@dataclass(eq=False)
class Momentum(Optimizer):
    """Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013."""

    lr: Rate = 0.01
    momentum: float = 0.9
    dampening: float = 0.0
    dampen_first: bool = False
    velocity: str = "grad"

    def states(self) -> str:
        return "b"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        k = 1.0 if t == 1 and not self.dampen_first else 1 - self.dampening
        if self.velocity == "step":
            return {"mu": self.momentum, "a": k * lr, "s": 1.0}
        return {"mu": self.momentum, "a": k, "s": lr}

    def elem(self, k: Any, g: Any, b: Any) -> Any:
        b[...] = k.mu * b + k.a * g
        return k.s * b


@dataclass(eq=False)
class NAG(Optimizer):
    """Nesterov 1983; Bengio, Boulanger-Lewandowski & Pascanu 2013."""

    lr: Rate = 0.01
    momentum: float = 0.9
    velocity: str = "grad"

    def states(self) -> str:
        return "b"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        if self.velocity == "step":
            return {"mu": self.momentum, "n": lr, "s": 1.0}
        return {"mu": self.momentum, "n": 1.0, "s": lr}

    def elem(self, k: Any, g: Any, b: Any) -> Any:
        q = k.n * g
        b[...] = k.mu * b + q
        return k.s * (q + k.mu * b)


@dataclass(eq=False)
class Adagrad(Optimizer):
    """Duchi, Hazan & Singer 2011, diagonal form."""

    lr: Rate = 0.01
    eps: float = 1e-10
    eps_mode: str = "outside"
    initial_accumulator: float = 0.0

    def states(self) -> str:
        return "a"

    def initial(self, name: str) -> float:
        return self.initial_accumulator

    def host(self, lr: float, t: int, s: State) -> Scalars:
        ei, eo = (self.eps, 0.0) if self.eps_mode == "inside" else (0.0, self.eps)
        return {"lr": lr, "ei": ei, "eo": eo}

    def elem(self, k: Any, g: Any, a: Any) -> Any:
        a[...] = a + g * g
        return (k.lr * g) / (np.sqrt(a + k.ei) + k.eo)


@dataclass(eq=False)
class RMSprop(Optimizer):
    """Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013."""

    lr: Rate = 0.01
    rho: float = 0.99
    eps: float = 1e-8
    eps_mode: str = "outside"
    momentum: float = 0.0
    velocity: str = "grad"
    centered: bool = False
    initial_accumulator: float = 0.0

    def states(self) -> str:
        return "v" + "m" * self.centered + "b" * (self.momentum != 0)

    def initial(self, name: str) -> float:
        return self.initial_accumulator if name == "v" else 0.0

    def host(self, lr: float, t: int, s: State) -> Scalars:
        ei, eo = (self.eps, 0.0) if self.eps_mode == "inside" else (0.0, self.eps)
        a, size = (lr, 1.0) if self.velocity == "step" else (1.0, lr)
        return {
            "rho": self.rho,
            "r1": 1 - self.rho,
            "ei": ei,
            "eo": eo,
            "lr": lr,
            "mu": self.momentum,
            "a": a,
            "s": size,
        }

    def elem(self, k: Any, g: Any, v: Any, m: Any = None, b: Any = None) -> Any:
        v[...] = k.rho * v + k.r1 * (g * g)
        d = v
        if m is not None:
            m[...] = k.rho * m + k.r1 * g
            d = v - m * m
            d = np.where(d < 0, d.dtype.type(0), d)
        den = np.sqrt(d + k.ei) + k.eo
        if b is None:
            return (k.lr * g) / den
        b[...] = k.mu * b + (k.a * g) / den
        return k.s * b


@dataclass(eq=False)
class Adadelta(Optimizer):
    """Zeiler 2012, Algorithm 1, where lr = 1."""

    lr: Rate = 1.0
    rho: float = 0.9
    eps: float = 1e-6

    def states(self) -> str:
        return "vx"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        return {"lr": lr, "rho": self.rho, "r1": 1 - self.rho, "e": self.eps}

    def elem(self, k: Any, g: Any, v: Any, x: Any) -> Any:
        v[...] = k.rho * v + k.r1 * (g * g)
        d = np.sqrt((x + k.e) / (v + k.e)) * g
        x[...] = k.rho * x + k.r1 * (d * d)
        return k.lr * d


@dataclass(eq=False)
class Adam(Optimizer):
    """Kingma & Ba 2015, Algorithm 1; amsgrad: Reddi, Kale & Kumar 2018, Algorithm 2."""

    lr: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_mode: str = "outside"
    amsgrad: bool = False

    def states(self) -> str:
        return "mvw" if self.amsgrad else "mv"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        c1 = 1 - power(self.beta1, t)
        c2 = math.sqrt(1 - power(self.beta2, t))
        ei, eo = {
            "outside": (0.0, self.eps * c2),
            "hat": (0.0, self.eps),
            "inside": (self.eps * c2 * c2, 0.0),
        }[self.eps_mode]
        o1, o2 = 1 - self.beta1, 1 - self.beta2
        return {"beta1": self.beta1, "o1": o1, "beta2": self.beta2, "o2": o2, "step": lr * c2 / c1, "ei": ei, "eo": eo}

    def elem(self, k: Any, g: Any, m: Any, v: Any, w: Any = None) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        v[...] = k.beta2 * v + k.o2 * (g * g)
        if w is not None:
            w[...] = larger(w, v)
            v = w
        return (k.step * m) / (np.sqrt(v + k.ei) + k.eo)


@dataclass(eq=False)
class AdamW(Adam):
    """Loshchilov & Hutter 2019, Algorithm 2."""

    weight_decay: float = field(default=0.01, kw_only=True)
    decoupled: bool = field(default=True, init=False)


@dataclass(eq=False)
class Adamax(Optimizer):
    """Kingma & Ba 2015, Algorithm 2."""

    lr: Rate = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    eps_mode: str = "max"

    def states(self) -> str:
        return "mw"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        em, eo = (self.eps, 0.0) if self.eps_mode == "max" else (0.0, self.eps)
        step = lr / (1 - power(self.beta1, t))
        return {"beta1": self.beta1, "o1": 1 - self.beta1, "beta2": self.beta2, "step": step, "em": em, "eo": eo}

    def elem(self, k: Any, g: Any, m: Any, w: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        w[...] = larger(k.beta2 * w, np.abs(g) + k.em)
        return (k.step * m) / (w + k.eo)


@dataclass(eq=False)
class Nadam(Optimizer):
    """Dozat 2016, with its momentum schedule."""

    lr: Rate = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    schedule_decay: float = 0.004

    def states(self) -> str:
        return "mv"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        r = rational_power(0.96, self.schedule_decay)
        mu = self.beta1 * (1 - 0.5 * power(r, t))
        mu1 = self.beta1 * (1 - 0.5 * power(r, t + 1))
        P = s["P"] = s.get("P", 1.0) * mu  # the product of all mu so far
        c2 = math.sqrt(1 - power(self.beta2, t))
        return {
            "beta1": self.beta1,
            "o1": 1 - self.beta1,
            "beta2": self.beta2,
            "o2": 1 - self.beta2,
            "cm": lr * mu1 / (1 - P * mu1) * c2,
            "cg": lr * (1 - mu) / (1 - P) * c2,
            "eo": self.eps * c2,
        }

    def elem(self, k: Any, g: Any, m: Any, v: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        v[...] = k.beta2 * v + k.o2 * (g * g)
        return (k.cm * m + k.cg * g) / (np.sqrt(v) + k.eo)


@dataclass(eq=False)
class Lion(Optimizer):
    """Chen et al. 2023; weight decay is always decoupled."""

    lr: Rate = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    decoupled: bool = field(default=True, init=False)

    def states(self) -> str:
        return "m"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        return {"lr": lr, "beta1": self.beta1, "o1": 1 - self.beta1, "beta2": self.beta2, "o2": 1 - self.beta2}

    def elem(self, k: Any, g: Any, m: Any) -> Any:
        c = k.beta1 * m + k.o1 * g
        m[...] = k.beta2 * m + k.o2 * g
        return with_sign_of(c, k.lr)
