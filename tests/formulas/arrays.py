"""Arrays, grids of the tests, and how results are compared."""

import math
from collections.abc import Mapping

import numpy as np
import pytest

import fusedstep as fs
from fusedstep import reference
from fusedstep.tools import verify

F32, F64 = np.float32, np.float64
BOTH = pytest.mark.parametrize("dtype", verify.DTYPES)
MODULES = pytest.mark.parametrize("module", [fs, reference], ids=["kernel", "reference"])
NORMS = ("clip_norm", "clip_global_norm")
CLIPS = ("clip_value", *NORMS)


def normal(n, dtype=F32, seed=0):
    return np.random.default_rng([seed, n]).standard_normal(n).astype(dtype)


def same(found, expected):
    return verify.difference(list(found), list(expected)) == 0


def bits(x):
    """Everything about what may be compared: arrays as bytes, and keys in their order."""
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    if isinstance(x, Mapping):
        return [(key, bits(value)) for key, value in x.items()]
    return [bits(value) for value in x] if isinstance(x, (list, tuple)) else x


def copies(arrays):
    return [array.copy() for array in arrays]


def misaligned(array, shift=1):
    whole = np.zeros(array.size + shift, array.dtype)
    whole[shift:] = array
    return whole[shift:]


# Gradients that are not finite.

INF, NAN = math.inf, math.nan
