"""
Optimizers of tf.keras up to 2.10, which later versions and tf_keras have as ``optimizers.legacy``: eps is 1e-7.

``decay=d`` is ``lr=schedules.inverse_time(lr, d)``. ``clipvalue``, ``clipnorm`` and ``global_clipnorm`` are
`clip_value`, `clip_norm` and `clip_global_norm`. The optimizers of tf.keras since 2.11 are in
`fusedstep.presets.keras3`.
"""

from typing import TYPE_CHECKING, Literal, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, absent, presets_of

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "Momentum", "Nadam", "RMSprop"]

_preset = presets_of("tf_keras 2.21.0")


@_preset("tf_keras.optimizers.legacy.SGD")
def SGD(lr: Scheduled = 0.01, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("tf_keras.optimizers.legacy.SGD(momentum=...)")
def Momentum(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects steps."""
    return optimizers.Momentum(lr, momentum, velocity="step", **options)


@_preset("tf_keras.optimizers.legacy.SGD(momentum=..., nesterov=True)")
def NAG(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects steps."""
    return optimizers.NAG(lr, momentum, "step", **options)


@_preset("tf_keras.optimizers.legacy.Adagrad")
def Adagrad(
    lr: Scheduled = 1e-3, eps: Scheduled = 1e-7, initial_accumulator: Scheduled = 0.1, **options: Unpack[Options]
) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is outside of the root."""
    return optimizers.Adagrad(lr, eps, "outside", initial_accumulator, **options)


@_preset("tf_keras.optimizers.legacy.RMSprop")
def RMSprop(
    lr: Scheduled = 1e-3,
    rho: Scheduled = 0.9,
    eps: Scheduled = 1e-7,
    momentum: Scheduled = 0.0,
    centered: bool = False,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is inside of the root with momentum, which collects steps, and outside without."""
    without = not callable(momentum) and momentum == 0
    eps_mode: Literal["outside", "inside"] = "outside" if without else "inside"
    return optimizers.RMSprop(lr, rho, eps, eps_mode, momentum, "step", centered, **options)


@_preset("tf_keras.optimizers.legacy.Adadelta")
def Adadelta(
    lr: Scheduled = 1e-3, rho: Scheduled = 0.95, eps: Scheduled = 1e-7, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("tf_keras.optimizers.legacy.Adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    amsgrad: bool = False,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", amsgrad, **options)


@_preset("tf_keras.optimizers.legacy.Adamax")
def Adamax(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    **options: Unpack[Options],
) -> optimizers.Adamax:
    """Make an Adamax whose eps is added to w in the denominator."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "outside", **options)


@_preset("tf_keras.optimizers.legacy.Nadam")
def Nadam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    **options: Unpack[Options],
) -> optimizers.Nadam:
    """Make a Nadam with the momentum schedule of the paper."""
    return optimizers.Nadam(lr, beta1, beta2, eps, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(__name__, {"Ftrl": "fusedstep has no such rule"})
