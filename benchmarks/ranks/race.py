"""
A race of ranks, which `__main__.py` starts: race.py SIZE ROUNDS. The last line of the output is what was found.

A turn of a side is a step to warm up and some that are timed, each after a barrier. A step takes as long as it takes on
the slowest rank. Sides take turns, backwards in every second round.
"""

import gc
import json
import sys
import time
from typing import Any

import numpy as np
from mpi4py import MPI
from sides import COMM, HAS_TORCH, SIDES, AbsentError, Setting, Side, expected, meet, start_torch

import fusedstep as fs

STEPS = 2  # before the race; then parameters are compared
NEAR = 1e-5


def memory() -> int:
    """Return the bytes in memory of all ranks; pages that some of them share count once."""
    meet(does_nap=True)
    with open("/proc/self/smaps_rollup") as lines:
        (pss,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    total: int = COMM.allreduce(pss)
    return total


def turn(side: Side, calls: int) -> list[float]:
    """Return the seconds of some steps on this rank."""
    fs.set_num_threads(side.threads)
    is_out = side.is_alone and COMM.rank > 0
    seconds = []
    for _ in range(calls):
        if not is_out:
            side.refill()
        if not side.is_alone:
            meet()
        begin = time.perf_counter()
        if not is_out:
            side.step()
        seconds.append(time.perf_counter() - begin)
    if side.is_alone:
        meet(does_nap=True)
    return seconds


def verdict(side: Side, wanted: Any, setting: Setting) -> str:
    """Return "equal bits" or "near", whatever is true of all ranks, or raise."""
    farthest = 0.0
    for param, want in zip(side.params, setting.tensors(wanted), strict=bool(side.params)):
        if param.tobytes() != want.tobytes():
            farthest = max(farthest, float(np.abs(param - want).max()) or NEAR)
    farthest = COMM.allreduce(farthest, MPI.MAX)
    if farthest > (0 if side.ours else NEAR):
        raise SystemExit(f"parameters differ from those of one process by {farthest}")
    return "near" if farthest else "equal bits"


def sent(side: Side) -> int:
    """Return the bytes that all ranks send in a step."""
    start, found = side.world.start, []

    def counting(sends: Any, receives: Any) -> Any:
        found.extend(array.nbytes for _, array in sends)
        return start(sends, receives)

    side.world.start = counting
    turn(side, 1)
    side.world.start = start
    total: int = COMM.allreduce(sum(found))
    return total


def race(size: int, rounds: int) -> dict[str, Any]:
    """Let all sides make steps over so many parameters, and return a race of the record."""
    if HAS_TORCH:
        start_torch()
    setting = Setting(size)
    sides, about, absent = {}, {}, {}
    for name, make in SIDES.items():
        before = memory()
        try:
            sides[name] = side = make(setting)
        except AbsentError as reason:
            absent[name] = str(reason)
            continue
        turn(side, STEPS)
        held = (
            memory() - before + (0 if side.has_grads else setting.bucket.nbytes * (1 if side.is_alone else COMM.size))
        )
        about[name] = {"memory": held / size}
    for clip in {side.clip for side in sides.values()}:
        wanted = expected(setting, STEPS, clip) if COMM.rank == 0 else np.empty(size, np.float32)
        meet(does_nap=True)
        COMM.Bcast(wanted)
        for name, side in sides.items():
            if side.clip == clip:
                about[name]["parameters"] = verdict(side, wanted, setting)
    for name, side in sides.items():
        if side.world is not None and COMM.size > 1:
            about[name]["sent"] = sent(side) / size / COMM.size
    calls = 1 + (1 if size > 10**7 else 3 if size > 10**6 else 10)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.disable()
    for i in range(rounds):
        for name in list(sides)[:: -1 if i % 2 else 1]:
            seconds[name] += turn(sides[name], calls)[1:]
    slowest = np.array(list(seconds.values()))
    COMM.Allreduce(MPI.IN_PLACE, slowest, MPI.MAX)
    found = [{"name": name, **about[name], "seconds": slowest[i].tolist()} for i, name in enumerate(sides)]
    return {"size": size, "ranks": COMM.size, "sides": found, "absent": absent}


if __name__ == "__main__":
    result = race(int(sys.argv[1]), int(sys.argv[2]))
    if COMM.rank == 0:
        print(json.dumps(result))
    if HAS_TORCH:
        sys.modules["torch"].distributed.destroy_process_group()
