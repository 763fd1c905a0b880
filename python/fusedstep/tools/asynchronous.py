"""
The digits on workers that do not wait for each other: `python -m fusedstep demo --asynchronous 3`.

Alone, workers are threads of this process. Started by `python -m fusedstep run` or mpiexec, all ranks but the last are
workers, and that one serves. In the end the log of the run makes the same updates again.
"""

from hashlib import sha256
from time import perf_counter
from typing import Any

import numpy as np

from fusedstep import distributed, optimizers

from .digits import BATCH, Array, Digits, Params, accuracy, gradients, initial_params, load, rate

__all__ = ["print_run"]

LOOKS = 5  # how often the accuracy is told while it goes on


def rows_of(worker: int, step: int, images: int) -> Array:
    """Return the images of a step, which follow from the worker and its step alone, so that a replay finds them."""
    return np.random.default_rng([worker, step]).integers(0, images, BATCH)


def print_run(workers: int, staleness: int | None, epochs: int) -> int:
    """
    Train, tell how it goes, and repeat the run from its log.

    Parameters
    ----------
    workers : int
        How many workers share the epochs.
    staleness : int or None
        That of `Asynchronous`.
    epochs : int
        How many times as many images as there are all workers together look at.

    Returns
    -------
    int
        0, or 1 if the bits of the replay differ, or 2 if ranks are not as many as workers and a server.
    """
    world = distributed.world()
    is_first = world.rank == 0

    def tell(text: str) -> None:
        if is_first:
            print(text, flush=True)

    if world.size not in (1, workers + 1):
        tell(
            f"--asynchronous is {workers} on {world.size} ranks, expected {world.size - 1}: "
            "all ranks but one are workers, and the last one serves"
        )
        return 2
    digits, params = load(), initial_params()
    steps = max(1, epochs * len(digits.y) // (BATCH * workers))
    opt = distributed.Asynchronous(_optimizer(), world, params, staleness=staleness)
    bound = "no bound on staleness" if staleness is None else f"staleness {staleness}"
    kind = "threads" if world.size == 1 else "processes"
    tell(f"AdamW, {epochs} epochs, {workers} workers of {steps} steps each, {bound}; workers are {kind}")
    looks = {steps * k // LOOKS for k in range(1, LOOKS)}
    begin = perf_counter()

    def work(mine: distributed.Asynchronous) -> None:
        own = initial_params()
        while mine.done < steps:
            mine.pull(own)
            if mine.worker == 0 and mine.done in looks:
                tell(
                    f"{perf_counter() - begin:7.2f} s: {_share(own, digits)} of the test, {mine.done / steps:.0%} done"
                )
            mine.push(_gradient(digits, own, mine.worker, mine.done))

    opt.run(work, workers if world.size == 1 else None)
    seconds = perf_counter() - begin
    if not is_first:
        return 0
    log = opt.log()
    late = [some for shard in log.lateness() for some in shard]
    speed = len(late) / seconds
    tell(f"{seconds:7.2f} s: {_share(params, digits)} of the test, all done, {speed:.0f} updates per second")
    tell(f"Between pull and push others had made {np.mean(late):.1f} updates on average, {max(late)} at most.")
    return _print_replay(log, params, digits)


def _print_replay(log: distributed.Log, params: Params, digits: Digits) -> int:
    again, begin = initial_params(), perf_counter()
    try:
        distributed.replay(log, _optimizer(), again, lambda *step: _gradient(digits, *step))
    except ValueError as error:
        print(error)
    is_same = _digest(again) == _digest(params)
    print(f"SHA-256 of the run     {_digest(params)[:32]}...")
    print(f"SHA-256 of its replay  {_digest(again)[:32]}..., from the log in {perf_counter() - begin:.2f} s")
    print("The bits are the same." if is_same else "The bits DIFFER.")
    return 0 if is_same else 1


def _optimizer() -> optimizers.AdamW:
    return optimizers.AdamW(lr=rate("AdamW"), clip_global_norm=1.0)


def _gradient(digits: Digits, params: Params, worker: int, step: int) -> Params:
    rows = rows_of(worker, step, len(digits.y))
    return gradients(params, digits.x[rows], digits.y[rows])


def _share(params: Params, digits: Digits) -> str:
    return f"{100 * accuracy(params, digits.x_test, digits.y_test):.1f} %"


def _digest(params: dict[str, Any]) -> str:
    return sha256(b"".join(p.tobytes() for p in params.values())).hexdigest()
