"""
Optimizers of PyTorch, whose forms are those of `fusedstep.optimizers`.

``lr_decay=d`` of its Adagrad is ``lr=schedules.inverse_time(lr, d)``, and ``decoupled_weight_decay=True`` is
`decoupled`.
"""

from typing import TYPE_CHECKING, Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, OptionsBesideDecay, absent, presets_of

__all__ = [
    "NAG",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Momentum",
    "Nadam",
    "RAdam",
    "RMSprop",
]

_preset = presets_of("PyTorch 2.13.0")


@_preset("torch.optim.SGD")
def SGD(lr: Scheduled = 1e-3, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset("torch.optim.SGD(momentum=...)")
def Momentum(
    lr: Scheduled = 1e-3, momentum: Scheduled = 0.9, dampening: Scheduled = 0.0, **options: Unpack[Options]
) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose first gradient is not dampened."""
    return optimizers.Momentum(lr, momentum, dampening, False, "grad", **options)


@_preset("torch.optim.SGD(momentum=..., nesterov=True)")
def NAG(lr: Scheduled = 1e-3, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum."""
    return optimizers.NAG(lr, momentum, "grad", **options)


@_preset("torch.optim.Adagrad")
def Adagrad(
    lr: Scheduled = 0.01, eps: Scheduled = 1e-10, initial_accumulator: Scheduled = 0.0, **options: Unpack[Options]
) -> optimizers.Adagrad:
    """Make an Adagrad whose eps is outside of the root."""
    return optimizers.Adagrad(lr, eps, "outside", initial_accumulator, **options)


@_preset("torch.optim.RMSprop")
def RMSprop(
    lr: Scheduled = 0.01,
    rho: Scheduled = 0.99,
    eps: Scheduled = 1e-8,
    momentum: Scheduled = 0.0,
    centered: bool = False,
    **options: Unpack[Options],
) -> optimizers.RMSprop:
    """Make an RMSprop whose eps is outside of the root, and whose velocity collects gradients."""
    return optimizers.RMSprop(lr, rho, eps, "outside", momentum, "grad", centered, **options)


@_preset("torch.optim.Adadelta")
def Adadelta(
    lr: Scheduled = 1.0, rho: Scheduled = 0.9, eps: Scheduled = 1e-6, **options: Unpack[Options]
) -> optimizers.Adadelta:
    """Make an Adadelta."""
    return optimizers.Adadelta(lr, rho, eps, **options)


@_preset("torch.optim.Adam")
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    amsgrad: bool = False,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the corrected v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "outside", amsgrad, **options)


@_preset("torch.optim.AdamW")
def AdamW(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    amsgrad: bool = False,
    weight_decay: Scheduled = 0.01,
    **options: Unpack[OptionsBesideDecay],
) -> optimizers.AdamW:
    """Make an AdamW whose eps is beside the root of the corrected v."""
    return optimizers.AdamW(lr, beta1, beta2, eps, "outside", amsgrad, weight_decay=weight_decay, **options)


@_preset("torch.optim.Adamax")
def Adamax(
    lr: Scheduled = 2e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Adamax:
    """Make an Adamax whose eps is added to the magnitude of the gradient."""
    return optimizers.Adamax(lr, beta1, beta2, eps, "max", **options)


@_preset("torch.optim.NAdam")
def Nadam(
    lr: Scheduled = 2e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    schedule_decay: Scheduled = 0.004,
    **options: Unpack[Options],
) -> optimizers.Nadam:
    """Make a Nadam with the momentum schedule of the paper."""
    return optimizers.Nadam(lr, beta1, beta2, eps, schedule_decay, **options)


@_preset("torch.optim.RAdam")
def RAdam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.RAdam:
    """Make an RAdam whose eps is beside the root of the raw v, and which rectifies above the threshold 5."""
    return optimizers.RAdam(lr, beta1, beta2, eps, **options)


if not TYPE_CHECKING:
    __getattr__ = absent(
        __name__,
        dict.fromkeys(("ASGD", "Adafactor", "LBFGS", "Muon", "Rprop", "SparseAdam"), "fusedstep has no such rule"),
    )
