"""
Optimizers of Keras 2, as it was before it became a part of TensorFlow: eps is 1e-7, and velocities collect steps.

``decay=d`` is ``lr=schedules.inverse_time(lr, d)``, the regularizer ``l2(x)`` is ``weight_decay=2 * x``, and
``clipnorm`` is `clip_global_norm`: it is one norm over all gradients here.
"""

from typing import TYPE_CHECKING, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, absent, presets_of

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "Momentum", "Nadam", "RMSprop"]

_preset = presets_of("Keras 2.3.1")


@_preset("keras.optimizers.SGD")
def SGD(lr: Scheduled = 0.01, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("keras.optimizers.SGD(momentum=...)")
def Momentum(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects steps."""
    return optimizers.Momentum(lr, momentum, velocity="step", **options)


@_preset("keras.optimizers.SGD(momentum=..., nesterov=True)")
def NAG(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects steps."""
    return optimizers.NAG(lr, momentum, "step", **options)


@_preset("keras.optimizers.Adagrad")
def Adagrad(lr: Scheduled = 0.01, eps: Scheduled = 1e-7, **options: Unpack[Options]) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is outside of the root."""
    return optimizers.Adagrad(lr, eps, "outside", **options)


@_preset("keras.optimizers.RMSprop")
def RMSprop(
    lr: Scheduled = 1e-3, rho: Scheduled = 0.9, eps: Scheduled = 1e-7, **options: Unpack[Options]
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is outside of the root."""
    return optimizers.RMSprop(lr, rho, eps, "outside", **options)


@_preset("keras.optimizers.Adadelta")
def Adadelta(
    lr: Scheduled = 1.0, rho: Scheduled = 0.95, eps: Scheduled = 1e-7, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("keras.optimizers.Adam")
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


@_preset("keras.optimizers.Adamax")
def Adamax(
    lr: Scheduled = 2e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    **options: Unpack[Options],
) -> optimizers.Adamax:
    """Make an Adamax whose eps is added to w in the denominator."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "outside", **options)


@_preset("keras.optimizers.Nadam")
def Nadam(
    lr: Scheduled = 2e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    schedule_decay: Scheduled = 0.004,
    **options: Unpack[Options],
) -> optimizers.Nadam:
    """Make a Nadam with the momentum schedule of the paper."""
    return optimizers.Nadam(lr, beta1, beta2, eps, schedule_decay, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(__name__, {"TFOptimizer": "what it wraps is in fusedstep.presets.tf1"})
