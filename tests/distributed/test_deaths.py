"""Ranks that are killed anywhere: the training goes on from its file, and ends with the bits of one without deaths."""

import json
import os
from pathlib import Path
from random import Random

import numpy as np
import pytest

import fusedstep as fs
from tests.distributed import mortal
from tests.distributed.jobs import needs_mpi, run

pytestmark = needs_mpi

PLACES = {"step": 2000, "gather": 2000, "save": 400, "thread": 30, "gradient": 2}  # the last ones


def plan(random, kinds):
    """Return a death of each kind, at random times and places; a file is written by rank 0."""
    found = []
    for kind in kinds:
        after = random.randrange(mortal.PERIOD if kind in ("gather", "save") else mortal.PERIOD + 2)
        place = 1 + int(PLACES[kind] * random.random() ** (1 if kind == "save" else 3))
        found.append([kind, after, random.random() if kind != "save" else 0.0, place])
    return found


def processes_with(mark):
    """Return the numbers of processes that have a variable in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder.name)
        except OSError:  # it has ended, or is somebody else's
            pass
    return found


def check(folder, ranks, least, deaths, seed, launcher=()):
    steps, mark = mortal.PERIOD * len(deaths) + 5, f"deaths-{os.getpid()}-{seed}"
    mortal.whole(folder / "whole.npz", steps)
    words = ["--ranks", ranks, "--least-ranks", least, "--restarts", len(deaths), *launcher]
    code, out, err = run(
        folder, *words, "-m", "tests.distributed.mortal", "model.npz", steps, json.dumps(deaths), timeout=300, MARK=mark
    )
    told = f"seed {seed}, deaths {deaths}: {out}{err}"
    assert code == 0, told
    lines = [line.split() for line in (folder / "deaths").read_text().splitlines()]
    assert [line[:2] for line in lines] == [[str(k), death[0]] for k, death in enumerate(deaths, 1)], told
    sizes = [int(line[2]) for line in lines]
    assert sizes == [max(least, ranks - k // 2) for k in range(len(deaths))], told
    assert (folder / "model.npz").read_bytes() == (folder / "whole.npz").read_bytes(), told
    # Nothing is left: no processes, no shared memory, and of a draft, which is kept for a minute, nothing after it.
    for draft in folder.glob(".model.npz.*.tmp"):
        os.utime(draft, (0, 0))
    fs.save(folder / "model.npz", None, {"w": np.zeros(1)})
    assert {file.name for file in folder.iterdir()} == {"model.npz", "whole.npz", "deaths", "shared"}, told
    assert processes_with(f"MARK={mark}") == [], told
    shared = set((folder / "shared").read_text().split())
    assert [name for name in shared if os.path.exists(f"/dev/shm/{name}")] == [], told


def test_killed_ranks_change_no_bit(tmp_path):
    """After two deaths, the training goes on with three ranks."""
    seed = Random().randrange(10**6)
    random = Random(seed)
    check(tmp_path, 4, 3, plan(random, random.sample(list(PLACES), 2)), seed)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(5))
def test_twenty_deaths_change_no_bit(tmp_path, seed):
    random = Random(seed)
    check(tmp_path, 4, 1 + seed % 4, plan(random, random.choices(list(PLACES), k=20)), seed)
