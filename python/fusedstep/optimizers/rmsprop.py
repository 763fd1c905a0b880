from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = ["RMSprop"]


@dataclass(eq=False)
class RMSprop(Optimizer):
    r"""
    RMSprop, plain, centered, with momentum, or both; states ``v``, and ``m`` if centered, ``b`` with momentum.

    .. math::
        v \leftarrow \rho v + (1 - \rho) g^2, \qquad p \leftarrow p - \frac{lr \, g}{\sqrt{v} + \epsilon}

    Centered, :math:`m \leftarrow \rho m + (1 - \rho) g` and :math:`\max(v - m^2, 0)` stands under the root. With
    momentum, :math:`b \leftarrow \mu b + g / (\sqrt{v} + \epsilon)` and :math:`p \leftarrow p - lr \, b` (velocity
    "grad"), or the learning rate is inside b (velocity "step").

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0.
    rho : float or callable
        :math:`\rho`, the share of v that stays, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "inside"}
        Whether eps is added to the root (PyTorch) or under it (Keras, TensorFlow, optax).
    momentum : float or callable
        :math:`\mu`, from 0 to 1; 0 does without b.
    velocity : {"grad", "step"}
        Whether the learning rate is outside or inside b; without momentum it has no effect.
    centered : bool
        Whether to divide by the standard deviation of the gradients instead of their root mean square.
    initial_accumulator : float or callable
        Where v starts, at least 0.
    **options
        Those of `Optimizer`, where it is also said what a callable is.

    References
    ----------
    Tieleman & Hinton 2012, "Lecture 6.5: rmsprop". Graves 2013, "Generating sequences with recurrent neural networks".
    """

    lr: Scheduled = 0.01
    rho: Scheduled = 0.99
    eps: Scheduled = 1e-8
    eps_mode: Literal["outside", "inside"] = "outside"
    momentum: Scheduled = 0.0
    velocity: Literal["grad", "step"] = "grad"
    centered: bool = False
    initial_accumulator: Scheduled = 0.0
    rule = "rmsprop"
    other_rules: ClassVar = {
        "rmsprop_centered": {"centered": True},
        "rmsprop_momentum": {"momentum": 0.9},
        "rmsprop_centered_momentum": {"centered": True, "momentum": 0.9},
    }
    accumulator = "v"
    torch_states = (("v", "square_avg"), ("m", "grad_avg"), ("b", "momentum_buffer"))

    def _rule(self, values: Mapping[str, Any]) -> str:
        momentum = values["momentum"]
        # Momentum that is a function or a number on a GPU may be 0 now and not later, so it counts as momentum.
        without = isinstance(momentum, float) and momentum == 0
        return self.rule + ("_centered" if values["centered"] else "") + ("" if without else "_momentum")
