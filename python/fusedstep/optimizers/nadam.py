from dataclasses import dataclass
from typing import ClassVar

from fusedstep.core.hyperparameters import INF, RANGES, Range, Scheduled, rational_power
from fusedstep.core.optimizer import Optimizer

__all__ = ["Nadam"]


@dataclass(eq=False)
class Nadam(Optimizer):
    r"""
    Nadam, Adam with Nesterov momentum and a schedule of it; states ``m`` and ``v``, memory ``product``.

    .. math::
        \mu_t = \beta_1 (1 - 0.5 \cdot 0.96^{\psi t}), \qquad
        \hat m = \frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i} + \frac{(1 - \mu_t) g}{1 - \prod_{i \le t} \mu_i},
        \qquad p \leftarrow p - lr \, \frac{\hat m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with m and v as in Adam and :math:`\psi` the `schedule_decay`. The memory is :math:`\prod_{i \le t} \mu_i`.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    schedule_decay : float or callable
        :math:`\psi`, at least 0: 0.004 in the paper and PyTorch, 1 in Keras 3, infinity (no schedule) in optax.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Dozat 2016, "Incorporating Nesterov momentum into Adam".
    """

    lr: Scheduled = 2e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    schedule_decay: Scheduled = 0.004
    rule = "nadam"
    ranges: ClassVar = RANGES | {
        "schedule_decay": Range(0, INF, with_high=True),
        "product": Range(0, 1, with_high=True),
    }
    derived: ClassVar = {"decay_base": lambda schedule_decay: rational_power(0.96, schedule_decay)}
    torch_states = (("m", "exp_avg"), ("v", "exp_avg_sq"), ("product", "mu_product"))
