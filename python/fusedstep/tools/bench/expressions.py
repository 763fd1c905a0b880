"""
Rules as one writes them in NumPy: statements about whole arrays, on one thread, or in CuPy on a GPU.

A function has the name of its rule, and computes it in the default dialect, in place. `o` holds the hyperparameters of
one parameter, and may keep numbers for the next update; `t` is the number of the update, from 1. A rule without a
function here is measured without this peer.
"""

from typing import Any

import numpy as np  # its functions pass arrays of CuPy on to CuPy

__all__ = [
    "adabelief",
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


def sgd(o: Any, t: int, p: Any, g: Any) -> None:
    """Update p."""
    p -= o.lr * g


def momentum(o: Any, t: int, p: Any, g: Any, b: Any) -> None:
    """Update p and b."""
    b *= o.momentum
    b += g
    p -= o.lr * b


def nag(o: Any, t: int, p: Any, g: Any, b: Any) -> None:
    """Update p and b."""
    b *= o.momentum
    b += g
    p -= o.lr * (g + o.momentum * b)


def adagrad(o: Any, t: int, p: Any, g: Any, a: Any) -> None:
    """Update p and a."""
    a += g**2
    p -= o.lr * g / (np.sqrt(a) + o.eps)


def rmsprop(o: Any, t: int, p: Any, g: Any, v: Any) -> None:
    """Update p and v."""
    v *= o.rho
    v += (1 - o.rho) * g**2
    p -= o.lr * g / (np.sqrt(v) + o.eps)


def rmsprop_centered(o: Any, t: int, p: Any, g: Any, v: Any, m: Any) -> None:
    """Update p, v and m."""
    v *= o.rho
    v += (1 - o.rho) * g**2
    m *= o.rho
    m += (1 - o.rho) * g
    p -= o.lr * g / (np.sqrt(np.maximum(v - m**2, 0)) + o.eps)


def rmsprop_momentum(o: Any, t: int, p: Any, g: Any, v: Any, b: Any) -> None:
    """Update p, v and b."""
    v *= o.rho
    v += (1 - o.rho) * g**2
    b *= o.momentum
    b += g / (np.sqrt(v) + o.eps)
    p -= o.lr * b


def rmsprop_centered_momentum(o: Any, t: int, p: Any, g: Any, v: Any, m: Any, b: Any) -> None:
    """Update p, v, m and b."""
    v *= o.rho
    v += (1 - o.rho) * g**2
    m *= o.rho
    m += (1 - o.rho) * g
    b *= o.momentum
    b += g / (np.sqrt(np.maximum(v - m**2, 0)) + o.eps)
    p -= o.lr * b


def adadelta(o: Any, t: int, p: Any, g: Any, v: Any, x: Any) -> None:
    """Update p, v and x."""
    v *= o.rho
    v += (1 - o.rho) * g**2
    d = np.sqrt((x + o.eps) / (v + o.eps)) * g
    x *= o.rho
    x += (1 - o.rho) * d**2
    p -= o.lr * d


def adam(o: Any, t: int, p: Any, g: Any, m: Any, v: Any) -> None:
    """Update p, m and v."""
    m *= o.beta1
    m += (1 - o.beta1) * g
    v *= o.beta2
    v += (1 - o.beta2) * g**2
    p -= o.lr / (1 - o.beta1**t) * m / (np.sqrt(v / (1 - o.beta2**t)) + o.eps)


def amsgrad(o: Any, t: int, p: Any, g: Any, m: Any, v: Any, w: Any) -> None:
    """Update p, m, v and w."""
    m *= o.beta1
    m += (1 - o.beta1) * g
    v *= o.beta2
    v += (1 - o.beta2) * g**2
    w[...] = np.maximum(w, v)
    p -= o.lr / (1 - o.beta1**t) * m / (np.sqrt(w / (1 - o.beta2**t)) + o.eps)


def adamax(o: Any, t: int, p: Any, g: Any, m: Any, w: Any) -> None:
    """Update p, m and w."""
    m *= o.beta1
    m += (1 - o.beta1) * g
    w[...] = np.maximum(o.beta2 * w, np.abs(g) + o.eps)
    p -= o.lr / (1 - o.beta1**t) * m / w


def nadam(o: Any, t: int, p: Any, g: Any, m: Any, v: Any) -> None:
    """Update p, m and v; `o.product` is the product of all mu so far."""
    mu, after = (o.beta1 * (1 - 0.5 * 0.96 ** (i * o.schedule_decay)) for i in (t, t + 1))
    o.product = mu if t == 1 else o.product * mu
    m *= o.beta1
    m += (1 - o.beta1) * g
    v *= o.beta2
    v += (1 - o.beta2) * g**2
    update = after / (1 - o.product * after) * m + (1 - mu) / (1 - o.product) * g
    p -= o.lr * update / (np.sqrt(v / (1 - o.beta2**t)) + o.eps)


def adabelief(o: Any, t: int, p: Any, g: Any, m: Any, s: Any) -> None:
    """Update p, m and s."""
    m *= o.beta1
    m += (1 - o.beta1) * g
    s *= o.beta2
    s += (1 - o.beta2) * (g - m) ** 2 + o.eps
    p -= o.lr / (1 - o.beta1**t) * m / (np.sqrt(s / (1 - o.beta2**t)) + o.eps)


def lion(o: Any, t: int, p: Any, g: Any, m: Any) -> None:
    """Update p and m."""
    p -= o.lr * np.sign(o.beta1 * m + (1 - o.beta1) * g)
    m *= o.beta2
    m += (1 - o.beta2) * g
