"""
A program for ranks: training runs of many kinds, and files of them.

usage: synchronous_ranks.py FOLDER SEED NAME ... The names are those of `cases`, or "files". Each rank writes digests of
what it has got to the file RANK.json.
"""

import json
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import ml_dtypes
import numpy as np

import fusedstep as fs
from fusedstep import distributed
from tests.distributed.synchronous_runs import PARTS, Run, adamw, parameters, snapshot, values

BF16 = ml_dtypes.bfloat16
SIZES = {"W": (311, 257), "b": (257,), "scale": (), "V": (7, 3, 5), "none": (0, 3), "last": (1025,)}
RANKS = range(1, 5)
STEPS, SAVED = 3, 2  # of a run, and before a file is saved


@fs.rule(states="m s")
def belief(g, m, s, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-16):
    """Return a step of AdaBelief."""
    m = beta1 * m + (1 - beta1) * g
    d = g - m
    s = beta2 * s + (1 - beta2) * (d * d) + eps
    return lr * fs.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (fs.sqrt(s) + eps), m, s


def first(dtype=np.float32):
    return parameters(dtype, SIZES)


def fortran():
    """Return parameters whose axes lie in other orders in memory."""
    made = first()
    return made | {"W": np.asfortranarray(made["W"]), "V": np.ascontiguousarray(made["V"].transpose(2, 0, 1))}


numbers = cache(values)


class Case(Run):
    """A run of three steps, whose numbers are made once for all runs."""

    def __init__(self, make, params=first, **options):
        super().__init__(make, params, steps=STEPS, **options)

    def gradient(self, params, step, part):
        grads = {key: numbers(p.shape, (k, step, part), p.dtype).copy() for k, (key, p) in enumerate(params.items())}
        return self.change(grads, (step, part))


def spoiled(seed):
    """Return what puts a NaN somewhere into the gradient of one part of one step."""
    random = Random(seed)
    where, place = (random.randrange(STEPS), random.randrange(PARTS)), random.randrange(311 * 257)

    def change(grads, at):
        if at == where:
            grads["W"].reshape(-1)[place] = np.nan
        return grads

    return change


def cases(seed):
    options = {"clip_global_norm": 0.5, "ema": 0.9, "overrides": {"b": {"weight_decay": 0.0}, "V": {"lr": 0.5}}}
    return {
        "options": Case(lambda: fs.AdamW(lr=fs.schedules.cosine(1e-2, 3), **options)),
        "split": Case(adamw(master_weights="split", clip_global_norm=0.5), lambda: first(BF16)),
        "stochastic": Case(adamw(rounding="stochastic", seed=5), lambda: first(BF16)),
        "complex": Case(adamw(clip_norm=0.5), lambda: first(np.complex64)),
        "fortran": Case(adamw(clip_global_norm=0.5), fortran),
        "rule": Case(lambda: belief(lr=1e-2, weight_decay=0.01)),
        "skip": Case(adamw(skip_nonfinite=True, clip_global_norm=0.5), change=spoiled(seed)),
    }


def digests(found, results=()):
    """Return the bits of a run as short texts, by what they are the bits of."""
    bits, *numbers = found
    texts = {" ".join(map(str, name)): sha256(data).hexdigest()[:16] for name, data in bits.items()}
    return texts | {"numbers": repr(numbers), "results": repr(list(results))}


def begun(run, world):
    params = run.params()
    return params, distributed.Synchronous(run.make(), world, parts=run.parts)


def files(run, folder):
    """Let 1 to 4 of four ranks save files, and 1 to 4 of them go on from each; return digests of all ends."""
    from mpi4py import MPI

    from fusedstep.distributed.mpi import MPIWorld

    all_, found = MPI.COMM_WORLD, {}
    comms = {size: all_.Split(0 if all_.rank < size else MPI.UNDEFINED, all_.rank) for size in RANKS}
    worlds = {size: MPIWorld(comm, timeout=60) for size, comm in comms.items() if comm != MPI.COMM_NULL}
    for size, world in worlds.items():
        params, opt = begun(run, world)
        run.on(world, SAVED, opt, params)
        distributed.save(folder / f"{size}.npz", opt, params, extra={"done": SAVED})
    all_.Barrier()
    for size, world in worlds.items():
        for before in RANKS:
            params, opt = begun(run, world)
            done = distributed.load(folder / f"{before}.npz", opt, params)["done"]
            found[f"{before} {size}"] = digests(run.on(world, None, opt, params, done)[0])
    return found


def one_file(run, path):
    """Write the file of one process."""
    params, opt = run.params(), run.make()
    for k in range(SAVED):
        opt.step(params, run.sum(params, k), grad_scale=1 / run.parts)
    fs.save(path, opt, params, extra={"done": SAVED})
    return snapshot(params, opt.state_dict())


def main(folder, seed, *names):
    world, runs, folder = distributed.world(), cases(int(seed)), Path(folder)
    world.timeout = 60
    found = {
        name: files(runs["options"], folder) if name == "files" else digests(*runs[name].on(world)) for name in names
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
