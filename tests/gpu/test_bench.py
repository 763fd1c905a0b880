"""The benchmark on a GPU, or on an emulation of one, whose clock is that of the host."""

from dataclasses import replace

import numpy as np
import pytest

from fusedstep.tools.bench import contestants, heats, peers
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.contestants import Fusedstep, Job
from fusedstep.tools.bench.harness import host_time


class Exact(Fusedstep):
    """Does the same."""

    name = "exact"


@pytest.fixture
def on_gpu(cupy):
    contestants._drawn.cache_clear()
    yield cupy
    contestants._drawn.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_heat_on_a_gpu(on_gpu, dtype):
    heat = (Case("adam", dtype, size=1000, count=2, device="cuda:0"),)
    heat += (replace(heat[0], odd=True),)
    found = heats.run(heat, [Exact, peers.Optax], 1, inner=1e-4, rest=0.0, clock=host_time)
    for each in found:
        assert [row.name for row in each.rows] == ["fusedstep", "limit", "copy", "exact"]
        assert [row.ulp for row in each.rows] == [0.0, None, None, 0.0]
        assert each.absent == {}


def test_states_on_a_gpu(on_gpu):
    job = Job(Case(size=10, states=1e-40, device="cuda:0"))
    ours = Fusedstep(job)
    ours.step()
    ours.set_states(1e-40)
    assert ours.optimizer.state[0]["m"].view(np.uint32).get().tolist() == [71362] * 10
