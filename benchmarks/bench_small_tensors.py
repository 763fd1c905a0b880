"""How long does a tensor take in a step of a thousand small ones?"""

from functools import partial

import pytest

from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.contestants import Fusedstep, Job
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import Expression, Torch, TorchForeach, TorchSingle

COUNT = 1000


@pytest.mark.parametrize("size", [16, 64, 256, 1000, 4000])
def test_list(run, tell_case, size):
    (measured,) = run([Expression, TorchSingle, TorchForeach, Torch], size=size, count=COUNT)
    tell_case(measured, {"ours": "<= 30 us", "torch fused": ">= 100"} if size == 16 else None)


def test_dict(timed, tell):
    job = Job(Case(size=16, count=COUNT))
    entries = {"dict": Entry(Fusedstep(job, mapping=True).step), "list": Entry(Fusedstep(job).step)}
    times = timed(entries)
    tell(times.pop("dict"), relative_to=times, goals={"ours": "<= 30 us"})


@pytest.mark.parametrize(
    "options",
    [
        {"clip_global_norm": 1.0},
        {"ema": 0.999},
        {"weight_decay": 0.01, "decoupled": True},
        {"clip_global_norm": 1.0, "ema": 0.999, "zero_grad": True},
    ],
    ids=", ".join,
)
def test_options(timed, tell, options):
    cases = Case(size=16, count=COUNT), Case(size=16, count=COUNT, options=tuple(options.items()))
    entries = {}
    for name, case in zip(("plain", "with"), cases, strict=True):
        job = Job(case)
        entries[name] = Entry(Fusedstep(job).step, partial(job.set_grads, 1.0))  # zero_grad writes to gradients
    times = timed(entries)
    tell(times.pop("with"), relative_to=times)
