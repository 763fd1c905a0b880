"""Training runs of any number of ranks, and the run of one process that they must equal."""

from itertools import islice

import numpy as np

import fusedstep as fs
from fusedstep import _cpu, distributed
from fusedstep.core.containers import arrays_by_key
from fusedstep.distributed.tree import parts_of

F32 = np.float32
PARTS = 8
SHAPES = {"W": (60, 70), "b": (70,), "scale": (), "V": (70, 33), "none": (0, 3)}


def values(shape, seed, dtype=F32):
    """Return numbers of many sizes, subnormal ones among them."""
    rng = np.random.default_rng(seed)
    made = rng.standard_normal(shape) * np.exp(rng.uniform(-95, 1, shape) * (rng.random(shape) < 0.1))
    if np.dtype(dtype).kind == "c":
        made = made + 1j * rng.standard_normal(shape)
    return np.asarray(made, dtype)


def parameters(dtype=F32, shapes=SHAPES):
    return {key: values(shape, [k, 0], dtype) for k, (key, shape) in enumerate(shapes.items())}


class Run:
    """
    A run: how its optimizer is made, its first parameters, and the gradient of a part of a step.

    With one gradient that is not finite, or without one, as the tests need it. `given` makes of a container what is
    handed over.
    """

    def __init__(
        self,
        make,
        params=parameters,
        *,
        steps=4,
        parts=PARTS,
        grad_dtype=None,
        change=lambda grads, at: grads,
        given=lambda grads: grads,
        **options,
    ):
        self.make, self.params, self.steps, self.parts = make, params, steps, parts
        self.grad_dtype, self.change, self.given, self.options = grad_dtype, change, given, options

    def gradient(self, params, step, part):
        leaves = arrays_by_key(params)
        grads = {
            key: values(p.shape, [k, 1 + step, part], self.grad_dtype or p.dtype)
            for k, (key, p) in enumerate(leaves.items())
        }
        return self.change(grads, (step, part))

    def alone(self):
        """Return what one process gets, whose gradient is the sum of the balanced tree."""
        params, opt = self.params(), self.make()
        results = [opt.step(params, self.sum(params, k), grad_scale=1 / self.parts) for k in range(self.steps)]
        return snapshot(params, opt.state_dict()), results

    def sum(self, params, step):
        gradients = [self.gradient(params, step, part) for part in range(self.parts)]
        found = {}
        for key, first in gradients[0].items():
            if first is None:
                continue
            wide = first.real.dtype if first.real.dtype == np.float64 else np.dtype(F32)
            reals = [np.ascontiguousarray(g[key]).reshape(-1) for g in gradients]
            reals = [r.view(r.real.dtype) if r.dtype.kind == "c" else r for r in reals]
            if "exchange_dtype" in self.options and first.real.dtype != np.float64 and first.dtype.kind != "c":
                reals = [r.astype(self.options["exchange_dtype"]) for r in reals]
            out = np.empty(reals[0].size, wide)
            _cpu.sum_parts(reals, out)
            found[key] = out.view(first.dtype if first.dtype.kind == "c" else wide).reshape(first.shape)
        return found

    def on(self, world, steps=None, opt=None, params=None, first=0):
        """Return what a rank gets."""
        params = self.params() if params is None else params
        if opt is None:
            opt = distributed.Synchronous(self.make(), world, parts=self.parts, **self.options)
        own = parts_of(self.parts, world.rank, world.size)
        results = [
            opt.step(params, (self.given(self.gradient(params, k, part)) for part in own), grad_scale=1 / self.parts)
            for k in islice(range(first, self.steps), steps)
        ]
        return snapshot(params, opt.state_dict(params)), results


def snapshot(params, saved):
    """Return the bits of parameters and of a state dict, and the numbers in it."""
    bits = {("params", key): p.tobytes() for key, p in arrays_by_key(params).items()}
    for key, states in saved["state"].items():
        bits |= {("state", key, name): np.ascontiguousarray(a).tobytes() for name, a in states.items()}
    bits |= {("ema", key): np.ascontiguousarray(a).tobytes() for key, a in saved["ema"].items()}
    return bits, saved["t"], saved["memory"]


def assert_equal(run, size):
    """Assert that each of some ranks gets what one process gets."""
    (bits, *numbers), results = run.alone()
    for (found, *counts), seen in distributed.on_threads(size, run.on):
        assert found.keys() == bits.keys()
        assert [key for key in bits if found[key] != bits[key]] == []
        assert counts == numbers
        assert [repr(r) for r in seen] == [repr(r) for r in results]


def adamw(**options):
    return lambda: fs.AdamW(lr=1e-2, **options)
