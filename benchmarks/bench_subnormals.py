"""Does a step take longer with subnormal numbers?"""

import pytest

from fusedstep.tools.bench.cases import NORMAL, SUBNORMAL, Case
from fusedstep.tools.bench.contestants import Fusedstep, Job
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import Torch, TorchSingle

SIZE = 100 * 1024
RULES = ("momentum", "rmsprop", "adadelta", "adam")


@pytest.mark.parametrize("rule", RULES)
def test_states(run, tell, rule):
    """States are set anew in each step, as a step that flushes subnormal states leaves none. Gradients are zero."""
    normal, tiny = run([Torch, TorchSingle], rule=rule, size=SIZE, states=[NORMAL, SUBNORMAL], threads=1)
    about = {
        f"{row.name} takes": f"{row.timing.median / normal.row(row.name).timing.median:.2f} times as long"
        for row in tiny.rows
        if row.name != "fusedstep"
    }
    tell(tiny.ours.timing, relative_to={"normal": normal.ours.timing}, goals={"normal": "<= 1.05"}, **about)


@pytest.mark.parametrize("rule", RULES)
def test_gradients(timed, tell, rule):
    case = Case(rule, size=SIZE)
    normal, tiny = Job(case), Job(case)
    tiny.set_grads(1e-41)
    times = timed({"normal": Entry(Fusedstep(normal).step), "tiny": Entry(Fusedstep(tiny).step)})
    tell(times.pop("tiny"), relative_to=times, goals={"normal": "<= 1.05"})
