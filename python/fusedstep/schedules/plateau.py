"""The schedule with a memory: it falls when a metric has stopped improving."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from fusedstep.core.hyperparameters import integer

from .schedule import Schedule, number, real

__all__ = ["dictionary", "expect_keys", "plateau"]


@dataclass(frozen=True)
class plateau(Schedule):
    r"""
    Fall by a factor whenever a metric has stopped improving: PyTorch's `ReduceLROnPlateau`.

    .. math:: lr \leftarrow \max(lr \cdot factor, min\_lr) \quad
        \text{if more than } patience \text{ observations in a row were not better than the best}

    Better means ``x < best * (1 - threshold)``, with "abs" ``x < best - threshold``; when maximizing
    ``x > best * (1 + threshold)`` or ``x > best + threshold``. A fall by 1e-8 or less is left out. Keras'
    `ReduceLROnPlateau` with patience P >= 1 and cooldown C is this one with ``patience=P - 1``,
    ``cooldown=max(C - 1, 0)``, ``threshold_mode="abs"``. The memory, that is the attributes below, is pickled and
    copied, but takes no part in comparisons.

    Parameters
    ----------
    lr : float
        The first value, at least 0.
    factor : float
        Factor of each fall, at least 0 and below 1.
    patience : int
        Observations in a row that may be no better than the best one.
    threshold : float
        How much better is better, at least 0, and below 1 where the best is multiplied by the difference.
    threshold_mode : {"rel", "abs"}
        Whether the threshold is a share of the best.
    mode : {"min", "max"}
        Whether low or high metrics are good.
    cooldown : int
        Observations after each fall that do not count as bad.
    min_lr : float
        The lowest value, at least 0.

    Attributes
    ----------
    rate : float
        The value in force.
    best : float
        The best metric so far; infinite before the first.
    bad : int
        Observations in a row that were no better.
    cooldown_left : int
        Observations that will not count as bad.
    """

    lr: float
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    mode: Literal["min", "max"] = "min"
    cooldown: int = 0
    min_lr: float = 0.0
    rate: float = field(init=False, repr=False, compare=False)
    best: float = field(init=False, repr=False, compare=False)
    bad: int = field(init=False, repr=False, compare=False)
    cooldown_left: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        below_one = ["factor", "threshold"] if (self.mode, self.threshold_mode) == ("min", "rel") else ["factor"]
        for name in below_one:
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 0 <= {name} < 1")
        self._remember(self.lr, math.inf if self.mode == "min" else -math.inf, 0, 0)

    def _remember(self, rate: float, best: float, bad: int, cooldown_left: int) -> None:
        vars(self).update(rate=rate, best=best, bad=bad, cooldown_left=cooldown_left)

    def _memory(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if not f.init}

    def _recall(self, memory: Any) -> None:
        """Take over what `_memory` returned, after checking it."""
        memory = dictionary("memory", memory)
        expect_keys("memory", memory, list(self._memory()))
        best = real("best", memory["best"])
        if math.isnan(best):
            raise ValueError("best is nan, expected a number")
        bad, cooldown_left = (integer(name, memory[name], 0) for name in ("bad", "cooldown_left"))
        self._remember(number("rate", memory["rate"]), best, bad, cooldown_left)

    def _at(self, done: int) -> float:
        del done
        return self.rate

    def observe(self, x: float) -> None:
        """
        Take a metric, usually once per epoch, and fall if the metric has stopped improving.

        Parameters
        ----------
        x : float
            The metric. A NaN is no better than any number.

        Raises
        ------
        TypeError
            If `x` is not a number.
        """
        x = real("x", x)
        rate, best, bad, cooldown_left = self.rate, self.best, self.bad + 1, self.cooldown_left
        if self._is_better(x):
            best, bad = x, 0
        if cooldown_left > 0:
            cooldown_left, bad = cooldown_left - 1, 0
        if bad > self.patience:
            lower = max(rate * self.factor, self.min_lr)
            rate = lower if rate - lower > 1e-8 else rate
            cooldown_left, bad = self.cooldown, 0
        self._remember(rate, best, bad, cooldown_left)

    def _is_better(self, x: float) -> bool:
        relative = self.threshold_mode == "rel"
        if self.mode == "min":
            return x < (self.best * (1 - self.threshold) if relative else self.best - self.threshold)
        return x > (self.best * (1 + self.threshold) if relative else self.best + self.threshold)


def dictionary(name: str, value: Any) -> dict[str, Any]:
    """Return a copy of a mapping as a dictionary, or refuse any other value."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {value!r}, expected a dictionary")
    return dict(value)


def expect_keys(name: str, found: Mapping[str, Any], expected: list[str]) -> None:
    """Refuse a mapping that lacks an expected key or has any other."""
    if set(found) != set(expected):
        raise ValueError(f"{name} has {', '.join(map(str, found)) or 'nothing'}, expected {', '.join(expected)}")
