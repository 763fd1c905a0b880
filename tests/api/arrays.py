"""Arrays to make arguments of."""

import numpy as np

F32 = np.float32


def ones(n=8, dtype=F32):
    return np.ones(n, dtype)


def unaligned(n=8, dtype=F32):
    itemsize = np.dtype(dtype).itemsize
    return np.zeros(n * itemsize + 1, np.uint8)[1:].view(dtype)


def read_only(n=8):
    a = ones(n)
    a.flags.writeable = False
    return a
