"""The programs of benchmarks/ranks: what they measure is steps that have been made, and bytes that were sent."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fusedstep.tools.bench.ranks import ranks
from tests.distributed.jobs import needs_mpi

FOLDER = Path(__file__).parents[2] / "benchmarks" / "ranks"
OURS = {"one process, 1 thread", "Synchronous", "Synchronous, clipped", "Synchronous, common memory"}

pytestmark = needs_mpi


def said(*words, seconds=120):
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, check=True, timeout=seconds
    )
    return done.stdout


def test_a_race():
    command = ("-m", "fusedstep", "run", "--ranks", 2, "--threads", 1, FOLDER / "race.py", 10**4, 2)
    race = json.loads(said(*command).splitlines()[-1])
    sides = {side["name"]: side for side in race["sides"]}
    assert (race["size"], race["ranks"]) == (10**4, 2)
    assert sides.keys() >= OURS | {"Allreduce, Adam", "Allreduce, Adam, clipped"}
    assert all(sides[name]["parameters"] == "equal bits" for name in OURS)
    assert {len(side["seconds"]) for side in race["sides"]} == {20}  # ten steps in each of two rounds
    sent = {name: side["sent"] for name, side in sides.items() if "sent" in side}
    assert sent["Synchronous"] == pytest.approx(4, abs=0.01)  # a rank keeps half of what it has, and 8 bytes agree
    assert sent["Synchronous, clipped"] > sent["Synchronous"]  # by sums of squares
    assert sent["Synchronous, common memory"] < 0.15  # where each of 48 tensors lies, in 24 bytes
    assert ("torch ZeRO, fused Adam" in sides) == (find_spec("torch") is not None)
    assert all(reason for reason in race["absent"].values())


def test_a_race_finds_wrong_parameters():
    program = f"""
import sys
sys.path.insert(0, {str(FOLDER)!r})
import numpy as np
import race
from sides import SIDES, Setting, expected
setting = Setting(10_000)
side = SIDES["Synchronous"](setting)
race.turn(side, 2)
wanted = expected(setting, 2, None)
print(race.verdict(side, wanted, setting))
side.params[3][5] = np.nextafter(side.params[3][5], np.float32(2))
race.verdict(side, wanted, setting)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "equal bits\n"
    assert done.stderr.startswith("parameters differ from those of one process by 5.9")


@pytest.mark.exhaustive
def test_command(tmp_path):
    path = tmp_path / "mine.json"
    said(FOLDER, path, "--sizes", "1e4", "--ranks", "1", "2", "--rounds", "1", seconds=300)
    found = ranks(path)
    assert [(race.size, race.ranks) for race in found.races] == [(10**4, 1), (10**4, 2)]
    assert found.computing[1].keys() == found.computing[max(found.computing)].keys() | {"adam, all threads"}
    assert found.messages.keys() == {"latency", "bandwidth"}
    assert found.start.keys() == {"python", "run --ranks 2"}
    reason = json.loads(path.read_text())["link"].get("absent")
    if reason:
        assert os.geteuid() != 0 or "MPICH" in str(reason) or "missing" in str(reason)
    else:
        assert found.overlap.keys() >= {"wire, gradients", "wire", "computing", "step", "step, gradients at the end"}
