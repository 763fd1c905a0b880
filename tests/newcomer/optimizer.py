"""The class of Drift, as it is added to `fusedstep/optimizers/drift.py`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fusedstep.core.hyperparameters import INF, RANGES, Range, Scheduled
from fusedstep.core.optimizer import Optimizer


@dataclass(eq=False)
class Drift(Optimizer):
    r"""
    Drift, an optimizer of the tests alone; states ``m``, ``v``, ``w`` and ``x``, memory ``product`` and ``weight``.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        w \leftarrow \max(\rho w, |g| + \phi + \epsilon), \quad x \leftarrow \mu x + m, \\
        p \leftarrow p - lr \, \frac{(1 - s) m / (1 - \beta_1^t) + s x / \sum_{i < t} \mu^i}{\max(\sqrt{v}, w)}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    rho : float or callable
        :math:`\rho`, from 0 to below 1.
    momentum : float or callable
        :math:`\mu`, from 0 to 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "inside"}
        Whether eps is added to the gradient's magnitude or to v under the root.
    share : float or callable
        :math:`s`, from 0 to 1.
    floor : float or callable
        :math:`\phi`, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    The tests of fusedstep 2026, "An optimizer as large as a rule may be".
    """

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.99
    rho: Scheduled = 0.95
    momentum: Scheduled = 0.5
    eps: Scheduled = 1e-8
    eps_mode: Literal["outside", "inside"] = "outside"
    share: Scheduled = 0.25
    floor: Scheduled = 0.0
    rule = "drift"
    ranges: ClassVar = RANGES | {
        "share": Range(0, 1, with_high=True),
        "floor": Range(0, INF),
        "product": Range(0, 1),
        "weight": Range(0, INF),
    }
    torch_states = (
        ("m", "exp_avg"),
        ("v", "exp_avg_sq"),
        ("w", "exp_inf"),
        ("x", "momentum_buffer"),
        ("product", "beta_product"),
        ("weight", "momentum_weight"),
    )
