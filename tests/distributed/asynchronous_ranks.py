"""A program for ranks of MPI: a run and its replay. Its arguments are shards, staleness or -, and what goes wrong."""

import sys
import time

import numpy as np

import fusedstep as fs
from fusedstep import distributed
from tests.distributed.runs import first, gradient, same_bits


class World:
    """The ranks of MPI, for what `Asynchronous` asks of a world."""

    def __init__(self):
        from mpi4py import MPI

        self.rank, self.size = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def large():
    """Return first parameters with arrays of a message of their own, one of them in Fortran's order."""
    rng = np.random.default_rng(5)
    own = {"large": rng.standard_normal(30_000, np.float32), "other": rng.standard_normal((300, 200), np.float32)}
    return first() | own


def main(shards, staleness, wrong):
    world, params = World(), large()
    params["other"] = np.asfortranarray(params["other"])
    bound = None if staleness == "-" else int(staleness)
    if wrong == "params" and world.rank == 1:
        params["b"][3] += 1

    def make():
        if wrong == "lr":
            return fs.Adam(lr=lambda t: 0.1 if t < 4 else -1.0)
        return fs.Adam(lr=0.05, ema=0.9, clip_norm=1.0)

    timeout = 1 if wrong == "slow" else 30
    opt = distributed.Asynchronous(make(), world, params, shards=int(shards), staleness=bound, timeout=timeout)
    assert opt.serves == (world.rank >= world.size - int(shards))

    def work(mine):
        assert mine is opt
        for step in range(12):
            mine.pull(params)
            if wrong == "raise" and world.rank == 0 and step == 5:
                raise ArithmeticError("no gradient")
            if wrong == "slow" and world.rank == 0 and step == 5:
                time.sleep(3)
            mine.push(gradient(params, mine.worker, step))
            if wrong == "leave" and world.rank == 0 and step == 5:
                mine.leave()
                return "left"
        return mine.worker

    result = opt.run(work)
    assert result == (None if opt.serves else "left" if wrong == "leave" and world.rank == 0 else world.rank)
    again = large()
    distributed.replay(opt.log(), make(), again, gradient)
    assert same_bits(again, params), "the replay has other bits"
    print(f"rank {world.rank} has equal bits", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
