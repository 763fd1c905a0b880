"""How much faster is a step in half precision, on each instruction set?"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import fusedstep
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.contestants import Fusedstep, Job, Limit
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import Torch

SIZES = (10**5, 10**6, 3 * 10**7)
ISAS = fusedstep.info()["isas"][1:] or fusedstep.info()["isas"]  # instruction sets that convert vectors of 16 bits
WIDE: tuple[str, Any] = ("state_dtype", "float32")
# Cases by their names in the table. States have the dtype of the parameters, unless the options make them WIDE.
KINDS: dict[str, Case] = {
    "f32": Case(),
    "bf16, f32 states": Case(dtype="bfloat16", options=(WIDE,)),
    "bf16": Case(dtype="bfloat16"),
    "f16, f32 states": Case(dtype="float16", options=(WIDE,)),
    "f16": Case(dtype="float16"),
    "f32, bf16 gradients": Case(grad_dtype="bfloat16"),
    "f32, f16 gradients": Case(grad_dtype="float16"),
    "bf16, f32 states, master": Case(dtype="bfloat16", options=(WIDE, ("master_weights", True))),
    "bf16, f32 states, split": Case(dtype="bfloat16", options=(WIDE, ("master_weights", "split"))),
    "bf16, split": Case(dtype="bfloat16", options=(("master_weights", "split"),)),
    "bf16, f32 states, stochastic": Case(dtype="bfloat16", options=(WIDE, ("rounding", "stochastic"))),
    "bf16, stochastic": Case(dtype="bfloat16", options=(("rounding", "stochastic"),)),
    "f16, stochastic": Case(dtype="float16", options=(("rounding", "stochastic"),)),
}
GOALS = {"bf16": ">= 1.8", "bf16, f32 states": ">= 1.2"}


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("kind", list(KINDS)[1:])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_over_float32(timed, tell, size, isa, kind):
    cases = {name: replace(KINDS[name], size=size) for name in ("f32", kind)}
    prepare = partial(fusedstep.use_isa, isa)
    times = timed({name: Entry(Fusedstep(Job(case)).step, prepare) for name, case in cases.items()})
    goal = {"f32": GOALS[kind]} if kind in GOALS and (size, isa) == (SIZES[-1], ISAS[-1]) else None
    tell(times.pop(kind), times, goals=goal, moved=cases[kind].moved)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam"])
def test_share_of_the_limit(timed, tell, rule, dtype):
    """The limit is a loop over arrays of float32 with as many bytes, which neither computes nor converts."""
    case = Case(rule, dtype, size=SIZES[-1])
    limit = Limit(Fusedstep(Job(Case(rule, size=case.size // 2))))
    times = timed({"ours": Entry(Fusedstep(Job(case)).step), "limit": Entry(limit.step, steps=limit.steps)})
    goal = {"limit": ">= 0.9"} if dtype == "bfloat16" and rule != "adam" else None
    tell(times.pop("ours"), times, goals=goal, moved=case.moved)


@pytest.mark.parametrize("size", SIZES)
def test_against_torch(run, tell_case, size):
    (measured,) = run([Torch], dtype="bfloat16", size=size)
    tell_case(measured)


@pytest.mark.parametrize("kind", ["bf16", "bf16, f32 states", "bf16, f32 states, master", "bf16, stochastic"])
def test_thousand_small_tensors(timed, tell, kind):
    cases = {name: replace(KINDS[name], size=16, count=1000) for name in ("f32", kind)}
    times = timed({name: Entry(Fusedstep(Job(case)).step) for name, case in cases.items()})
    tell(times.pop(kind), relative_to=times)
