"""
Optimizers of torch/optim, the package of Torch 7 in Lua.

``learningRateDecay=d`` is ``lr=schedules.inverse_time(lr, d)``, ``weightDecay`` is `weight_decay`, and ``initialMean``
of rmsprop, which was 1 in the summer of 2016, is `initial_accumulator`. ``optim.nag`` is
``fusedstep.NAG(velocity="step")``, whose parameter is the point at which ``optim.nag`` asks for the gradient.
"""

from typing import Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, presets_of

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "Adamax", "Momentum", "RMSprop"]

_preset = presets_of("torch/optim of November 2017")


@_preset("optim.sgd")
def SGD(lr: Scheduled = 1e-3, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("optim.sgd with momentum")
def Momentum(
    lr: Scheduled = 1e-3,
    momentum: Scheduled = 0.9,
    dampening: Scheduled | None = None,
    **options: Unpack[Options],
) -> optimizers.Momentum:
    """Make a gradient descent with momentum; `dampening` is the momentum unless told, but not in the first update."""
    return optimizers.Momentum(lr, momentum, momentum if dampening is None else dampening, **options)


@_preset("optim.sgd with nesterov")
def NAG(lr: Scheduled = 1e-3, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, with the gradient at the parameter; ``optim.nag`` is another."""
    return optimizers.NAG(lr, momentum, "grad", **options)


@_preset("optim.adagrad")
def Adagrad(lr: Scheduled = 1e-3, **options: Unpack[Options]) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is 1e-10, outside of the root."""
    return optimizers.Adagrad(lr, 1e-10, "outside", **options)


@_preset("optim.rmsprop")
def RMSprop(
    lr: Scheduled = 0.01,
    rho: Scheduled = 0.99,
    eps: Scheduled = 1e-8,
    initial_accumulator: Scheduled = 0.0,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is outside of the root."""
    return optimizers.RMSprop(lr, rho, eps, "outside", initial_accumulator=initial_accumulator, **options)


@_preset("optim.adadelta")
def Adadelta(
    lr: Scheduled = 1.0, rho: Scheduled = 0.9, eps: Scheduled = 1e-6, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta; that of Torch 7 has no learning rate."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("optim.adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", False, **options)


@_preset("optim.adamax")
def Adamax(
    lr: Scheduled = 2e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-38,
    **options: Unpack[Options],
) -> optimizers.Adamax:
    """Make an Adamax whose eps, which is 0 in float32, is added to the magnitude of the gradient."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "max", **options)
