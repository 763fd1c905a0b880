"""Asynchronous training on ranks of MPI: servers and workers are processes."""

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("asynchronous_ranks.py")
MPIEXEC = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))

pytestmark = pytest.mark.skipif(not find_spec("mpi4py") or not MPIEXEC, reason="needs mpi4py and an mpiexec")


def run(ranks, *arguments):
    """Return exit code, output and errors of a run of the program."""
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    command = [MPIEXEC, "-n", str(ranks), sys.executable, "-m", "mpi4py", PROGRAM, *arguments]
    environment = os.environ | {"PYTHONPATH": paths, "FUSEDSTEP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("ranks", "shards", "staleness", "wrong"),
    [(2, 1, "-", ""), (3, 1, "0", ""), (4, 2, "2", ""), (5, 3, "-", ""), (4, 1, "1", "leave")],
)
def test_every_rank_has_the_bits_of_the_replay(ranks, shards, staleness, wrong):
    code, out, err = run(ranks, str(shards), staleness, wrong)
    # Lines of several ranks may be mixed up.
    assert (code, [out.count(f"rank {rank} has equal bits") for rank in range(ranks)]) == (0, [1] * ranks), err


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("raise", "ArithmeticError: no gradient"),
        ("params", "ValueError: params on ranks 1 are others than on rank 0"),
        ("lr", "ValueError: lr"),
        ("slow", "TimeoutError: rank 1 has waited 1 s for worker 0, at 5: it is at update 6, and staleness is 0"),
    ],
)
def test_an_error_ends_the_job(wrong, words):
    begin = time.monotonic()
    code, out, err = run(3, "1", "0", wrong)
    assert code != 0
    assert words in err
    assert out.count("equal bits") < 3
    assert time.monotonic() - begin < 60


def test_more_shards_than_ranks():
    code, _, err = run(2, "2", "-", "")
    assert code != 0
    assert "shards is 2 with 2 ranks, expected less" in err
