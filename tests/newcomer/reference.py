"""The reference class of Drift, as it is added to `fusedstep/reference/optimizers.py`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .optimizer import Memory, Optimizer, Scalars, Scheduled, larger


@dataclass(eq=False)
class Drift(Optimizer):
    """An optimizer of the tests alone."""

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    rho: Scheduled = 0.95
    momentum: Scheduled = 0.5
    eps: Scheduled = 1e-8
    eps_mode: str = "outside"
    share: Scheduled = 0.25
    floor: Scheduled = 0.0

    def states(self) -> str:
        return "mvwx"

    def host(self, lr: float, t: int, memory: Memory) -> Scalars:
        product = memory["product"] = self.beta1 if t == 1 else memory["product"] * self.beta1
        weight = memory["weight"] = 1.0 if t == 1 else self.momentum * memory["weight"] + 1
        return {
            "beta1": self.beta1,
            "o1": 1 - self.beta1,
            "beta2": self.beta2,
            "o2": 1 - self.beta2,
            "rho": self.rho,
            "mu": self.momentum,
            "cm": lr * (1 - self.share) / (1 - product),
            "cx": lr * self.share / weight,
            "ei": self.eps if self.eps_mode == "inside" else 0.0,
            "floor": self.floor + (self.eps if self.eps_mode == "outside" else 0.0),
        }

    def elem(self, k: Any, g: Any, m: Any, v: Any, w: Any, x: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        v[...] = k.beta2 * v + k.o2 * (g * g)
        w[...] = larger(k.rho * w, np.abs(g) + k.floor)
        x[...] = k.mu * x + m
        return (k.cm * m + k.cx * x) / larger(np.sqrt(v + k.ei), w)
