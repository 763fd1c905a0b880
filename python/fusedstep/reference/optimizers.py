"""
The rules, each as its paper writes it.

`host` computes the scalars of an update in float64; each is then rounded once to the dtype of the arithmetic. `elem`
computes, for all elements, the new states and the update u, one rounded operation after the other. The parameter
becomes ``p - u``. A rule that needs numbers from one update to the next stores them in `memory`, by name.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .optimizer import Memory, Optimizer, Scalars, Scheduled, larger, power, rational_power, with_sign_of

__all__ = [
    "NAG",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Momentum",
    "Nadam",
    "RAdam",
    "RMSprop",
]


@dataclass(eq=False)
class SGD(Optimizer):
    """Cauchy 1847; Robbins & Monro 1951."""

    lr: Scheduled = 0.01

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        return {"lr": lr}

    def elem(self, k: Any, g: Any) -> Any:
        return k.lr * g


@dataclass(eq=False)
class Momentum(Optimizer):
    """Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013."""

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    dampening: Scheduled = 0.0
    dampen_first: bool = False
    velocity: str = "grad"

    def states(self) -> str:
        return "b"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
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

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    velocity: str = "grad"

    def states(self) -> str:
        return "b"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
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

    lr: Scheduled = 0.01
    eps: Scheduled = 1e-10
    eps_mode: str = "outside"
    initial_accumulator: Scheduled = 0.0

    def states(self) -> str:
        return "a"

    def initial(self, name: str) -> float:
        return float(self.initial_accumulator)

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        ei, eo = (self.eps, 0.0) if self.eps_mode == "inside" else (0.0, self.eps)
        return {"lr": lr, "ei": ei, "eo": eo}

    def elem(self, k: Any, g: Any, a: Any) -> Any:
        a[...] = a + g * g
        return (k.lr * g) / (np.sqrt(a + k.ei) + k.eo)


@dataclass(eq=False)
class RMSprop(Optimizer):
    """Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013."""

    lr: Scheduled = 0.01
    rho: Scheduled = 0.99
    eps: Scheduled = 1e-8
    eps_mode: str = "outside"
    momentum: Scheduled = 0.0
    velocity: str = "grad"
    centered: bool = False
    initial_accumulator: Scheduled = 0.0

    def states(self) -> str:
        return "v" + "m" * self.centered + "b" * bool(self.momentum != 0)

    def initial(self, name: str) -> float:
        return float(self.initial_accumulator) if name == "v" else 0.0

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
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

    lr: Scheduled = 1.0
    rho: Scheduled = 0.9
    eps: Scheduled = 1e-6

    def states(self) -> str:
        return "vx"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        return {"lr": lr, "rho": self.rho, "r1": 1 - self.rho, "e": self.eps}

    def elem(self, k: Any, g: Any, v: Any, x: Any) -> Any:
        v[...] = k.rho * v + k.r1 * (g * g)
        d = np.sqrt((x + k.e) / (v + k.e)) * g
        x[...] = k.rho * x + k.r1 * (d * d)
        return k.lr * d


@dataclass(eq=False)
class Adam(Optimizer):
    """Kingma & Ba 2015, Algorithm 1; amsgrad: Reddi, Kale & Kumar 2018, Algorithm 2."""

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    eps_mode: str = "outside"
    amsgrad: bool = False

    def states(self) -> str:
        return "mvw" if self.amsgrad else "mv"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
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
            w[...] = larger(w + w.dtype.type(0), v)  # the sum flushes a subnormal number
            v = w
        return (k.step * m) / (np.sqrt(v + k.ei) + k.eo)


@dataclass(eq=False)
class AdamW(Adam):
    """Loshchilov & Hutter 2019, Algorithm 2."""

    weight_decay: Scheduled = field(default=0.01, kw_only=True)
    decoupled: bool = field(default=True, init=False)


@dataclass(eq=False)
class Adamax(Optimizer):
    """Kingma & Ba 2015, Algorithm 2."""

    lr: Scheduled = 2e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    eps_mode: str = "max"

    def states(self) -> str:
        return "mw"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
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

    lr: Scheduled = 2e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    schedule_decay: Scheduled = 0.004

    def states(self) -> str:
        return "mv"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        r = rational_power(0.96, self.schedule_decay)
        mu = self.beta1 * (1 - 0.5 * power(r, t))
        mu1 = self.beta1 * (1 - 0.5 * power(r, t + 1))
        P = memory["product"] = mu if t == 1 else memory["product"] * mu  # the product of the mu of all updates so far
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
class RAdam(Optimizer):
    """Liu et al. 2020, Algorithm 2, with the threshold 5 of PyTorch."""

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8

    def states(self) -> str:
        return "mv"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        o1, o2 = 1 - self.beta1, 1 - self.beta2
        c1, b2 = 1 - power(self.beta1, t), power(self.beta2, t)
        rho_inf = 2 / o2 - 1
        rho = rho_inf - 2.0 * t * b2 / (1 - b2)
        k = {"beta1": self.beta1, "o1": o1, "beta2": self.beta2, "o2": o2}
        if rho > 5:
            r = math.sqrt(((rho - 4) * (rho - 2) * rho_inf) / ((rho_inf - 4) * (rho_inf - 2) * rho))
            return k | {"step": lr * r * math.sqrt(1 - b2) / c1, "a": 1.0, "e": self.eps}
        return k | {"step": lr / c1, "a": 0.0, "e": 1.0}

    def elem(self, k: Any, g: Any, m: Any, v: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        v[...] = k.beta2 * v + k.o2 * (g * g)
        deviation = np.where(k.a != 0, np.sqrt(v), 0)
        return (k.step * m) / (deviation + k.e)


@dataclass(eq=False)
class AdaBelief(Optimizer):
    """Zhuang et al. 2020, Algorithm 2, where eps is added to s itself, and again to its corrected root."""

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-16

    def states(self) -> str:
        return "ms"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        c1 = 1 - power(self.beta1, t)
        c2 = math.sqrt(1 - power(self.beta2, t))
        return {
            "beta1": self.beta1,
            "o1": 1 - self.beta1,
            "beta2": self.beta2,
            "o2": 1 - self.beta2,
            "eps": self.eps,
            "step": lr * c2 / c1,
            "eo": self.eps * c2,
        }

    def elem(self, k: Any, g: Any, m: Any, s: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        d = g - m
        s[...] = k.beta2 * s + k.o2 * (d * d) + k.eps
        return (k.step * m) / (np.sqrt(s) + k.eo)


@dataclass(eq=False)
class Lion(Optimizer):
    """Chen et al. 2023, where weight decay is decoupled."""

    lr: Scheduled = 1e-4
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    decoupled: bool = field(default=True, init=False)

    def states(self) -> str:
        return "m"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        return {"lr": lr, "beta1": self.beta1, "o1": 1 - self.beta1, "beta2": self.beta2, "o2": 1 - self.beta2}

    def elem(self, k: Any, g: Any, m: Any) -> Any:
        c = k.beta1 * m + k.o1 * g
        m[...] = k.beta2 * m + k.o2 * g
        return with_sign_of(c, k.lr)
