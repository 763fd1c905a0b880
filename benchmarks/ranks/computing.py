"""
What ranks compute in a step, all at once, each on one thread; a rank by itself also on all threads.

The last line of the output is the bytes per second of the slowest rank.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.tools.bench.machine import processors

COMM = MPI.COMM_WORLD
N = 10**7  # elements of an array
REPEATS = 7


def least(step: Callable[[], Any], calls: int = 1) -> float:
    """Return the seconds of a call on the slowest rank, in the fastest of some repeats."""
    seconds = []
    for _ in range(REPEATS):
        COMM.Barrier()
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        seconds.append((time.perf_counter() - begin) / calls)
    return min(COMM.allreduce(each, MPI.MAX) for each in seconds)


def computing() -> dict[str, float]:
    """Return bytes per second of Adam, of sums in order, and of sums of squares, beyond the cache."""
    arrays = [np.random.default_rng(i).random(N, np.float32) for i in range(9)]
    out, found, opt = arrays.pop(), {}, fs.Adam()
    for name, threads in {"adam": 1, "adam, all threads": processors()}.items():
        if threads == 1 or COMM.size == 1:
            fs.set_num_threads(threads)
            opt.step(out, arrays[0])
            found[name] = 28 * N / least(lambda: opt.step(out, arrays[0]))
    for count in (2, 4, 8):
        found[f"sum of {count}"] = 4 * (count + 1) * N / least(lambda k=count: _cpu.sum_parts(arrays[:k], out))
    found["squares"] = 4 * N / least(lambda: _cpu.sums_of_blocks(out))
    sums = np.ones(N // 10)
    found["fold"] = sums.nbytes / least(lambda: _cpu.sum_of_sums(sums))
    return found


if __name__ == "__main__":
    result = computing()
    if COMM.rank == 0:
        print(json.dumps(result))
