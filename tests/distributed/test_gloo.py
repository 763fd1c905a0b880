"""Worlds of process groups of PyTorch, with gloo."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")


@pytest.mark.parametrize(
    ("size", "names"),
    [(2, ("chatter", "gather", "all_to_all", "staged", "late")), (3, ("chatter", "group"))],
    ids=["2", "3"],
)
def test_processes_talk(size, names, tmp_path):
    command = [sys.executable, "-W", "error", "-m", "tests.distributed.processes"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), str(size), tmp_path, *names], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for rank in range(size)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1] for worker in workers]
        assert [worker.returncode for worker in workers] == [0] * size, "\n".join(errors)
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
