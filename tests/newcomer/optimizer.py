"""The class of Drift, as it is added to `fusedstep/optimizers.py`."""

from dataclasses import dataclass

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer


@dataclass(eq=False)
class Drift(Optimizer):
    r"""
    Drift, an optimizer of the tests alone; states ``m`` and ``v``.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \max(\beta_2 v, |g|), \quad
        p \leftarrow p - \frac{lr}{1 - \beta_1^t} \frac{m}{v + \epsilon}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    **options
        Those of `Optimizer`.

    References
    ----------
    None: nobody has proposed it.
    """

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    eps: Scheduled = 1e-8
    rule = "drift"
    torch_states = (("m", "exp_avg"), ("v", "exp_inf"))
