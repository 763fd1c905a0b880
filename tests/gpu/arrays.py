"""Arrays on the host and on a GPU, and how they are compared."""

import numpy as np

from fusedstep.tools import verify

F32 = np.float32


def host(array):
    """Return an array in host memory."""
    return array if isinstance(array, np.ndarray) else array.get()


def same(a, b):
    """Return whether two arrays are equal, bit for bit, wherever they are."""
    return verify.difference([host(a)], [host(b)]) == 0


def pairs(cupy, *sizes, dtype=F32, seed=0):
    """Return arrays of random numbers on the host, and copies on the GPU."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n).astype(dtype) for n in sizes]
    return arrays, [cupy.asarray(array) for array in arrays]


class Foreign:
    """An array that offers its memory in the way that all libraries share, and no more."""

    def __init__(self, array, **changes):
        self.array, self.changes = array, changes

    @property
    def __cuda_array_interface__(self):
        interface = dict(self.array.__cuda_array_interface__, stream=None)
        changes = {name: change(interface) if callable(change) else change for name, change in self.changes.items()}
        return {name: value for name, value in (interface | changes).items() if value is not ...}
