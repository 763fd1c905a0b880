from dataclasses import dataclass, field

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Lion"]


@dataclass(eq=False)
class Lion(Optimizer):
    r"""
    Lion, the sign of a momentum; state ``m``.

    .. math::
        c = \beta_1 m + (1 - \beta_1) g, \quad m \leftarrow \beta_2 m + (1 - \beta_2) g, \quad
        p \leftarrow p - lr \, \mathrm{sign}(c)

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    **options
        Those of `Optimizer`, where it is also said what a callable is. `decoupled` is always True.

    References
    ----------
    Chen et al. 2023, "Symbolic discovery of optimization algorithms".
    """

    lr: Scheduled = 1e-4
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    decoupled: bool = field(default=True, init=False)
    rule = "lion"
    torch_states = (("m", "exp_avg"),)
    always_decoupled = True
