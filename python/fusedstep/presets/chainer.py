"""
Optimizers of Chainer.

The hooks ``WeightDecay``, ``Lasso``, ``GradientClipping`` and ``GradientHardClipping(-c, c)`` are `weight_decay`, `l1`,
`clip_global_norm` and `clip_value`.
"""

from typing import TYPE_CHECKING, Literal, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, absent, presets_of

__all__ = ["SGD", "Adadelta", "Adagrad", "Adam", "CorrectedMomentum", "Momentum", "RMSprop", "RMSpropGraves"]

_preset = presets_of("Chainer 7.8.1")


@_preset("chainer.optimizers.SGD")
def SGD(lr: Scheduled = 0.01, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("chainer.optimizers.MomentumSGD")
def Momentum(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects steps."""
    return optimizers.Momentum(lr, momentum, velocity="step", **options)


@_preset("chainer.optimizers.CorrectedMomentumSGD")
def CorrectedMomentum(
    lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[Options]
) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects gradients."""
    return optimizers.Momentum(lr, momentum, velocity="grad", **options)


@_preset("chainer.optimizers.AdaGrad")
def Adagrad(lr: Scheduled = 1e-3, eps: Scheduled = 1e-8, **options: Unpack[Options]) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is outside of the root."""
    return optimizers.Adagrad(lr, eps, "outside", **options)


@_preset("chainer.optimizers.RMSprop")
def RMSprop(
    lr: Scheduled = 0.01,
    rho: Scheduled = 0.99,
    eps: Scheduled = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop; `eps_mode` "inside" is Chainer's eps_inside_sqrt."""
    return optimizers.RMSprop(lr, rho, eps, eps_mode, **options)


@_preset("chainer.optimizers.RMSpropGraves")
def RMSpropGraves(
    lr: Scheduled = 1e-4,
    rho: Scheduled = 0.95,
    eps: Scheduled = 1e-4,
    momentum: Scheduled = 0.9,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop that is centered, with eps inside of the root, whose velocity collects steps."""
    return optimizers.RMSprop(lr, rho, eps, "inside", momentum, "step", True, **options)


@_preset("chainer.optimizers.AdaDelta")
def Adadelta(
    lr: Scheduled = 1.0, rho: Scheduled = 0.95, eps: Scheduled = 1e-6, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta; Chainer's has no learning rate."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("chainer.optimizers.Adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    amsgrad: bool = False,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", amsgrad, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(
        __name__,
        {
            "AdamW": "its decay is not multiplied by the learning rate; while this is constant, "
            "Adam(lr, weight_decay=weight_decay_rate / lr, decoupled=True) makes the same updates",
            "NesterovAG": "the momentum is squared on its new velocity",
            "NAG": "the momentum is squared on the new velocity of its NesterovAG",
            **dict.fromkeys(("AMSBound", "AdaBound", "MSVAG", "SMORMS3"), "fusedstep has no such rule"),
        },
    )
