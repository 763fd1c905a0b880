"""
A small training that any number of ranks makes with the same bits, and that resumes from its own checkpoint.

usage: training.py CHECKPOINT STEPS [DEATH]. DEATH is "attempt,step,rank": there and then, that rank is killed.
"""

import hashlib
import os
import signal
import sys

import numpy as np
from mpi4py import MPI

import fusedstep as fs

PARTS = 12
ATTEMPT = int(os.environ["FUSEDSTEP_ATTEMPT"])


def gradient(params, step, part):
    rng = np.random.default_rng([step, part])
    return {key: p * 0.1 + rng.standard_normal(p.shape, np.float32) for key, p in params.items()}


def main(path, steps, death=""):
    world = MPI.COMM_WORLD
    params = {"w": np.linspace(-1, 1, 5000, dtype=np.float32).reshape(50, 100), "b": np.ones(7, np.float32)}
    opt = fs.AdamW(lr=1e-2, clip_global_norm=1.0)
    done = fs.load(path, opt, params)["done"] if os.path.exists(path) else 0
    print(f"attempt {ATTEMPT} rank {world.rank} of {world.size} from {done}")
    while done < steps:
        mine = range(PARTS * world.rank // world.size, PARTS * (world.rank + 1) // world.size)
        shares = world.allgather([gradient(params, done, part) for part in mine])
        parts = [part for share in shares for part in share]
        opt.step(params, {key: np.sum([part[key] for part in parts], axis=0) for key in params}, grad_scale=1 / PARTS)
        done += 1
        if death and [ATTEMPT, done, world.rank] == [int(number) for number in death.split(",")]:
            os.kill(os.getpid(), signal.SIGKILL)
        if done % 5 == 0 and world.rank == 0:
            fs.save(path, opt, params, extra={"done": done})
        world.Barrier()
    if world.rank == 0:
        print("digest", hashlib.sha256(b"".join(p.tobytes() for p in params.values())).hexdigest())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
