"""Jobs that tests start as users do, by `python -m fusedstep run`: in a time limit, and with nothing left of them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusedstep.distributed import mpiexec

ROOT = Path(__file__).parents[2]
SET = ("OMP_", "OPENBLAS_", "MKL_", "FUSEDSTEP_", "SLURM_", "PMI_")


def _mpi():
    try:
        return mpiexec.find()
    except RuntimeError:
        return None


MPI = _mpi()
needs_mpi = pytest.mark.skipif(MPI is None, reason="needs mpi4py and an MPI")


def run(folder, *words, timeout=60, **variables):
    """
    Run the command in a folder, and return its exit code and what it has printed to both streams.

    Ranks find the tests, and what the tests find. What takes too long is ended with all its processes, and has failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SET)}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "FUSEDSTEP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fusedstep", "run", *map(str, words)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment | variables, **pipes) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)  # the second one kills the ranks
            try:
                out, err = process.communicate(timeout=15)
            finally:
                process.kill()
            pytest.fail(f"{command} has taken more than {timeout} s: {out}{err}")
    return process.returncode, out, err
