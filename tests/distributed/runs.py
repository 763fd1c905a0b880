"""Small asynchronous runs: parameters, a gradient that depends on all that it may, and workers."""

import time

import numpy as np

SIZES = {"w": (40, 33), "b": (33,), "scale": (), "v": (7, 3, 5), "empty": (0, 4), "last": (1025,)}


def first(dtype="float32", keys=None):
    """Return first parameters, the same at each call."""
    rng = np.random.default_rng(11)
    arrays = {key: np.asarray(rng.standard_normal(shape)).astype(dtype) for key, shape in SIZES.items()}
    return arrays if keys is None else {key: arrays[key] for key in keys}


def gradient(params, worker, step):
    """Return gradients that are another function of the parameters for each worker and step."""
    shift = 0.01 * ((worker * 31 + step * 7) % 13) - 0.05
    return {key: (p * p.dtype.type(0.5) + np.asarray(shift, p.dtype)).astype(p.dtype) for key, p in params.items()}


def worker(steps, dtype="float32", naps=0.0):
    """Return what a worker does: so many steps, with random naps in between so that orders are of many kinds."""

    def work(opt):
        params = first(dtype)
        rng = np.random.default_rng(opt.worker)
        for step in range(steps):
            assert opt.done == step
            opt.pull(params)
            if naps:
                time.sleep(naps * rng.random())
            opt.push(gradient(params, opt.worker, step))
        return opt.worker

    return work


def same_bits(some, other):
    """Return whether containers of arrays have the same bytes under the same keys."""
    return some.keys() == other.keys() and all(
        a.dtype == other[key].dtype and a.shape == other[key].shape and a.tobytes() == other[key].tobytes()
        for key, a in some.items()
    )
