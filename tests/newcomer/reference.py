"""The reference class of Drift, as it is added to `fusedstep/reference/optimizers.py`."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .optimizer import Optimizer, Scalars, Scheduled, State, larger, power


@dataclass(eq=False)
class Drift(Optimizer):
    """An optimizer of the tests alone."""

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    eps: Scheduled = 1e-8

    def states(self) -> str:
        return "mv"

    def host(self, lr: float, t: int, s: State) -> Scalars:
        step = lr / (1 - power(self.beta1, t))
        return {"beta1": self.beta1, "o1": 1 - self.beta1, "beta2": self.beta2, "step": step, "eps": self.eps}

    def elem(self, k: Any, g: Any, m: Any, v: Any) -> Any:
        m[...] = k.beta1 * m + k.o1 * g
        v[...] = larger(k.beta2 * v, np.abs(g))
        return k.step * m / (v + k.eps)
