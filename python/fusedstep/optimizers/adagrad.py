from dataclasses import dataclass
from typing import Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Adagrad"]


@dataclass(eq=False)
class Adagrad(Optimizer):
    r"""
    Adagrad, diagonal form; state ``a``, the sum of squared gradients.

    .. math:: a \leftarrow a + g^2, \qquad p \leftarrow p - \frac{lr \, g}{\sqrt{a} + \epsilon}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "inside"}
        Whether eps is added to the root or under it.
    initial_accumulator : float or callable
        Where a starts, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Duchi, Hazan & Singer 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    lr: Scheduled = 0.01
    eps: Scheduled = 1e-10
    eps_mode: Literal["outside", "inside"] = "outside"
    initial_accumulator: Scheduled = 0.0
    rule = "adagrad"
    torch_states = (("a", "sum"),)
    accumulator = "a"
