from dataclasses import dataclass

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["AdaBelief"]


@dataclass(eq=False)
class AdaBelief(Optimizer):
    r"""
    AdaBelief, Adam that steps far where gradients are as expected; states ``m`` and ``s``, how far they are from ``m``.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        s \leftarrow \beta_2 s + (1 - \beta_2) (g - m)^2 + \epsilon, \quad
        p \leftarrow p - lr \, \frac{m / (1 - \beta_1^t)}{\sqrt{s / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0. It is added to s in every update, and again to the root of the corrected s.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Zhuang, Tang, Ding, Tatikonda, Dvornek, Papademetris & Duncan 2020, "AdaBelief optimizer: adapting stepsizes by the
    belief in observed gradients", Algorithm 2.
    """

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-16
    rule = "adabelief"
    torch_states = (("m", "exp_avg"), ("s", "exp_avg_var"))
