"""
The digits on several ranks: `python -m fusedstep demo --ranks 4`.

The same training with 1, 2, ... ranks: all end with the same bits. Where mpi4py is installed, ranks are processes that
MPI connects, and otherwise threads of this process.
"""

import json
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from time import perf_counter
from typing import Any

from fusedstep import distributed, optimizers
from fusedstep.minibatches import minibatches

from .digits import accuracy, gradients, initial_params, load, rate

__all__ = ["print_runs", "train"]

BATCH = 64
LEAST_PARTS = 8


def train(world: distributed.World, epochs: int, parts: int) -> dict[str, Any]:
    """Train on the ranks of a world, and return what each ends with: digest, share of right answers, seconds."""
    digits, params = load(), initial_params()
    batches = minibatches(len(digits.x), batch_size=BATCH, seed=1, drop_last=True)
    optimizer = optimizers.AdamW(lr=rate("AdamW"), clip_global_norm=1.0)
    opt = distributed.Synchronous(optimizer, world, parts=parts)
    begin = perf_counter()
    for _ in range(epochs):
        for rows in batches:
            own = (gradients(params, digits.x[part], digits.y[part]) for part in opt.share(rows))
            opt.step(params, own, grad_scale=1 / parts)
    seconds = perf_counter() - begin
    distributed.same(params, world)
    digest = sha256(b"".join(p.tobytes() for p in params.values())).hexdigest()
    return {"digest": digest, "accuracy": accuracy(params, digits.x_test, digits.y_test), "seconds": seconds}


def print_runs(most: int, epochs: int) -> int:
    """Print a line for each number of ranks, and return 0, or 1 if bits differ, or 2 if ranks could not be started."""
    parts = next(parts for parts in (LEAST_PARTS, 16, 32, BATCH) if parts >= most)
    sizes = sorted({size for size in (1, 2, 4, 8, 16, 32, most) if size <= most})
    is_mpi = find_spec("mpi4py") is not None
    print(f"AdamW, {epochs} epochs, {parts} parts in a step; ranks are {'processes' if is_mpi else 'threads'}")
    digests = set()
    for size in sizes:
        if is_mpi and size > 1:
            found = _in_processes(size, epochs, parts)
        else:
            found = distributed.on_threads(size, lambda world: train(world, epochs, parts))[0]
        if found is None:
            return 2
        digests.add(found["digest"])
        print(
            f"{size:3} ranks: {100 * found['accuracy']:.1f} % of the test, {found['seconds']:.2f} s, "
            f"SHA-256 {found['digest'][:32]}...",
            flush=True,
        )
    print("The bits are the same." if len(digests) == 1 else "The bits DIFFER.")
    return 0 if len(digests) == 1 else 1


def _in_processes(size: int, epochs: int, parts: int) -> dict[str, Any] | None:
    command = [
        sys.executable,
        "-m",
        "fusedstep",
        "run",
        "--ranks",
        str(size),
        "-m",
        __spec__.name,
        str(epochs),
        str(parts),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    world = distributed.world()
    result = train(world, *map(int, sys.argv[1:]))
    if world.rank == 0:
        print(json.dumps(result))
