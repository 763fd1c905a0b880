from dataclasses import dataclass
from typing import Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["NAG"]


@dataclass(eq=False)
class NAG(Optimizer):
    r"""
    Nesterov's accelerated gradient; state ``b``.

    .. math::
        b \leftarrow \mu b + g, \qquad p \leftarrow p - lr \, (g + \mu b) \qquad \text{(velocity "grad")} \\
        b \leftarrow \mu b + lr \, g, \qquad p \leftarrow p - (lr \, g + \mu b) \qquad \text{(velocity "step")}

    The gradient is taken at the current parameter. With velocity "step" and constant momentum, ``p`` is the textbook's
    look-ahead point and ``p + momentum * b`` its iterate.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    momentum : float or callable
        :math:`\mu`, from 0 to 1.
    velocity : {"grad", "step"}
        Whether b collects gradients or steps.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Nesterov 1983, "A method for solving the convex programming problem with convergence rate O(1/k^2)". Bengio,
    Boulanger-Lewandowski & Pascanu 2013, "Advances in optimizing recurrent networks".
    """

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    velocity: Literal["grad", "step"] = "grad"
    rule = "nag"
    torch_states = (("b", "momentum_buffer"),)
