"""The rules of the engine once more, as functions. `RULES` has each beside the class that has it built in."""

from functools import partial
from typing import Literal

import numpy as np

import fusedstep as fs
from fusedstep.core.hyperparameters import rational_power

__all__ = ["RULES", "adam"]


@fs.rule()
def sgd(g, *, lr=0.01):
    return lr * g


@fs.rule(states="b")
def momentum(
    g,
    b,
    *,
    t,
    lr=0.01,
    momentum=0.9,
    dampening=0.0,
    dampen_first=False,
    velocity: Literal["grad", "step"] = "grad",
):
    k = 1 - dampening if dampen_first else np.where(t == 1, 1.0, 1 - dampening)
    if velocity == "step":
        b = momentum * b + (k * lr) * g
        return b, b
    b = momentum * b + k * g
    return lr * b, b


@fs.rule(states="b")
def nag(g, b, *, lr=0.01, momentum=0.9, velocity: Literal["grad", "step"] = "grad"):
    q = lr * g if velocity == "step" else g
    b = momentum * b + q
    u = q + momentum * b
    return (u if velocity == "step" else lr * u), b


def over(v, eps, eps_mode):
    return fs.sqrt(v + eps) if eps_mode == "inside" else fs.sqrt(v) + eps


@fs.rule(states="a")
def adagrad(g, a, *, lr=0.01, eps=1e-10, eps_mode: Literal["outside", "inside"] = "outside"):
    a = a + g * g
    return lr * g / over(a, eps, eps_mode), a


def mean_square(g, v, rho):
    return rho * v + (1 - rho) * (g * g)


def variance(g, v, m, rho):
    v = mean_square(g, v, rho)
    m = rho * m + (1 - rho) * g
    d = v - m * m
    return np.where(d < 0, 0.0, d), v, m


@fs.rule(states="v")
def rmsprop(g, v, *, lr=0.01, rho=0.99, eps=1e-8, eps_mode: Literal["outside", "inside"] = "outside"):
    v = mean_square(g, v, rho)
    return lr * g / over(v, eps, eps_mode), v


@fs.rule(states="v m")
def rmsprop_centered(g, v, m, *, lr=0.01, rho=0.99, eps=1e-8, eps_mode: Literal["outside", "inside"] = "outside"):
    d, v, m = variance(g, v, m, rho)
    return lr * g / over(d, eps, eps_mode), v, m


@fs.rule(states="v b")
def rmsprop_momentum(
    g,
    v,
    b,
    *,
    lr=0.01,
    rho=0.99,
    eps=1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum=0.0,
    velocity: Literal["grad", "step"] = "grad",
):
    v = mean_square(g, v, rho)
    b = momentum * b + (lr * g if velocity == "step" else g) / over(v, eps, eps_mode)
    return (b if velocity == "step" else lr * b), v, b


@fs.rule(states="v m b")
def rmsprop_centered_momentum(
    g,
    v,
    m,
    b,
    *,
    lr=0.01,
    rho=0.99,
    eps=1e-8,
    eps_mode: Literal["outside", "inside"] = "outside",
    momentum=0.0,
    velocity: Literal["grad", "step"] = "grad",
):
    d, v, m = variance(g, v, m, rho)
    b = momentum * b + (lr * g if velocity == "step" else g) / over(d, eps, eps_mode)
    return (b if velocity == "step" else lr * b), v, m, b


@fs.rule(states="v x")
def adadelta(g, v, x, *, lr=1.0, rho=0.9, eps=1e-6):
    v = mean_square(g, v, rho)
    d = fs.sqrt((x + eps) / (v + eps)) * g
    return lr * d, v, mean_square(d, x, rho)


def adam_numbers(t, lr, beta1, beta2, eps, eps_mode):
    c1, c2 = 1 - beta1**t, fs.sqrt(1 - beta2**t)
    inside = eps * c2 * c2 if eps_mode == "inside" else 0.0
    outside = {"outside": eps * c2, "hat": eps, "inside": 0.0}[eps_mode]
    return lr * c2 / c1, inside, outside


def moments(g, m, v, beta1, beta2):
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * (g * g)


Mode = Literal["outside", "hat", "inside"]


@fs.rule(states="m v")
def adam(g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode: Mode = "outside"):
    step, inside, outside = adam_numbers(t, lr, beta1, beta2, eps, eps_mode)
    m, v = moments(g, m, v, beta1, beta2)
    return step * m / (fs.sqrt(v + inside) + outside), m, v


@fs.rule(states="m v w")
def amsgrad(g, m, v, w, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode: Mode = "outside"):
    step, inside, outside = adam_numbers(t, lr, beta1, beta2, eps, eps_mode)
    m, v = moments(g, m, v, beta1, beta2)
    w = np.maximum(w + 0.0, v)
    return step * m / (fs.sqrt(w + inside) + outside), m, v, w


@fs.rule(states="m w")
def adamax(g, m, w, *, t, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_mode: Literal["max", "outside"] = "max"):
    m = beta1 * m + (1 - beta1) * g
    w = np.maximum(beta2 * w, abs(g) + (eps if eps_mode == "max" else 0.0))
    return lr / (1 - beta1**t) * m / (w + (eps if eps_mode == "outside" else 0.0)), m, w


@fs.rule(states="m v", memory={"product": 1.0})
def nadam(g, m, v, *, t, product, lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, decay_base=0.5):
    mu, mu_next = (beta1 * (1 - 0.5 * decay_base**n) for n in (t, t + 1))
    product = product * mu
    c2 = fs.sqrt(1 - beta2**t)
    m, v = moments(g, m, v, beta1, beta2)
    m_gain = lr * mu_next / (1 - product * mu_next) * c2
    g_gain = lr * (1 - mu) / (1 - product) * c2
    return (m_gain * m + g_gain * g) / (fs.sqrt(v) + eps * c2), m, v, product


@fs.rule(states="m v")
def radam(g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    b2 = beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2.0 * t * b2 / (1 - b2)
    c1 = 1 - beta1**t
    r = fs.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    step = np.where(rho > 5, lr * r * fs.sqrt(1 - b2) / c1, lr / c1)
    m, v = moments(g, m, v, beta1, beta2)
    deviation = np.where(rho > 5, fs.sqrt(v), 0.0)
    return step * m / (deviation + np.where(rho > 5, eps, 1.0)), m, v


@fs.rule(states="m s")
def adabelief(g, m, s, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16):
    m = beta1 * m + (1 - beta1) * g
    d = g - m
    s = beta2 * s + (1 - beta2) * (d * d) + eps
    c2 = fs.sqrt(1 - beta2**t)
    return lr * c2 / (1 - beta1**t) * m / (fs.sqrt(s) + eps * c2), m, s


@fs.rule(states="m", decoupled=True)
def lion(g, m, *, lr=1e-4, beta1=0.9, beta2=0.99):
    c = beta1 * m + (1 - beta1) * g
    return lr * np.sign(c), beta2 * m + (1 - beta2) * g


# What a class made of a function is given, where its built-in class is given options; None where these ask for another
# rule, or for a state that starts at another number.


def same(options):
    return options


def without_momentum(options, *, centered):
    asked, others = options.get("centered", False), {"centered", "momentum", "velocity"}
    if asked != centered or options.get("momentum", 0.0) != 0:
        return None
    return {name: value for name, value in options.items() if name not in others}


def with_momentum(options, *, centered):
    if options.get("centered", False) != centered or options.get("momentum", 0.0) == 0:
        return None
    return {name: value for name, value in options.items() if name != "centered"}


def of_adam(options, *, amsgrad, **defaults):
    given = defaults | options
    return given if given.pop("amsgrad", False) == amsgrad else None


def of_nadam(options):
    given = dict(options)
    return given | {"decay_base": rational_power(0.96, given.pop("schedule_decay", 0.004))}


W = {"weight_decay": 0.01, "decoupled": True}  # of AdamW
RULES = [
    (fs.SGD, sgd, same),
    (fs.Momentum, momentum, same),
    (fs.NAG, nag, same),
    (fs.Adagrad, adagrad, same),
    (fs.RMSprop, rmsprop, partial(without_momentum, centered=False)),
    (fs.RMSprop, rmsprop_centered, partial(without_momentum, centered=True)),
    (fs.RMSprop, rmsprop_momentum, partial(with_momentum, centered=False)),
    (fs.RMSprop, rmsprop_centered_momentum, partial(with_momentum, centered=True)),
    (fs.Adadelta, adadelta, same),
    (fs.Adam, adam, partial(of_adam, amsgrad=False)),
    (fs.Adam, amsgrad, partial(of_adam, amsgrad=True)),
    (fs.AdamW, adam, partial(of_adam, amsgrad=False, **W)),
    (fs.AdamW, amsgrad, partial(of_adam, amsgrad=True, **W)),
    (fs.Adamax, adamax, same),
    (fs.Nadam, nadam, of_nadam),
    (fs.RAdam, radam, same),
    (fs.AdaBelief, adabelief, same),
    (fs.Lion, lion, same),
]
