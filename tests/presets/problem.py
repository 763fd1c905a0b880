"""
The problem on which presets are compared with the optimizers of other libraries: 100 updates of 52 elements.

All of its numbers are made of integers, so that any program makes the same ones. The gradient pulls towards a center,
so that differences feed back. Learning rates are constant or change in every update: only the latter tells a velocity
that collects steps from one that collects gradients.
"""

import numpy as np

SHAPES = {"w": (8, 5), "b": (12,)}
UPDATES = 100
RATES = {"constant": None, "changing": [0.05 / (1 + t % 5) for t in range(UPDATES)]}


def numbers(low, high, k):
    """Return a flat array of 52 numbers from `low` to `high`, another one for each integer k."""
    i = np.arange(52, dtype=np.uint64) + np.uint64(52 * k + 1)
    return low + (high - low) * ((i * i * np.uint64(2654435761) + i * np.uint64(40503)) % 2**32 / 2**32)


START, CENTER = numbers(2, 3, 0), numbers(2, 3, 1)
NOISE = [numbers(-1, 1, t) + numbers(-1, 1, t + UPDATES) + numbers(-1, 1, t + 2 * UPDATES) for t in range(2, 102)]


def cut(flat):
    """Return new arrays with the numbers of a flat one, by name."""
    return {"w": flat[:40].reshape(SHAPES["w"]).copy(), "b": flat[40:].copy()}


def joined(params):
    """Return a new flat array, in float64, with the numbers of arrays by name."""
    return np.concatenate([np.asarray(params[name], np.float64).ravel() for name in SHAPES])


def path(step, rates=None, dtype=np.float64):
    """
    Return the parameters after each update, flat.

    Parameters
    ----------
    step : callable
        Given parameters and gradients, both arrays by name, and a learning rate, returns the new parameters.
    rates : list of float, optional
        Learning rates; without them, None is given.
    dtype : dtype
        That of the arrays.
    """
    params, points = cut(START.astype(dtype)), []
    for t in range(UPDATES):
        grad = NOISE[t] + 0.3 * (joined(params) - CENTER)
        params = step(params, cut(grad.astype(dtype)), rates[t] if rates else None)
        points.append(joined(params))
    return np.array(points)


def steps_of(opt):
    """Return the function `step` of an optimizer of ours."""

    def step(params, grads, rate):
        if rate is not None:
            opt.lr = rate
        opt.step(params, grads)
        return params

    return step


def distance(a, b, dtype=np.float64):
    """Return the largest difference of two arrays in units in the last place of the larger number, or of 1."""
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), 1).astype(dtype)
    return float(np.max(np.abs(a - b) / np.spacing(scale)))
