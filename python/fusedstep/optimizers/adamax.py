from dataclasses import dataclass
from typing import Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Adamax"]


@dataclass(eq=False)
class Adamax(Optimizer):
    r"""
    Adamax, Adam in the infinity norm; states ``m`` and ``w``.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad w \leftarrow \max(\beta_2 w, |g| + \epsilon), \quad
        p \leftarrow p - \frac{lr}{1 - \beta_1^t} \frac{m}{w}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"max", "outside"}
        Whether eps is added to the gradient's magnitude (PyTorch) or to w in the denominator (Keras).
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization", Algorithm 2.
    """

    lr: Scheduled = 2e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    eps_mode: Literal["max", "outside"] = "max"
    rule = "adamax"
    torch_states = (("m", "exp_avg"), ("w", "exp_inf"))
