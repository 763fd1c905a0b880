"""
Optimizers of optax, whose learning rate is always given.

``chain(clip_by_global_norm(c), ...)`` is `clip_global_norm`, ``clip(c)`` is `clip_value`, and
``add_decayed_weights(w)`` before an optimizer is `weight_decay`. A schedule of optax is one here.
"""

import math
from typing import TYPE_CHECKING, Literal, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, OptionsBesideDecay, absent, presets_of

__all__ = [
    "NAG",
    "SGD",
    "AdaBelief",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "AdamaxW",
    "Lion",
    "Momentum",
    "Nadam",
    "NadamW",
    "RMSprop",
]

_preset = presets_of("optax 0.2.8")


@_preset("optax.sgd")
def SGD(lr: Scheduled, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("optax.sgd(momentum=...)")
def Momentum(lr: Scheduled, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects gradients."""
    return optimizers.Momentum(lr, momentum, velocity="grad", **options)


@_preset("optax.sgd(momentum=..., nesterov=True)")
def NAG(lr: Scheduled, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects gradients."""
    return optimizers.NAG(lr, momentum, "grad", **options)


@_preset("optax.adagrad")
def Adagrad(
    lr: Scheduled, eps: Scheduled = 1e-7, initial_accumulator: Scheduled = 0.1, **options: Unpack[Options]
) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is inside of the root."""
    return optimizers.Adagrad(lr, eps, "inside", initial_accumulator, **options)


@_preset("optax.rmsprop")
def RMSprop(
    lr: Scheduled,
    rho: Scheduled = 0.9,
    eps: Scheduled = 1e-8,
    eps_mode: Literal["outside", "inside"] = "inside",
    momentum: Scheduled = 0.0,
    centered: bool = False,
    initial_accumulator: Scheduled = 0.0,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is inside of the root unless told, and whose velocity collects steps."""
    return optimizers.RMSprop(lr, rho, eps, eps_mode, momentum, "step", centered, initial_accumulator, **options)


@_preset("optax.adadelta")
def Adadelta(
    lr: Scheduled, rho: Scheduled = 0.9, eps: Scheduled = 1e-6, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("optax.adam")
def Adam(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam; `eps_mode` "inside" is optax's eps_root, with its eps at 0."""
    return optimizers.Adam(lr, beta1, beta2, eps, eps_mode, False, **options)


@_preset("optax.adamw")
def AdamW(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    weight_decay: Scheduled = 1e-4,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.AdamW:
    """Make an AdamW; `eps_mode` "inside" is optax's eps_root, with its eps at 0."""
    return optimizers.AdamW(lr, beta1, beta2, eps, eps_mode, False, weight_decay=weight_decay, **options)


@_preset("optax.adamax")
def Adamax(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Adamax:
    """Make an Adamax whose eps is added to the magnitude of the gradient."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "max", **options)


@_preset("optax.adamaxw")
def AdamaxW(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    weight_decay: Scheduled = 1e-4,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.Adamax:
    """Make an Adamax with decoupled weight decay."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "max", weight_decay=weight_decay, decoupled=True, **options)


@_preset("optax.nadam")
def Nadam(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Nadam:
    """Make a Nadam without a schedule of its momentum."""
    return optimizers.Nadam(lr, beta1, beta2, eps, math.inf, **options)


@_preset("optax.nadamw")
def NadamW(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    weight_decay: Scheduled = 1e-4,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.Nadam:
    """Make a Nadam without a schedule of its momentum, with decoupled weight decay."""
    return optimizers.Nadam(lr, beta1, beta2, eps, math.inf, weight_decay=weight_decay, decoupled=True, **options)


@_preset("optax.adabelief")
def AdaBelief(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-16,
    **options: Unpack[Options],
) -> optimizers.AdaBelief:
    """Make an AdaBelief whose `eps` is both eps and eps_root of optax."""
    return optimizers.AdaBelief(lr, beta1, beta2, eps, **options)


@_preset("optax.lion")
def Lion(
    lr: Scheduled,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.99,
    weight_decay: Scheduled = 1e-3,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.Lion:
    """Make a Lion with weight decay."""
    return optimizers.Lion(lr, beta1, beta2, weight_decay=weight_decay, **options)


if not TYPE_CHECKING:
    _REASONS = {
        "AMSGrad": "optax takes the maximum of the corrected v, fusedstep.Adam(amsgrad=True) that of the raw one",
        "RAdam": "optax adds eps to the root of the corrected v, fusedstep.RAdam to that of the raw one",
    }
    __getattr__ = absent(__name__, _REASONS | {name.lower(): reason for name, reason in _REASONS.items()})
