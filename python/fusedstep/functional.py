"""
One function per rule, for callers who own all state.

Every function makes one update in place and returns None (`nadam` returns its product). Its arrays are float32,
float64, float16 or bfloat16 (of `ml_dtypes`), C-contiguous, aligned, in native byte order and separate in memory;
gradient and states have the shape of their parameter, and its dtype. Gradient and states of a half-precision parameter
may be float32, as long as the states are all of one dtype, and the gradient of a float32 parameter may be half
precision. In place of an array each of them may be a list of as many arrays, one per tensor: still one call. Everything
is checked before the first write.

All of them raise TypeError for what is no array, a wrong dtype or a wrong type of hyperparameter, ValueError for a
wrong shape, a read-only, unaligned, overlapping or non-contiguous array or a hyperparameter out of range, BufferError
for an array of another library that does not export its memory, and RuntimeError for an array on a GPU that cannot be
used. Arrays on a GPU, of CuPy or with `__cuda_array_interface__`, are updated there, all of a call on one device, in
CuPy's current stream (without CuPy, the default stream); nothing is waited for.

Hyperparameters and options mean what they mean for the class in `fusedstep`, which also cites the papers in full.
Averages, masters and the skipping of steps need a memory, and belong to the classes alone. The random bits of
stochastic rounding follow from `seed`, t, and the place in the list; a function without t wants another seed for every
update.
"""

from dataclasses import fields
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, TypedDict, Unpack, get_args, get_type_hints

import numpy as np

from fusedstep.core.hyperparameters import check, check_clips, declared, numbers
from fusedstep.core.optimizer import Optimizer

from . import _cpu

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "amsgrad",
    "lion",
    "momentum",
    "nadam",
    "nag",
    "rmsprop",
    "rmsprop_centered",
    "rmsprop_centered_momentum",
    "rmsprop_momentum",
    "sgd",
]

_number = {name: number for name, (number, _, _) in _cpu.rules.items()}


class LionOptions(TypedDict, total=False):
    """What surrounds every rule, as for the classes; a norm is that of the gradients of the call."""

    grad_scale: float
    clip_value: float | None
    clip_norm: float | None
    clip_global_norm: float | None
    maximize: bool
    l1: float
    weight_decay: float
    zero_grad: bool
    rounding: Literal["nearest", "stochastic"]
    seed: int


class Options(LionOptions, total=False):
    """The same, for a rule that leaves the choice of how to decay."""

    decoupled: bool


_DEFAULTS = {f.name: f.default for f in fields(Optimizer) if f.name != "overrides"}


@lru_cache(maxsize=1024, typed=True)
def _packed(rule: str, /, *given: Any, **options: Any) -> bytes:
    """Check the hyperparameters of a rule, and turn them into its numbers; once for each set of them."""
    function = globals()[rule]
    hints, known = declared(function), declared(get_args(get_type_hints(function)["options"])[0])
    values = _DEFAULTS | {"decoupled": "decoupled" not in known}
    values |= {name: check(name, value, hints[name]) for name, value in zip(hints, given, strict=True)}
    for name, value in options.items():
        if name not in known:
            raise TypeError(f"{name} is no option of {rule}, expected one of {', '.join(known)}")
        values[name] = check(name, value, known[name])
    check_clips(values)
    scale = values.pop("grad_scale")
    return np.array([*numbers(_cpu.rules[rule][2], values | {"grad_scale": 1.0}), scale]).tobytes()


def sgd(
    p: Any,
    g: Any,
    *,
    lr: float,
    **options: Unpack[Options],
) -> None:
    """
    Gradient descent: p = p - lr g.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    lr
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Cauchy 1847; Robbins & Monro 1951.
    """
    _cpu.update(_number["sgd"], (p, g), _packed("sgd", lr, **options), 1, 1.0)


def momentum(
    p: Any,
    g: Any,
    b: Any,
    *,
    t: int,
    lr: float,
    momentum: float = 0.9,
    dampening: float = 0.0,
    dampen_first: bool = False,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None:
    """
    Momentum: b = momentum b + g, p = p - lr b.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    b : like `p`
        State, of the shape of the parameter, zeros before the first update; updated in place.
    t : int
        Number of this update, 1 for the first.
    lr, momentum, dampening, dampen_first, velocity
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Polyak 1964; Sutskever, Martens, Dahl & Hinton 2013.
    """
    _cpu.update(
        _number["momentum"],
        (p, g, b),
        _packed("momentum", lr, momentum, dampening, dampen_first, velocity, **options),
        t,
        1.0,
    )


def nag(
    p: Any,
    g: Any,
    b: Any,
    *,
    lr: float,
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None:
    """
    Nesterov's accelerated gradient: b = momentum b + g, p = p - lr (g + momentum b).

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    b : like `p`
        State, of the shape of the parameter, zeros before the first update; updated in place.
    lr, momentum, velocity
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Nesterov 1983; Bengio, Boulanger-Lewandowski & Pascanu 2013.
    """
    _cpu.update(_number["nag"], (p, g, b), _packed("nag", lr, momentum, velocity, **options), 1, 1.0)


def adagrad(
    p: Any,
    g: Any,
    a: Any,
    *,
    lr: float,
    eps: float = 1e-10,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None:
    """
    Adagrad: a = a + g^2, p = p - lr g / (sqrt(a) + eps).

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    a : like `p`
        State, of the shape of the parameter, zeros before the first update; updated in place.
    lr, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Duchi, Hazan & Singer 2011.
    """
    _cpu.update(_number["adagrad"], (p, g, a), _packed("adagrad", lr, eps, eps_mode, **options), 1, 1.0)


def rmsprop(
    p: Any,
    g: Any,
    v: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None:
    """
    RMSprop: v = rho v + (1 - rho) g^2, p = p - lr g / (sqrt(v) + eps).

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    v : like `p`
        State, of the shape of the parameter, zeros before the first update; updated in place.
    lr, rho, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Tieleman & Hinton 2012, lecture 6.5.
    """
    _cpu.update(
        _number["rmsprop"],
        (p, g, v),
        _packed("rmsprop", lr, rho, eps, eps_mode, **options),
        1,
        1.0,
    )


def rmsprop_centered(
    p: Any,
    g: Any,
    v: Any,
    m: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    **options: Unpack[Options],
) -> None:
    """
    Centered RMSprop: as `rmsprop`, with m = rho m + (1 - rho) g and v - m^2 under the root.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    v, m : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    lr, rho, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Graves 2013.
    """
    _cpu.update(
        _number["rmsprop_centered"],
        (p, g, v, m),
        _packed("rmsprop_centered", lr, rho, eps, eps_mode, **options),
        1,
        1.0,
    )


def rmsprop_momentum(
    p: Any,
    g: Any,
    v: Any,
    b: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None:
    """
    RMSprop with momentum: as `rmsprop`, with b = momentum b + g / (sqrt(v) + eps), p = p - lr b.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    v, b : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    lr, rho, eps, eps_mode, momentum, velocity
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Tieleman & Hinton 2012, lecture 6.5.
    """
    _cpu.update(
        _number["rmsprop_momentum"],
        (p, g, v, b),
        _packed("rmsprop_momentum", lr, rho, eps, eps_mode, momentum, velocity, **options),
        1,
        1.0,
    )


def rmsprop_centered_momentum(
    p: Any,
    g: Any,
    v: Any,
    m: Any,
    b: Any,
    *,
    lr: float,
    rho: float = 0.99,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum: float = 0.9,
    velocity: Literal["grad", "step"] = "grad",
    **options: Unpack[Options],
) -> None:
    """
    Centered RMSprop with momentum: `rmsprop_centered` and `rmsprop_momentum` together.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    v, m, b : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    lr, rho, eps, eps_mode, momentum, velocity
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Graves 2013.
    """
    _cpu.update(
        _number["rmsprop_centered_momentum"],
        (p, g, v, m, b),
        _packed("rmsprop_centered_momentum", lr, rho, eps, eps_mode, momentum, velocity, **options),
        1,
        1.0,
    )


def adadelta(
    p: Any,
    g: Any,
    v: Any,
    x: Any,
    *,
    lr: float,
    rho: float = 0.9,
    eps: float = 1e-6,
    **options: Unpack[Options],
) -> None:
    """
    Adadelta: v = rho v + (1 - rho) g^2, d = sqrt((x + eps) / (v + eps)) g, x = rho x + (1 - rho) d^2, p = p - lr d.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    v, x : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    lr, rho, eps
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Zeiler 2012, Algorithm 1.
    """
    _cpu.update(_number["adadelta"], (p, g, v, x), _packed("adadelta", lr, rho, eps, **options), 1, 1.0)


def adam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    **options: Unpack[Options],
) -> None:
    """
    Adam: m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, p = p - lr m' / (sqrt(v') + eps).

    m' and v' are m and v freed of their bias: divided by 1 - beta1^t and 1 - beta2^t.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    m, v : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    t : int
        Number of this update, 1 for the first.
    lr, beta1, beta2, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Kingma & Ba 2015, Algorithm 1.
    """
    _cpu.update(
        _number["adam"],
        (p, g, m, v),
        _packed("adam", lr, beta1, beta2, eps, eps_mode, **options),
        t,
        1.0,
    )


def amsgrad(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    w: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_mode: Literal["outside", "hat", "inside"] = "outside",
    **options: Unpack[Options],
) -> None:
    """
    AMSGrad: as `adam`, with w = max(w, v) in place of v under the root.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    m, v, w : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    t : int
        Number of this update, 1 for the first.
    lr, beta1, beta2, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Reddi, Kale & Kumar 2018, Algorithm 2.
    """
    _cpu.update(
        _number["amsgrad"],
        (p, g, m, v, w),
        _packed("amsgrad", lr, beta1, beta2, eps, eps_mode, **options),
        t,
        1.0,
    )


def adamax(
    p: Any,
    g: Any,
    m: Any,
    w: Any,
    *,
    t: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    eps_mode: Literal["max", "outside"] = "max",
    **options: Unpack[Options],
) -> None:
    """
    Adamax: m = beta1 m + (1 - beta1) g, w = max(beta2 w, abs(g) + eps), p = p - lr / (1 - beta1^t) m / w.

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    m, w : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    t : int
        Number of this update, 1 for the first.
    lr, beta1, beta2, eps, eps_mode
        As for the class.
    **options
        Those of `Options`.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Kingma & Ba 2015, Algorithm 2.
    """
    _cpu.update(
        _number["adamax"],
        (p, g, m, w),
        _packed("adamax", lr, beta1, beta2, eps, eps_mode, **options),
        t,
        1.0,
    )


def nadam(
    p: Any,
    g: Any,
    m: Any,
    v: Any,
    *,
    t: int,
    product: float,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    schedule_decay: float = 0.004,
    **options: Unpack[Options],
) -> float:
    """
    Nadam: Adam with Nesterov momentum and the momentum schedule mu_t = beta1 (1 - 0.5 * 0.96^(schedule_decay t)).

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    m, v : like `p`
        States, of the shape of the parameter, zeros before the first update; updated in place.
    t : int
        Number of this update, 1 for the first.
    product : float
        Product of the momenta mu_1 ... mu_(t-1): 1 for the first update, then what the last one returned.
    lr, beta1, beta2, eps, schedule_decay
        As for the class.
    **options
        Those of `Options`.

    Returns
    -------
    float
        Product of the momenta mu_1 ... mu_t.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Dozat 2016.
    """
    if isinstance(product, bool) or not isinstance(product, Real):
        raise TypeError(f"product is {product!r}, expected a number")
    if not 0 <= product <= 1:
        raise ValueError(f"product is {product!r}, expected 0 <= product <= 1")
    return _cpu.update(
        _number["nadam"],
        (p, g, m, v),
        _packed("nadam", lr, beta1, beta2, eps, schedule_decay, **options),
        t,
        product,
    )


def lion(
    p: Any,
    g: Any,
    m: Any,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.99,
    **options: Unpack[LionOptions],
) -> None:
    """
    Lion: c = beta1 m + (1 - beta1) g, m = beta2 m + (1 - beta2) g, p = p - lr sign(c).

    Parameters
    ----------
    p : array or list of arrays
        Parameter, of any shape, C-contiguous, writable; updated in place.
    g : like `p`
        Gradient, of the shape of its parameter; only read, unless `zero_grad`.
    m : like `p`
        State, of the shape of the parameter, zeros before the first update; updated in place.
    lr, beta1, beta2
        As for the class.
    **options
        Those of `LionOptions`; weight decay is always decoupled.

    Raises
    ------
    TypeError, ValueError, BufferError, RuntimeError
        For the reasons at the top of this module; nothing has been changed.

    References
    ----------
    Chen et al. 2023.
    """
    packed = _packed("lion", lr, beta1, beta2, **options)
    _cpu.update(_number["lion"], (p, g, m), packed, 1, 1.0)
