"""How long does a call take that has next to nothing to do?"""

import numpy as np
import pytest

import fusedstep
from fusedstep import schedules
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import PEERS

OPTIONS = {
    "plain": {},
    "clip_global_norm": {"clip_global_norm": 1.0},
    "schedule": {"lr": schedules.cosine(1e-3, 10**9)},
    "ema": {"ema": 0.999},
}


@pytest.fixture
def arrays():
    return [np.ones(16, np.float32) for _ in "pgmv"]


def test_functional_sgd(timed, tell, arrays):
    p, g, *_ = arrays
    (mine,) = timed({"sgd": Entry(lambda: fusedstep.functional.sgd(p, g, lr=1e-3))}).values()
    tell(mine, goals={"ours": "<= 0.6 us"})


def test_functional_adam(timed, tell, arrays):
    (mine,) = timed({"adam": Entry(lambda: fusedstep.functional.adam(*arrays, t=10, lr=1e-3))}).values()
    tell(mine)


@pytest.mark.parametrize("options", OPTIONS)
def test_step(timed, tell, arrays, options):
    p, g, *_ = arrays
    entries = {}
    for name in dict.fromkeys(("plain", options)):
        optimizer = fusedstep.Adam(**OPTIONS[name])
        entries[name] = Entry(lambda step=optimizer.step: step(p, g))
    times = timed(entries)
    mine = times.pop(options)
    tell(mine, relative_to=times, goals={"ours": "<= 1.5 us"} if options == "plain" else None)


def test_step_after_setting_lr(timed, tell, arrays):
    p, g, *_ = arrays
    optimizer = fusedstep.Adam()

    def step():
        optimizer.lr = 1e-3
        optimizer.step(p, g)

    (mine,) = timed({"set": Entry(step)}).values()
    tell(mine)


def test_step_against_everybody(run, tell_case):
    (measured,) = run(PEERS, size=16)
    tell_case(measured)
