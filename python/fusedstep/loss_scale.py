"""The scale of a loss, by which small gradients in half precision stay representable."""

import math
from dataclasses import dataclass

from fusedstep.core.hyperparameters import integer
from fusedstep.core.result import Result
from fusedstep.schedules.schedule import real

__all__ = ["LossScale"]


@dataclass
class LossScale:
    """
    Scale a loss, and find the scale: as large as gradients stay finite. The rule is that of PyTorch's `GradScaler`.

    After a step that was skipped, because a gradient was not finite, the scale is multiplied by `backoff`; after
    `interval` steps in a row that were not, by `growth`. Powers of two change no bit of a gradient but its exponent.

    Parameters
    ----------
    scale : float
        The factor on the loss, above 0.
    growth, backoff : float
        Factors by which the scale grows, above 1, and falls, above 0 and below 1.
    interval : int
        Steps in a row after which the scale grows, at least 1.
    good : int
        Steps in a row that were not skipped, so far.
    skipped : int
        Steps that were skipped, so far.

    Raises
    ------
    TypeError
        If an argument is no number, or no integer.
    ValueError
        If an argument is out of range.

    Notes
    -----
    All arguments are attributes, and all that there is to save: ``extra=dataclasses.asdict(scale)`` puts them into a
    checkpoint, and ``LossScale(**extra)`` is the same again. Instances can be copied and pickled.

    Examples
    --------
    >>> import numpy as np, fusedstep as fs
    >>> p, opt, scale = np.ones(2, np.float16), fs.SGD(lr=0.5, skip_nonfinite=True), fs.LossScale(2.0**17)
    >>> for _ in range(3):
    ...     with np.errstate(over="ignore"):
    ...         g = p * np.float32(scale.scale)  # the gradient of scale * p**2 / 2
    ...         result = opt.step(p, g.astype(np.float16), grad_scale=scale.grad_scale)
    ...     scale.update(result)
    >>> scale.scale, scale.skipped, p.tolist()
    (32768.0, 2, [0.5, 0.5])
    """

    scale: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000
    good: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("scale", 0, math.inf), ("growth", 1, math.inf), ("backoff", 0, 1)):
            value = real(name, getattr(self, name))
            if not low < value < high:
                raise ValueError(f"{name} is {value!r}, expected {low} < {name} < {high}")
            setattr(self, name, value)
        for name, least in (("interval", 1), ("good", 0), ("skipped", 0)):
            setattr(self, name, integer(name, getattr(self, name), least))

    @property
    def grad_scale(self) -> float:
        """The argument of `step` that undoes the scale: 1 over it."""
        return 1 / self.scale

    def update(self, result: Result) -> None:
        """
        Take the result of a step, and change the scale if need be. On a GPU, this waits for the step.

        Parameters
        ----------
        result : Result
            What `step` returned.

        Raises
        ------
        ValueError
            If nobody looked for gradients that are not finite.
        """
        if result.skipped:
            self.skipped, self.good = self.skipped + 1, 0
            self.scale = max(self.scale * self.backoff, 2.0**-126)  # no scale whose inverse overflows
        elif result.grad_norm is None:
            raise ValueError("result has no grad_norm, expected that of an optimizer with skip_nonfinite=True")
        else:
            self.good += 1
            if self.good == self.interval:
                self.good = 0
                if self.scale * self.growth < 2.0**128:  # float32 has no larger number
                    self.scale *= self.growth
