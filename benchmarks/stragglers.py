"""
Train the digits with workers that are not equally fast, synchronously and asynchronously, for the same time.

python benchmarks/stragglers.py FILE.json writes the record that `python -m fusedstep plot stragglers FILE.json` draws.

Workers are threads. A gradient takes as long as `CASES` says, most of it asleep, so that each worker is like a machine
of its own, whatever the cores of this one do.
"""

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import fusedstep as fs
from fusedstep import distributed
from fusedstep.tools import digits
from fusedstep.tools.bench import machine

__all__ = ["CASES", "WAYS", "record", "run", "write"]

PACKAGES = ("numpy", "scikit-learn")
WORKERS, LAST = 3, 2
BATCH = 30  # images of a gradient
GRADIENT = 0.04  # seconds
PERIOD = 0.2  # seconds between two looks at the loss
RATES = (0.004, 0.008, 0.016)

# By case, of the last worker: how many times as long its gradients take, and seconds that it is away now and then.
CASES = {"all equal": (1, 0.0), "one four times slower": (4, 0.0), "one away now and then": (1, 2.0)}
AWAY = 50, 25  # steps from one time to the next, and the first one


def pause(case: str, worker: int, step: int, images: int = BATCH) -> float:
    """Return the seconds that a worker takes for a gradient of so many images in its step."""
    times, away = CASES[case] if worker == LAST else (1, 0.0)
    return GRADIENT * times * images / BATCH + away * (step % AWAY[0] == AWAY[1])


class Clock:
    """The time of a run, and copies of parameters with the seconds when they were seen."""

    def __init__(self, seconds: float) -> None:
        self._begin, self._seconds = time.perf_counter(), seconds
        self.seen: list[tuple[float, digits.Params]] = []

    @property
    def now(self) -> float:
        return time.perf_counter() - self._begin

    @property
    def is_over(self) -> bool:
        return self.now >= self._seconds

    def look(self, params: digits.Params) -> None:
        if not self.seen or (self.now >= self.seen[-1][0] + PERIOD and not self.is_over):
            self.seen.append((self.now, {key: p.copy() for key, p in params.items()}))


def gradients(data: digits.Digits, params: digits.Params, images: int, seconds: float, *seed: int) -> digits.Params:
    """Return the gradients of so many images, which follow from `seed`, after so many seconds."""
    end = time.perf_counter() + seconds
    rows = np.random.default_rng(seed).integers(0, len(data.y), images)
    found = digits.gradients(params, data.x[rows], data.y[rows])
    time.sleep(max(0.0, end - time.perf_counter()))
    return found


def synchronous(
    case: str, lr: float, seed: int, seconds: float, data: digits.Digits, images: int = BATCH
) -> tuple[Clock, list[int]]:
    """Train with a step for each gradient of all workers; return what was seen, and how late each gradient was."""
    clock, late = Clock(seconds), list[int]()

    def work(world: distributed.World) -> None:
        params = digits.initial_params()
        opt = distributed.Synchronous(fs.AdamW(lr=lr), world, parts=world.size)
        step = 0
        while distributed.gathered(world, b"end" if clock.is_over else b"")[0] != b"end":  # rank 0 tells the time
            takes = pause(case, world.rank, step, images)
            own = gradients(data, params, images, takes, seed, world.rank, step)
            opt.step(params, [own], grad_scale=1 / world.size)
            step += 1
            if world.rank == 0:
                clock.look(params)
                late.extend([0] * world.size)

    clock.look(digits.initial_params())
    distributed.on_threads(WORKERS, work)
    return clock, late


def asynchronous(
    case: str, lr: float, seed: int, seconds: float, data: digits.Digits, staleness: int | None = None
) -> tuple[Clock, list[int]]:
    """Train with a step for each gradient; return what was seen, and how late each gradient was."""
    params = digits.initial_params()
    opt = distributed.Asynchronous(fs.AdamW(lr=lr), None, params, staleness=staleness)
    clock = Clock(seconds)
    clock.look(params)

    def work(mine: distributed.Asynchronous) -> None:
        own = digits.initial_params()
        while not clock.is_over:
            mine.pull(own)
            if mine.worker == 0:
                clock.look(own)
            takes = pause(case, mine.worker, mine.done)
            mine.push(gradients(data, own, BATCH, takes, seed, mine.worker, mine.done))

    opt.run(work, WORKERS)
    return clock, opt.log().lateness()[0]


WAYS: dict[str, Callable[..., tuple[Clock, list[int]]]] = {
    "synchronous": synchronous,
    "synchronous, a third of the images": lambda *run: synchronous(*run, images=BATCH // WORKERS),
    "asynchronous": asynchronous,
    "asynchronous, staleness 2": lambda *run: asynchronous(*run, staleness=2),
}


def run(case: str, way: str, lr: float, seed: int, seconds: float, data: digits.Digits) -> dict[str, Any]:
    """Return a run: losses over the seconds, how many gradients there were, and how late they were."""
    clock, late = WAYS[way](case, lr, seed, seconds, data)
    curve = [[round(at, 3), round(digits.loss(params, data.x, data.y), 5)] for at, params in clock.seen]
    updates = len(late) // WORKERS if way.startswith("synchronous") else len(late)
    found = {"gradients": len(late), "updates": updates, "late": round(float(np.mean(late)), 2), "latest": max(late)}
    return {"case": case, "way": way, "lr": lr, "seed": seed, **found, "curve": curve}


def record(seconds: float, seeds: int) -> dict[str, Any]:
    """Return the runs of all cases and ways, with each learning rate."""
    data = digits.load()
    runs = [
        run(case, way, lr, seed, seconds, data)
        for seed in range(seeds)
        for lr in RATES
        for case in CASES
        for way in WAYS
    ]
    about = machine.about(["cpu"]) | {"packages": {name: version(name) for name in PACKAGES}}
    settings = {"seconds": seconds, "seeds": seeds, "workers": WORKERS, "gradient": GRADIENT, "batch": BATCH}
    return {"machine": about, "settings": settings, "runs": runs}


def write(found: dict[str, Any], path: Path) -> None:
    """Write a record as JSON, with a line for each run."""
    head = json.dumps({key: value for key, value in found.items() if key != "runs"}, indent=1)
    rows = ",\n  ".join(map(json.dumps, found["runs"]))
    path.write_text(f'{head[:-2]},\n "runs": [\n  {rows}\n ]\n}}\n')


def main() -> None:
    """Make all runs and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="the JSON file to write")
    parser.add_argument("--seconds", type=float, default=5, help="of a run (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="of each case, way and learning rate (%(default)s)")
    options = parser.parse_args()
    if options.seeds < 1 or not options.seconds > 0:
        parser.error("--seeds is at least 1, --seconds above 0")
    with threadpool_limits(1):  # the products of matrices are too small to be shared
        write(record(options.seconds, options.seeds), options.record)


if __name__ == "__main__":
    main()
