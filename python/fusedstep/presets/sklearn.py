"""
The solvers of the neural networks of scikit-learn, ``MLPClassifier`` and ``MLPRegressor``.

``alpha`` is a part of their gradient: here it is ``weight_decay=alpha / batch_size`` for the weights alone.
"""

from typing import Unpack

from fusedstep import optimizers
from fusedstep.core.hyperparameters import Scheduled

from .preset import Options, presets_of

__all__ = ["NAG", "SGD", "Adam", "Momentum"]

_preset = presets_of("scikit-learn 1.9.1")


@_preset('MLPClassifier(solver="sgd", momentum=0)')
def SGD(lr: Scheduled = 1e-3, **options: Unpack[Options]) -> optimizers.SGD:
    """Make a gradient descent."""
    return optimizers.SGD(lr, **options)


@_preset('MLPClassifier(solver="sgd", nesterovs_momentum=False)')
def Momentum(lr: Scheduled = 1e-3, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.Momentum:
    """Make a gradient descent with momentum, whose velocity collects steps."""
    return optimizers.Momentum(lr, momentum, velocity="step", **options)


@_preset('MLPClassifier(solver="sgd")')
def NAG(lr: Scheduled = 1e-3, momentum: Scheduled = 0.9, **options: Unpack[Options]) -> optimizers.NAG:
    """Make a gradient descent with Nesterov momentum, whose velocity collects steps."""
    return optimizers.NAG(lr, momentum, "step", **options)


@_preset('MLPClassifier(solver="adam")')
def Adam(
    lr: Scheduled = 1e-3,
    beta1: Scheduled = 0.9,
    beta2: Scheduled = 0.999,
    eps: Scheduled = 1e-8,
    **options: Unpack[Options],
) -> optimizers.Adam:
    """Make an Adam whose eps is beside the root of the raw v."""
    return optimizers.Adam(lr, beta1, beta2, eps, "hat", False, **options)
