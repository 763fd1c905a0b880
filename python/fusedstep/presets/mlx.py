"""
Optimizers of MLX, whose learning rate is always given.

Its Adam, AdamW and Adamax do not correct the bias of their means unless told (``bias_correction=True``), and its Adamax
never does. Without correction, `lr` of what is made is a schedule, `Uncorrected`, that takes the corrections back; who
changes the learning rate later sets another one: ``opt.lr = Uncorrected(0.01)``.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled, check
from fusedstep.schedules import exponential

from .preset import DecoupledOptions, Options, OptionsBesideDecay, absent, presets_of

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
    "RMSprop",
    "Uncorrected",
]

_preset = presets_of("MLX 0.32.4")
_CORRECTION = "bool\n    Whether to correct the bias of the means."


@dataclass(frozen=True)
class Uncorrected:
    r"""
    A schedule with which Adam and Adamax do not correct the bias of their means.

    .. math:: lr \, \frac{1 - \beta_1^t}{\sqrt{1 - \beta_2^t}}

    Parameters
    ----------
    lr : float or callable
        The learning rate without corrections, at least 0; or the weight decay beside such a learning rate, by which it
        is multiplied.
    beta1, beta2 : float
        Those of the optimizer. A beta2 of 0 leaves the second correction alone: Adamax has none.
    inverse : bool
        Whether to divide by the corrections, as the weight decay wants.
    """

    lr: Scheduled
    beta1: float = 0.9
    beta2: float = 0.999
    inverse: bool = False
    _powers: list[exponential] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("lr", "beta1", "beta2"):
            if name != "lr" or not callable(self.lr):
                object.__setattr__(self, name, check(name, getattr(self, name)))
        object.__setattr__(self, "_powers", [exponential(1.0, beta) for beta in (self.beta1, self.beta2)])

    def __call__(self, done: int) -> float:
        """Return the value for the next update after `done` finished ones."""
        lr = self.lr(done) if callable(self.lr) else self.lr
        first, second = (1 - power(done + 1) for power in self._powers)
        return lr * math.sqrt(second) / first if self.inverse else lr * first / math.sqrt(second)


@_preset("mlx.optimizers.SGD")
def SGD(lr: Scheduled, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("mlx.optimizers.SGD(momentum=...)")
def Momentum(
    lr: Scheduled, momentum: Scheduled = 0.9, dampening: Scheduled = 0.0, **options: Unpack[Options]
) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose first gradient is dampened too."""
    return optimizers.Momentum(lr, momentum, dampening, True, "grad", **options)


@_preset("mlx.optimizers.SGD(momentum=..., nesterov=True)")
def NAG(lr: Scheduled, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum."""
    return optimizers.NAG(lr, momentum, "grad", **options)


@_preset("mlx.optimizers.Adagrad")
def Adagrad(lr: Scheduled, eps: Scheduled = 1e-8, **options: Unpack[Options]) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is outside of the root."""
    return optimizers.Adagrad(lr, eps, "outside", **options)


@_preset("mlx.optimizers.RMSprop")
def RMSprop(
    lr: Scheduled, rho: Scheduled = 0.99, eps: Scheduled = 1e-8, **options: Unpack[Options]
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is outside of the root."""
    return optimizers.RMSprop(lr, rho, eps, "outside", **options)


@_preset("mlx.optimizers.AdaDelta")
def Adadelta(
    lr: Scheduled, rho: Scheduled = 0.9, eps: Scheduled = 1e-6, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("mlx.optimizers.Adam", bias_correction=_CORRECTION)
def Adam(
    lr: Scheduled,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: Scheduled = 1e-8,
    bias_correction: bool = False,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam, by default without the corrections of its means."""
    if bias_correction:
        return optimizers.Adam(lr, beta1, beta2, eps, "outside", False, **options)
    return optimizers.Adam(Uncorrected(lr, beta1, beta2), beta1, beta2, eps, "hat", False, **options)


@_preset("mlx.optimizers.AdamW", bias_correction=_CORRECTION)
def AdamW(
    lr: Scheduled,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: Scheduled = 1e-8,
    bias_correction: bool = False,
    weight_decay: Scheduled = 0.01,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.AdamW:
    """Make an AdamW, by default without the corrections of its means."""
    if bias_correction:
        return optimizers.AdamW(lr, beta1, beta2, eps, "outside", False, weight_decay=weight_decay, **options)
    decay = Uncorrected(weight_decay, beta1, beta2, inverse=True)
    return optimizers.AdamW(
        Uncorrected(lr, beta1, beta2), beta1, beta2, eps, "hat", False, weight_decay=decay, **options
    )


@_preset("mlx.optimizers.Adamax")
def Adamax(
    lr: Scheduled, beta1: float = 0.9, beta2: float = 0.999, eps: Scheduled = 1e-8, **options: Unpack[Options]
) -> optimizers.Adamax:
    """Make an Adamax without the correction of its mean, whose eps is added to w in the denominator."""
    return optimizers.Adamax(Uncorrected(lr, beta1, 0.0), beta1, beta2, eps, "outside", **options)


@_preset("mlx.optimizers.Lion")
def Lion(
    lr: Scheduled, beta1: Scheduled = 0.9, beta2: Scheduled = 0.99, **options: Unpack[DecoupledOptions]
) -> optimizers.Lion:
    """Make a Lion."""
    return optimizers.Lion(lr, beta1, beta2, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(__name__, dict.fromkeys(("Adafactor", "Muon"), "fusedstep has no such rule"))
