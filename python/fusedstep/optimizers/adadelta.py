from dataclasses import dataclass

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Adadelta"]


@dataclass(eq=False)
class Adadelta(Optimizer):
    r"""
    Adadelta; states ``v``, the mean of squared gradients, and ``x``, that of squared updates.

    .. math::
        v \leftarrow \rho v + (1 - \rho) g^2, \quad d = \sqrt{\frac{x + \epsilon}{v + \epsilon}} \, g, \quad
        x \leftarrow \rho x + (1 - \rho) d^2, \quad p \leftarrow p - lr \, d

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0; 1 in the paper.
    rho : float or callable
        :math:`\rho`, the share of v and x that stays, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Zeiler 2012, "Adadelta: an adaptive learning rate method", Algorithm 1.
    """

    lr: Scheduled = 1.0
    rho: Scheduled = 0.9
    eps: Scheduled = 1e-6
    rule = "adadelta"
    torch_states = (("v", "square_avg"), ("x", "acc_delta"))
