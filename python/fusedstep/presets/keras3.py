"""
Optimizers of Keras 3: eps is 1e-7, and weight decay is decoupled in all of them.

Of its options, ``clipvalue``, ``clipnorm`` and ``global_clipnorm`` are `clip_value`, `clip_norm` and
`clip_global_norm`, and ``ema_momentum`` is `ema`. The optimizers of tf.keras since 2.11 are these, too, except that its
Lion begins with a learning rate of 1e-4.
"""

from typing import TYPE_CHECKING, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import DecoupledOptions, OptionsBesideDecay, absent, presets_of

__all__ = ["NAG", "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Momentum", "Nadam", "RMSprop"]

_preset = presets_of("Keras 3.15.1")


@_preset("keras.optimizers.SGD")
def SGD(lr: Scheduled = 0.01, **options: Unpack[DecoupledOptions]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, decoupled=True, **options)


@_preset("keras.optimizers.SGD(momentum=...)")
def Momentum(
    lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[DecoupledOptions]
) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects steps."""
    return optimizers.Momentum(lr, momentum, velocity="step", decoupled=True, **options)


@_preset("keras.optimizers.SGD(momentum=..., nesterov=True)")
def NAG(lr: Scheduled = 0.01, momentum: Scheduled = 0.9, **options: Unpack[DecoupledOptions]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects steps."""
    return optimizers.NAG(lr, momentum, "step", decoupled=True, **options)


@_preset("keras.optimizers.Adagrad")
def Adagrad(
    lr: Scheduled = 1e-3,
    eps: Scheduled = 1e-7,
    initial_accumulator: Scheduled = 0.1,
    **options: Unpack[DecoupledOptions],
) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is inside of the root."""
    return optimizers.Adagrad(lr, eps, "inside", initial_accumulator, decoupled=True, **options)


@_preset("keras.optimizers.RMSprop")
def RMSprop(
    lr: Scheduled = 1e-3,
    rho: Scheduled = 0.9,
    eps: Scheduled = 1e-7,
    momentum: Scheduled = 0.0,
    centered: bool = False,
    **options: Unpack[DecoupledOptions],
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is inside of the root, and whose velocity collects steps."""
    return optimizers.RMSprop(lr, rho, eps, "inside", momentum, "step", centered, decoupled=True, **options)


@_preset("keras.optimizers.Adadelta")
def Adadelta(
    lr: Scheduled = 1e-3, rho: Scheduled = 0.95, eps: Scheduled = 1e-7, **options: Unpack[DecoupledOptions]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, decoupled=True, **options)


@_preset("keras.optimizers.Adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    amsgrad: bool = False,
    **options: Unpack[DecoupledOptions],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", amsgrad, decoupled=True, **options)


@_preset("keras.optimizers.AdamW")
def AdamW(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    amsgrad: bool = False,
    weight_decay: Scheduled = 4e-3,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.AdamW:
    """Make an AdamW whose eps is beside the root of the raw v."""
    return optimizers.AdamW(lr, beta1, beta2, eps, "hat", amsgrad, weight_decay=weight_decay, **options)


@_preset("keras.optimizers.Adamax")
def Adamax(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    **options: Unpack[DecoupledOptions],
) -> optimizers.Adamax:
    """Make an Adamax whose eps is added to w in the denominator."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "outside", decoupled=True, **options)


@_preset("keras.optimizers.Nadam")
def Nadam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-7,
    **options: Unpack[DecoupledOptions],
) -> optimizers.Nadam:
    """Make a Nadam whose momentum warms up with 0.96**t, and not with 0.96**(0.004 t) as in the paper."""
    return optimizers.Nadam(lr, beta1, beta2, eps, 1.0, decoupled=True, **options)


@_preset("keras.optimizers.Lion")
def Lion(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.99,
    **options: Unpack[DecoupledOptions],
) -> optimizers.Lion:
    """Make a Lion."""
    return optimizers.Lion(lr, beta1, beta2, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(
        __name__,
        dict.fromkeys(("Adafactor", "Ftrl", "Lamb", "Muon", "ScheduleFreeAdamW"), "fusedstep has no such rule"),
    )
