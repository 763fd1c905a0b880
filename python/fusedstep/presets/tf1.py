"""
Optimizers of TensorFlow 1, which TensorFlow 2 has as ``tf.compat.v1.train``.

A learning rate has a default only where it has one there.
"""

from typing import TYPE_CHECKING, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, absent, presets_of

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "Momentum", "RMSprop"]

_preset = presets_of("TensorFlow 2.21.0")


@_preset("tf.compat.v1.train.GradientDescentOptimizer")
def SGD(lr: Scheduled, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("tf.compat.v1.train.MomentumOptimizer")
def Momentum(lr: Scheduled, momentum: Scheduled, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects gradients."""
    return optimizers.Momentum(lr, momentum, velocity="grad", **options)


@_preset("tf.compat.v1.train.MomentumOptimizer(use_nesterov=True)")
def NAG(lr: Scheduled, momentum: Scheduled, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects gradients."""
    return optimizers.NAG(lr, momentum, "grad", **options)


@_preset("tf.compat.v1.train.AdagradOptimizer")
def Adagrad(lr: Scheduled, initial_accumulator: Scheduled = 0.1, **options: Unpack[Options]) -> optimizers.Adagrad:
    """Make an Adagrad without eps."""
    return optimizers.Adagrad(lr, 0.0, "outside", initial_accumulator, **options)


@_preset("tf.compat.v1.train.RMSPropOptimizer")
def RMSprop(
    lr: Scheduled,
    rho: Scheduled = 0.9,
    eps: Scheduled = 1e-10,
    momentum: Scheduled = 0.0,
    centered: bool = False,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop whose v starts at 1, whose eps is inside of the root, and whose velocity collects steps."""
    return optimizers.RMSprop(lr, rho, eps, "inside", momentum, "step", centered, 1.0, **options)


@_preset("tf.compat.v1.train.AdadeltaOptimizer")
def Adadelta(
    lr: Scheduled = 1e-3, rho: Scheduled = 0.95, eps: Scheduled = 1e-8, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("tf.compat.v1.train.AdamOptimizer")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", False, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(
        __name__,
        dict.fromkeys(
            ("AdagradDA", "Ftrl", "ProximalAdagrad", "ProximalGradientDescent"), "fusedstep has no such rule"
        ),
    )
