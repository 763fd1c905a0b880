"""How much longer does a step take with each option around the update, compared with the bytes that it adds?"""

from functools import partial
from typing import Any

import pytest

from fusedstep import schedules
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.contestants import Fusedstep, Job
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import Torch, TorchForeach

SIZES = (10**5, 10**6, 3 * 10**7)
OPTIONS: dict[str, dict[str, Any]] = {
    "grad_scale": {"grad_scale": 0.5},
    "maximize": {"maximize": True},
    "clip_value": {"clip_value": 0.5},
    "clip_norm": {"clip_norm": 1.0},
    "clip_global_norm": {"clip_global_norm": 1.0},
    "skip_nonfinite": {"skip_nonfinite": True},
    "l1": {"l1": 1e-4},
    "weight_decay": {"weight_decay": 1e-2},
    "decoupled": {"weight_decay": 1e-2, "decoupled": True},
    "ema": {"ema": 0.999},
    "zero_grad": {"zero_grad": True},
    "schedule": {"lr": schedules.cosine(1e-3, 10**9)},
    "everything": {
        "clip_global_norm": 1.0,
        "weight_decay": 1e-2,
        "decoupled": True,
        "ema": 0.999,
        "zero_grad": True,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", SIZES)
def test_option_over_plain(timed, tell, size, options):
    """Gradients are set anew before each turn, because some options write to them."""
    plain, case = Case(size=size), Case(size=size, options=tuple(OPTIONS[options].items()))
    job = Job(plain)
    contestants = {"plain": Fusedstep(job), "with": Fusedstep(job)}
    for name, value in case.options:
        setattr(contestants["with"].optimizer, name, value)
    prepare = partial(job.set_grads, 1.0)
    times = timed({name: Entry(one.step, prepare) for name, one in contestants.items()})
    by_bytes = case.bytes_per_parameter / plain.bytes_per_parameter
    goal = {"plain": f"<= {1.05 * by_bytes:.3f}"} if (size, options) == (SIZES[-1], "clip_global_norm") else None
    tell(times.pop("with"), relative_to=times, goals=goal, moved=case.moved, by_bytes=round(by_bytes, 3))


@pytest.mark.parametrize("size", SIZES)
def test_clipped_against_torch(run, tell_case, size):
    """
    Clipping and stepping in one call is timed against clip_grad_norm_ and the optimizer of torch.

    The first call of clip_grad_norm_ makes the gradients small; later calls find nothing to clip, and take as long.
    """
    (measured,) = run([Torch, TorchForeach], size=size, options=[(("clip_global_norm", 1.0),)])
    tell_case(measured)
