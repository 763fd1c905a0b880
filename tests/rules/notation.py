"""Functions in which the files of the optimizers write their formulas."""

import numpy as np

f32 = np.float32

# The gradients of every run that is compared number by number.
GRADIENTS = [0.5, -2.0, 0.25, 0.0, 1.5, -0.125, 3.0, 0.75]


def fading(beta, xs):
    """Return the sum of all x, each times beta once for every update since."""
    return sum(beta**age * x if age else x for age, x in enumerate(reversed(xs)))


def mean(beta, xs):
    """Return the exponential moving average of all x, which began at 0."""
    return (1 - beta) * fading(beta, xs)


def prefixes(xs):
    """Return the list of the first x, the list of the first two, and so on to the whole list."""
    return [xs[: t + 1] for t in range(len(xs))]


def squares(xs):
    return [x * x for x in xs]


def products(xs, ys):
    return [x * y for x, y in zip(xs, ys, strict=True)]


def root(x, eps, eps_mode):
    """Return the root of a decimal number with eps added to it or under it."""
    return {"outside": x.sqrt() + eps, "inside": (x + eps).sqrt()}[eps_mode]


def fused(a, b, c):
    """Return a*b + c, rounded once, as a contracting compiler makes it."""
    a, b, c = (np.asarray(x, np.longdouble) for x in (a, b, c))
    return (a * b + c).astype(f32)
