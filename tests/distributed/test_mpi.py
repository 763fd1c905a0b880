"""Worlds of MPI: what ranks say to each other, and what is said where MPI is not what it should be."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@pytest.fixture
def environment():
    """Variables for ranks that run on any machine, by whoever runs the tests."""
    left = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return left | root | {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "FUSEDSTEP_NUM_THREADS": "1"}


def run(command, environment):
    """Run a command, and end all its processes if it takes too long."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # mpiexec ends its ranks
            out, err = process.communicate(timeout=10)
            pytest.fail(f"{command} has taken more than 60 s: {out}{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.fixture
def mpiexec(environment):
    """The mpiexec of the environment, where mpi4py finds the library that it belongs to."""
    found = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
    if found is None or run([sys.executable, "-c", "from mpi4py import MPI"], environment).returncode:
        pytest.skip("needs mpi4py and an mpiexec")
    return found


@pytest.fixture
def speak(mpiexec, environment):
    """Return a function that lets ranks run conversations, and returns how that has ended."""

    def start(size, *names):
        ranks = [mpiexec, "-n", str(size), sys.executable, "-m", "mpi4py", "-m", "tests.distributed.conversations"]
        return run([*ranks, *names], environment)

    return start


EVERYBODY = ("chatter", "gather", "all_to_all", "late_and_again", "cut", "several_threads")


@pytest.mark.parametrize(
    ("size", "names"),
    [(2, ("overlap", "own_communicator", *EVERYBODY)), (3, EVERYBODY), (4, ("overlap", *EVERYBODY))],
    ids=["2", "3", "4"],
)
def test_ranks_talk(speak, size, names):
    end = speak(size, *names)
    assert end.returncode == 0, end.stdout + end.stderr
    assert sorted(end.stdout.replace("done", "done\n").split("\n"))[-size:] == [
        f"rank {rank} of {size} is done" for rank in range(size)
    ]


def test_who_is_late_is_named(speak):
    end = speak(3, "late")
    assert end.returncode == 0, end.stdout + end.stderr


def test_a_rank_that_raises_ends_the_job(speak):
    end = speak(2, "raises")
    assert end.returncode
    assert "this rank has a fault" in end.stderr


def test_one_rank_is_a_world_too(speak):
    end = speak(1, "gather")
    assert end.returncode == 0, end.stderr
    assert "rank 0 of 1 is done" in end.stdout


MAKE = "from fusedstep import distributed; distributed.world()"


def test_a_launcher_of_another_mpi_is_refused(mpiexec, environment):
    end = run([sys.executable, "-c", MAKE], environment | {"OMPI_COMM_WORLD_SIZE": "2"})
    assert end.returncode == 1
    assert "RuntimeError: 2 ranks were started and MPI knows of 1, expected the mpiexec that belongs to" in end.stderr


def test_ranks_without_mpi4py_are_told_what_to_install(environment):
    code = f"import sys; sys.modules['mpi4py'] = None; {MAKE}"
    end = run([sys.executable, "-c", code], environment | {"PMI_SIZE": "2"})
    assert end.returncode == 1
    assert 'ImportError: the ranks of MPI need mpi4py and a library of MPI: python -m pip install "fused' in end.stderr
