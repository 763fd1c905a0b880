from dataclasses import dataclass
from typing import Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Momentum"]


@dataclass(eq=False)
class Momentum(Optimizer):
    r"""
    Gradient descent with momentum; state ``b``.

    .. math::
        b \leftarrow \mu b + k g, \qquad p \leftarrow p - lr \, b \qquad \text{(velocity "grad")} \\
        b \leftarrow \mu b + k \, lr \, g, \qquad p \leftarrow p - b \qquad \text{(velocity "step")}

    with :math:`k = 1 - dampening`, but 1 in the first update unless `dampen_first`.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    momentum : float or callable
        :math:`\mu`, from 0 to 1.
    dampening : float or callable
        Share of the gradient that is held back, from 0 to 1. With ``dampening=momentum`` and `dampen_first`, b is a
        weighted average of the gradients.
    dampen_first : bool
        Whether the first gradient is dampened too.
    velocity : {"grad", "step"}
        Whether b collects gradients (PyTorch, TensorFlow 1) or steps (Keras). The two agree while lr is constant.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Polyak 1964, "Some methods of speeding up the convergence of iteration methods". Sutskever, Martens, Dahl & Hinton
    2013, "On the importance of initialization and momentum in deep learning".
    """

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    dampening: Scheduled = 0.0
    dampen_first: bool = False
    velocity: Literal["grad", "step"] = "grad"
    rule = "momentum"
    torch_states = (("b", "momentum_buffer"),)
