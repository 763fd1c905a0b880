from dataclasses import dataclass

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["SGD"]


@dataclass(eq=False)
class SGD(Optimizer):
    r"""
    Gradient descent.

    .. math:: p \leftarrow p - lr \, g

    Batch, mini-batch and stochastic gradient descent are this one rule; they differ in the samples that the caller
    averages the gradient over. There is no state.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Cauchy 1847, "Méthode générale pour la résolution des systèmes d'équations simultanées". Robbins & Monro 1951,
    "A stochastic approximation method".
    """

    lr: Scheduled = 0.01
    rule = "sgd"
