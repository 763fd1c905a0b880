"""Two processes train a model together, with what PyTorch has for it, and end where they do with PyTorch's classes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.torch.processes import CLASSES, SCENARIOS, model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the parameters at the end of each scenario, for each class and process."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.torch.processes"]
    workers = [subprocess.Popen([*command, str(rank), str(folder)], cwd=ROOT) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return folder


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_processes(scenario, name, folder):
    outcomes = [torch.load(folder / f"{scenario} {name} {rank}.pt", weights_only=True) for rank in range(2)]
    expected, start = outcomes[0]["torch.optim"], [p.detach() for p in model().parameters()]
    assert not isinstance(expected, str), expected
    assert not any(map(torch.equal, expected, start))
    for outcome in outcomes:
        found = outcome["fusedstep.torch"]
        assert not isinstance(found, str), found
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
