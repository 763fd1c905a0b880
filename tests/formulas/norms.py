"""The norm of gradients once more from its definition: loops over Python's floats."""

import math

from tests.formulas.arrays import F32, F64


def added_up(x):
    while True:
        sums = []
        for start in range(0, len(x), 1024):
            lane = [0.0] * 32
            for i, value in enumerate(x[start : start + 1024]):
                lane[i % 32] = lane[i % 32] + value
            for h in (16, 8, 4, 2, 1):
                for j in range(h):
                    lane[j] = lane[j] + lane[j + h]
            sums.append(lane[0])
        x = sums
        if len(x) <= 1:
            return x[0] if x else 0.0


def squares(g):
    tiny = 2.0**-126 if g.dtype == F32 else 0.0
    return [x * x if abs(x) >= tiny else 0.0 for x in g.astype(F64).reshape(-1).tolist()]


def sum_of_squares(g):
    return added_up(squares(g))


def norm(grads, scale=1.0):
    return math.sqrt(added_up([sum_of_squares(g) for g in grads if g is not None])) * abs(scale)
