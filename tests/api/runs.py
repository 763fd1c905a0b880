"""Runs that are saved and go on: how they begin, what is compared; as a program, the second half of each."""

import json
import math
import sys

import numpy as np

import fusedstep as fs
from fusedstep import schedules
from fusedstep.schedules.description import describe
from tests.api.formats import BFLOAT16

SHAPES = {"w": (5,), "layer/b": (2, 3), ("c", 0): (), None: (3, 0)}
DTYPES = {"w": np.float64, "layer/b": np.float32, ("c", 0): np.float32, None: np.float64}

# The parts of a run: two dtypes, mini-batches, a parameter that often lacks a gradient, and metrics for each plateau.


def plateaus(schedule):
    if isinstance(schedule, schedules.plateau):
        yield schedule
    for part in getattr(schedule, "schedules", [getattr(schedule, "inner", None)]):
        yield from plateaus(part) if part is not None else ()


def start(dtypes=DTYPES):
    params = {key: np.full(shape, 2, dtypes[key]) for key, shape in SHAPES.items()}
    return params, fs.minibatches(20, 3, seed=1)


def train(opt, params, batches, stop):
    rng = np.random.default_rng(0)
    targets = {key: rng.standard_normal((20, *p.shape)).astype(p.dtype) for key, p in params.items()}
    while batches.done < stop:
        for rows in batches:
            grads = {key: np.asarray((p - targets[key][rows]).sum(0) / p.dtype.type(3)) for key, p in params.items()}
            opt.step(params, {key: g for key, g in grads.items() if key != "layer/b" or batches.done % 3})
            if batches.done % 10 == 0:
                loss = math.fsum(abs(float(g)) for grad in grads.values() for g in grad.flat)
                for value in (opt.lr, *(some.get("lr") for some in opt.overrides.values())):
                    for plateau in plateaus(value):
                        plateau.observe(loss)
            if batches.done == stop:
                break


def rich_adam():
    lr = schedules.product(
        schedules.plateau(1.0, 0.7, patience=2), schedules.warmup(0.0, schedules.cosine(0.1, 900, 0.1), 40)
    )
    overrides = {
        "layer/*": {"weight_decay": schedules.exponential(0.1, 0.5, 100), "ema": None},
        "w": {"lr": schedules.plateau(0.01, 0.5, patience=1, cooldown=1), "beta1": 0.8},
    }
    return fs.Adam(lr, amsgrad=True, ema=schedules.cosine(0.9, 700, 0.5), clip_global_norm=1.5, overrides=overrides)


def rich_nadam():
    beta1 = schedules.sequential([0.5, schedules.polynomial(0.9, 0.7, 500)], [300])
    lr = schedules.plateau(0.05, 0.8, patience=3)
    return fs.Nadam(lr, beta1=beta1, schedule_decay=0.1, ema=0.99, l1=1e-3, overrides={("c", 0): {"lr": 1 / 3}})


def rich_rmsprop():
    return fs.RMSprop(schedules.inverse_time(0.1, 0.1), momentum=0.9, centered=True, skip_nonfinite=True, clip_norm=1)


def half_adam():
    overrides = {
        "w": {"master_weights": "split"},
        "layer/*": {"state_dtype": "same", "rounding": "stochastic"},
        ("c", 0): {"rounding": "stochastic", "seed": 2**53 - 1},
        None: {"master_weights": True, "state_dtype": "same"},
    }
    return fs.Adam(schedules.cosine(0.1, 150), ema=0.9, seed=7, overrides=overrides)


RUNS = {f"{i}-{cls.__name__}": (cls, 60, DTYPES) for i, cls in enumerate(fs.optimizers.classes())}
RUNS |= {"adam": (rich_adam, 1000, DTYPES), "nadam": (rich_nadam, 1000, DTYPES), "rmsprop": (rich_rmsprop, 200, DTYPES)}
if BFLOAT16:
    RUNS["half"] = (half_adam, 200, {"w": BFLOAT16, "layer/b": np.float16, ("c", 0): BFLOAT16, None: np.float16})


def frozen(value):
    """Return an object that is equal to another where all bits and types are, those of schedules' memory too."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, schedules.Schedule):
        return repr(describe(value, []))
    if hasattr(value, "items"):
        return {key: frozen(part) for key, part in value.items()}
    return value if callable(value) else repr(value)


def snapshot(opt, params=None):
    known = opt.__getstate__()
    known["state"] = {key: states for key, states in known["state"].items() if states}
    return frozen({"opt": known, "params": params or {}})


def resume(folder, ending):
    """Do the second half of each run, in a new process; once with an optimizer that has not begun."""
    empty = {"adam": fs.Adam, "nadam": fs.Nadam, "rmsprop": fs.RMSprop, "half": fs.Adam}
    for name, (make, steps, dtypes) in RUNS.items():
        for fresh in (make, empty.get(name, make)):
            opt, (params, batches) = fresh(), start(dtypes)
            batches.done = fs.load(f"{folder}/{name}{ending}", opt, params)["done"]
            train(opt, params, batches, steps)
            print(json.dumps([name, repr(snapshot(opt, params))]))


def trained(make=rich_adam, steps=25):
    opt, (params, batches) = make(), start()
    train(opt, params, batches, steps)
    return opt, params


if __name__ == "__main__":
    resume(*sys.argv[1:])
