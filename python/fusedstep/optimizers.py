"""
The optimizers, in order of increasing complexity.

A class holds hyperparameters and their explanation. It knows no formula: those are the rules of the engine, and, in
plain NumPy, the classes of the same names in `fusedstep.reference`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fusedstep.core.hyperparameters import Scheduled
from fusedstep.core.optimizer import Optimizer

__all__ = [
    "NAG",
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Momentum",
    "Nadam",
    "Optimizer",
    "RMSprop",
]


@dataclass(eq=False)
class SGD(Optimizer):
    r"""
    Gradient descent.

    .. math:: p \leftarrow p - lr \, g

    Batch, mini-batch and stochastic gradient descent are this one rule; they differ in the samples that the caller
    averages the gradient over. No state.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    **options
        Those of `Optimizer`.

    References
    ----------
    Cauchy 1847, "Méthode générale pour la résolution des systèmes d'équations simultanées". Robbins & Monro 1951,
    "A stochastic approximation method".
    """

    lr: Scheduled = 0.01
    rule = "sgd"


@dataclass(eq=False)
class Momentum(Optimizer):
    r"""
    Gradient descent with momentum; state ``b``.

    .. math::
        b \leftarrow \mu b + k g, \qquad p \leftarrow p - lr \, b \qquad \text{(velocity "grad")} \\
        b \leftarrow \mu b + k \, lr \, g, \qquad p \leftarrow p - b \qquad \text{(velocity "step")}

    with :math:`k = 1 - dampening`, but 1 in the first update unless `dampen_first`.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    momentum : float or callable
        :math:`\mu`, from 0 to 1.
    dampening : float or callable
        Share of the gradient that is held back, from 0 to 1. With ``dampening=momentum`` and `dampen_first`, b is a
        weighted average of the gradients.
    dampen_first : bool
        Whether the first gradient is dampened too.
    velocity : {"grad", "step"}
        Whether b collects gradients (PyTorch, TensorFlow 1) or steps (Keras). The two agree while lr is constant.
    **options
        Those of `Optimizer`.

    References
    ----------
    Polyak 1964, "Some methods of speeding up the convergence of iteration methods". Sutskever, Martens, Dahl & Hinton
    2013, "On the importance of initialization and momentum in deep learning".
    """

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    dampening: Scheduled = 0.0
    dampen_first: bool = False
    velocity: Literal["grad", "step"] = "grad"
    rule = "momentum"
    torch_states = (("b", "momentum_buffer"),)


@dataclass(eq=False)
class NAG(Optimizer):
    r"""
    Nesterov's accelerated gradient; state ``b``.

    .. math::
        b \leftarrow \mu b + g, \qquad p \leftarrow p - lr \, (g + \mu b) \qquad \text{(velocity "grad")} \\
        b \leftarrow \mu b + lr \, g, \qquad p \leftarrow p - (lr \, g + \mu b) \qquad \text{(velocity "step")}

    The gradient is taken at the current parameter. With velocity "step" and constant momentum, ``p`` is the textbook's
    look-ahead point and ``p + momentum * b`` its iterate.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    momentum : float or callable
        :math:`\mu`, from 0 to 1.
    velocity : {"grad", "step"}
        Whether b collects gradients or steps.
    **options
        Those of `Optimizer`.

    References
    ----------
    Nesterov 1983, "A method for solving the convex programming problem with convergence rate O(1/k^2)". Bengio,
    Boulanger-Lewandowski & Pascanu 2013, "Advances in optimizing recurrent networks".
    """

    lr: Scheduled = 0.01
    momentum: Scheduled = 0.9
    velocity: Literal["grad", "step"] = "grad"
    rule = "nag"
    torch_states = (("b", "momentum_buffer"),)


@dataclass(eq=False)
class Adagrad(Optimizer):
    r"""
    Adagrad, diagonal form; state ``a``, the sum of squared gradients.

    .. math:: a \leftarrow a + g^2, \qquad p \leftarrow p - \frac{lr \, g}{\sqrt{a} + \epsilon}

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "inside"}
        Whether eps is added to the root or under it.
    initial_accumulator : float or callable
        Where a starts, at least 0.
    **options
        Those of `Optimizer`.

    References
    ----------
    Duchi, Hazan & Singer 2011, "Adaptive subgradient methods for online learning and stochastic optimization".
    """

    lr: Scheduled = 0.01
    eps: Scheduled = 1e-10
    eps_mode: Literal["outside", "inside"] = "outside"
    initial_accumulator: Scheduled = 0.0
    rule = "adagrad"
    torch_states = (("a", "sum"),)
    accumulator = "a"


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
        Learning rate, at least 0, or a function of the number of finished updates.
    rho : float or callable
        :math:`\rho`, the share of v that stays, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"outside", "inside"}
        Whether eps is added to the root (PyTorch) or under it (Keras, TensorFlow, optax).
    momentum : float or callable
        :math:`\mu`, from 0 to 1; 0 does without b.
    velocity : {"grad", "step"}
        Whether b keeps the learning rate out or in; without momentum it has no effect.
    centered : bool
        Whether to divide by the standard deviation of the gradients instead of their root mean square.
    initial_accumulator : float or callable
        Where v starts, at least 0.
    **options
        Those of `Optimizer`.

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
    accumulator = "v"
    torch_states = (("v", "square_avg"), ("m", "grad_avg"), ("b", "momentum_buffer"))

    def _rule(self, values: Mapping[str, Any]) -> str:
        momentum = values["momentum"]
        without = isinstance(momentum, float) and momentum == 0  # a function, or a number on a GPU, may become another
        return self.rule + ("_centered" if values["centered"] else "") + ("" if without else "_momentum")


@dataclass(eq=False)
class Adadelta(Optimizer):
    r"""
    Adadelta; states ``v``, the mean of squared gradients, and ``x``, that of squared updates.

    .. math::
        v \leftarrow \rho v + (1 - \rho) g^2, \quad d = \sqrt{\frac{x + \epsilon}{v + \epsilon}} \, g, \quad
        x \leftarrow \rho x + (1 - \rho) d^2, \quad p \leftarrow p - lr \, d

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates; 1 in the paper.
    rho : float or callable
        :math:`\rho`, the share of v and x that stays, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    **options
        Those of `Optimizer`.

    References
    ----------
    Zeiler 2012, "Adadelta: an adaptive learning rate method", Algorithm 1.
    """

    lr: Scheduled = 1.0
    rho: Scheduled = 0.9
    eps: Scheduled = 1e-6
    rule = "adadelta"
    torch_states = (("v", "square_avg"), ("x", "acc_delta"))


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
        Learning rate, at least 0, or a function of the number of finished updates.
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
        Those of `Optimizer`.

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
    torch_states = (("m", "exp_avg"), ("v", "exp_avg_sq"), ("w", "max_exp_avg_sq"))

    def _rule(self, values: Mapping[str, Any]) -> str:
        return "amsgrad" if values["amsgrad"] else self.rule


@dataclass(eq=False)
class AdamW(Adam):
    r"""
    Adam with decoupled weight decay :math:`\lambda`: ``p`` also loses :math:`lr \, \lambda \, p` in each update.

    Parameters
    ----------
    lr, beta1, beta2, eps, eps_mode, amsgrad
        As for `Adam`.
    weight_decay : float or callable
        :math:`\lambda`, at least 0.
    **options
        Those of `Optimizer`, but for `decoupled`, which is always True.

    References
    ----------
    Loshchilov & Hutter 2019, "Decoupled weight decay regularization", Algorithm 2.
    """

    weight_decay: Scheduled = field(default=0.01, kw_only=True)
    decoupled: bool = field(default=True, init=False)
    always_decoupled = True


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
        Learning rate, at least 0, or a function of the number of finished updates.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    eps_mode : {"max", "outside"}
        Whether eps is added to the gradient's magnitude (PyTorch) or to w in the denominator (Keras).
    **options
        Those of `Optimizer`.

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


@dataclass(eq=False)
class Nadam(Optimizer):
    r"""
    Nadam, Adam with Nesterov momentum and a schedule of it; states ``m`` and ``v``.

    .. math::
        \mu_t = \beta_1 (1 - 0.5 \cdot 0.96^{\psi t}), \qquad
        \hat m = \frac{\mu_{t+1} m}{1 - \prod_{i \le t+1} \mu_i} + \frac{(1 - \mu_t) g}{1 - \prod_{i \le t} \mu_i},
        \qquad p \leftarrow p - lr \, \frac{\hat m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    with m and v as in Adam and :math:`\psi` the `schedule_decay`.

    Parameters
    ----------
    lr : float or callable
        Learning rate, at least 0, or a function of the number of finished updates.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    eps : float or callable
        :math:`\epsilon`, at least 0.
    schedule_decay : float or callable
        :math:`\psi`, at least 0: 0.004 in the paper and PyTorch, 1 in Keras 3, infinity (no schedule) in optax.
    **options
        Those of `Optimizer`.

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
    torch_states = (("m", "exp_avg"), ("v", "exp_avg_sq"), ("product", "mu_product"))


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
        Learning rate, at least 0, or a function of the number of finished updates.
    beta1, beta2 : float or callable
        :math:`\beta_1, \beta_2`, from 0 to below 1.
    **options
        Those of `Optimizer`, but for `decoupled`, which is always True.

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


def classes() -> list[type[Optimizer]]:
    """Return the optimizers, in the order of their definition."""
    return [c for c in globals().values() if isinstance(c, type) and issubclass(c, Optimizer) and c is not Optimizer]
