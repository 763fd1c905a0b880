from dataclasses import dataclass

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["RAdam"]


@dataclass(eq=False)
class RAdam(Optimizer):
    r"""
    RAdam, Adam with a rectified step; states ``m`` and ``v``.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t} \\
        p \leftarrow p - lr \, r_t \, \frac{m / (1 - \beta_1^t)}{(\sqrt{v} + \epsilon) / \sqrt{1 - \beta_2^t}}, \quad
        r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2) \rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2) \rho_t}}
        \qquad \text{where } \rho_t > 5 \\
        p \leftarrow p - lr \, \frac{m}{1 - \beta_1^t} \qquad \text{in the first updates, before that}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1. With a beta2 of 2/3 or less no step is rectified.
    eps : float or callable
        :math:`\epsilon`, at least 0, added to the root of the raw v, as in PyTorch.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Liu, Jiang, He, Chen, Liu, Gao & Han 2020, "On the variance of the adaptive learning rate and beyond", Algorithm 2,
    with the threshold 5 in place of 4, as in PyTorch.
    """

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    rule = "radam"
    torch_states = (("m", "exp_avg"), ("v", "exp_avg_sq"))
