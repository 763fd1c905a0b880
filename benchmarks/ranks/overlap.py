"""
Gradients on their way while others are computed, measured by two ranks. The last line of the output is what was found.

"wire" is the messages of a step without anything else, of which "wire, gradients" can travel while a rank computes;
"computing" is the gradients alone, and "step" the step with gradients that are there.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import numpy as np
from mpi4py import MPI
from sides import COMM

import fusedstep as fs
from fusedstep import distributed

TENSORS, N = 8, 500_000
SECONDS = 0.018  # of the computing of a gradient
ROUNDS = 7


class Work:
    """Work of a processor that takes SECONDS where nobody disturbs it, and the interpreter's lock hardly ever."""

    def __init__(self) -> None:
        self.x = np.ones((300, 300), np.float32)
        self.calls = 1
        one = min(self.timed() for _ in range(20))
        self.calls = COMM.bcast(max(1, round(SECONDS / one)))

    def timed(self) -> float:
        begin = time.perf_counter()
        self()
        return time.perf_counter() - begin

    def __call__(self) -> None:
        for _ in repeat(None, self.calls):
            self.x @ self.x


def measured() -> dict[str, Any]:
    """Return the seconds of all rounds, by name, and why something is missing."""
    world, work = distributed.world(), Work()
    params = {str(i): np.zeros(N, np.float32) for i in range(TENSORS)}
    grads = {key: np.full(N, 0.1 + world.rank, np.float32) for key in params}
    opt = distributed.Synchronous(fs.Adam(), world)
    half, other = N // 2, 1 - world.rank
    room = {key: np.empty(half, np.float32) for key in params}

    def pieces() -> None:
        world.wait(world.start([(other, g[:half]) for g in grads.values()], [(other, r) for r in room.values()]))

    def pairs() -> Iterator[tuple[str, Any]]:
        for key in reversed(grads):  # as in a backward pass
            work()
            yield key, grads[key]

    steps: dict[str, Callable[[], object]] = {
        "wire, gradients": pieces,
        "wire": lambda: (pieces(), pieces()),
        "computing": lambda: list(pairs()),
        "step": lambda: opt.step(params, [grads]),
        "step, gradients at the end": lambda: opt.step(params, [dict(pairs())]),
        "step, gradients as they come": lambda: opt.step(params, [pairs()]),
    }
    absent = {}
    for name, step in list(steps.items()):
        try:
            step()
        except (TypeError, ValueError) as error:
            absent[name] = str(error).partition("\n")[0]
            del steps[name]
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            COMM.Barrier()
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    distributed.same(params, world)
    slowest = np.array(list(seconds.values()))
    COMM.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    return {"seconds": dict(zip(seconds, slowest.tolist(), strict=True)), "absent": absent, "bytes": 4 * TENSORS * N}


if __name__ == "__main__":
    result = measured()
    if COMM.rank == 0:
        print(json.dumps(result))
