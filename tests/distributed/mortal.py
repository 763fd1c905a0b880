"""
A training that is killed again and again, and goes on from its file.

usage: mortal.py FILE STEPS DEATHS. DEATHS is a list in JSON of one death for each attempt:

    [kind, after, share, place]

It comes when the attempt has made `after` steps, on the rank at this share of all ranks: before the "gradient" of a
part; at a line of a "step"; in the first save that comes then, at any line ("gather"), or at one of those that write
the file ("save"); or from another "thread" so many milliseconds later. `place` is the number of the line or of the
part, or the milliseconds. Beside the file, a file "deaths" gets a line for
each death, and a file "shared" the names of all files in shared memory that a rank has mapped.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import fusedstep as fs
from fusedstep import distributed
from fusedstep.distributed.tree import parts_of
from tests.distributed.lines import at_line
from tests.distributed.synchronous_runs import PARTS, Run, adamw, parameters

SHAPES = {"W": (150, 211), "b": (211,), "scale": (), "V": (70, 33)}
PERIOD = 3  # steps from one file to the next


def training(steps):
    return Run(adamw(clip_global_norm=1.0, ema=0.9), lambda: parameters(shapes=SHAPES), steps=steps)


def whole(path, steps):
    """Write the file that one process has at the end, when nobody dies."""
    run = training(steps)
    params, opt = run.params(), run.make()
    for k in range(steps):
        opt.step(params, run.sum(params, k), grad_scale=1 / PARTS)
    fs.save(path, opt, params, extra={"done": steps})


def note(name, *lines):
    with open(name, "a") as file:
        file.writelines(f"{line}\n" for line in lines)


def note_shared_files():
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text().splitlines()
        note("shared", *{line.partition("/dev/shm/")[2] for line in maps if "/dev/shm/" in line})


def main(path, steps, deaths):
    world, run, steps = distributed.world(), training(int(steps)), int(steps)
    world.timeout = 60
    attempt = int(os.environ["FUSEDSTEP_ATTEMPT"])
    kind, after, share, place = [*json.loads(deaths), ["none", 0, 0, 0]][attempt - 1]
    mortal = int(share * world.size) == world.rank and kind != "none"

    def die():
        note("deaths", f"{attempt} {kind} {world.size}")
        os.kill(os.getpid(), signal.SIGKILL)

    def die_soon():
        time.sleep(place / 1000)
        die()

    def gradients(dies):
        for number, part in enumerate(parts_of(PARTS, world.rank, world.size)):
            if dies and number == place % 2:
                die()
            yield run.gradient(params, done, part)

    def dying(call, **files):
        """Call a function; a rank whose kind of death is there dies at a line of it, or at its end at the latest."""
        if mortal and kind in files and made >= after:
            at_line(place, die, call, file=files[kind])
            die()
        call()

    def step():
        opt.step(params, gradients(mortal and (kind, after) == ("gradient", made)), grad_scale=1 / PARTS)

    def save():
        distributed.save(path, opt, params, extra={"done": done})

    params = run.params()
    opt = distributed.Synchronous(run.make(), world, parts=PARTS)
    done = distributed.load(path, opt, params)["done"] if os.path.exists(path) else 0
    thread = threading.Thread(target=die_soon)
    for made in range(steps - done):
        if mortal and (kind, after) == ("thread", made):
            thread.start()
        dying(step, step="")
        done += 1
        if made == 0:
            note_shared_files()
        if done % PERIOD == 0 or done == steps:
            dying(save, gather="", save="archive.py")
    if thread.is_alive():
        thread.join()
    distributed.same(params, world)


if __name__ == "__main__":
    main(*sys.argv[1:])
