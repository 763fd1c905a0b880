from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["Adam"]


@dataclass(eq=False)
class Adam(Optimizer):
    r"""
    Adam; states ``m`` and ``v``, and with amsgrad ``w``, the largest v so far.

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
        p \leftarrow p - lr \, \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "hat", "inside"}
        Where eps is added: "outside" to the root of the corrected v (the paper's Algorithm 1, PyTorch, optax), "hat" to
        the root of the raw v (Keras, TensorFlow 1), "inside" under the root of the corrected v (optax's eps_root).
    amsgrad : bool
        Whether to use :math:`w \leftarrow \max(w, v)` in place of v.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Kingma & Ba 2015, "Adam: a method for stochastic optimization", Algorithm 1. Reddi, Kale & Kumar 2018, "On the
    convergence of Adam and beyond", Algorithm 2.
    """

    lr: Scheduled = 1e-3
    beta1: Scheduled = 0.9
    beta2: Scheduled = 0.999
    eps: Scheduled = 1e-8
    eps_mode: Literal["outside", "hat", "inside"] = "outside"
    amsgrad: bool = False
    rule = "adam"
    other_rules: ClassVar = {"amsgrad": {"amsgrad": True}}
    torch_states = (("m", "exp_avg"), ("v", "exp_avg_sq"), ("w", "max_exp_avg_sq"))

    def _rule(self, values: Mapping[str, Any]) -> str:
        return "amsgrad" if values["amsgrad"] else self.rule
