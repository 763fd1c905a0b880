"""How much faster is a step with more threads?"""

import pytest

from fusedstep.tools.bench.cases import thread_counts
from fusedstep.tools.bench.peers import Torch

SIZES = (10**4, 10**5, 10**6, 3 * 10**7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_threads(run, tell, rule, size):
    found = run([Torch], rule=rule, size=size, threads=thread_counts())
    single, most = found[0], found[-1]
    others = {f"{each.case.threads} threads": each.ours.timing for each in found[:-1]}
    times = [each.row("torch fused") for each in (single, most)]
    about = {}
    if all(times) and len(found) > 1:
        about["torch fused gains"] = round(times[0].timing.median / times[1].timing.median, 2)
    tell(most.ours.timing, others, moved=most.case.moved, **about)
