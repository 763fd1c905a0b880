"""How long does a step take, against what the memory allows, and against other people's optimizers?"""

import pytest

import fusedstep
from fusedstep.tools.bench.cases import rules
from fusedstep.tools.bench.peers import PEERS, Expression, Torch, TorchForeach, TorchSingle

LARGE, MEDIUM, SMALL = 30_000_000, 1_000_000, 1_000
CACHED = 100 * 1024
SLOW_IN_TORCH = ("rmsprop", "adadelta", "adamax", "nadam")  # rules without a fused kernel for CPUs in torch


@pytest.mark.parametrize("rule", rules())
def test_beyond_the_cache(run, tell_case, rule):
    (measured,) = run(rule=rule, size=LARGE)
    tell_case(measured, {"limit": ">= 0.95"})


@pytest.mark.parametrize("rule", ["sgd", "rmsprop", "adam"])
def test_beyond_the_cache_in_float64(run, tell_case, rule):
    (measured,) = run(rule=rule, size=LARGE // 2, dtype="float64")
    tell_case(measured, {"limit": ">= 0.95"})


@pytest.mark.parametrize("size", [SMALL, MEDIUM, LARGE])
def test_adam_against_everybody(run, tell_case, size):
    goals = {
        LARGE: {"torch fused": ">= 1.3", "deepspeed": ">= 1.1", "numpy": ">= 20"},
        MEDIUM: {"torch fused": ">= 1.4", "deepspeed": ">= 1.1", "numpy": ">= 20"},
        SMALL: {"torch fused": ">= 10"},
    }
    (measured,) = run(PEERS, size=size)
    tell_case(measured, goals[size])


@pytest.mark.parametrize("rule", [rule for rule in rules() if rule != "adam"])
def test_other_rules_against_torch(run, tell_case, rule):
    goals = dict.fromkeys(("torch single", "torch foreach"), ">= 5") if rule in SLOW_IN_TORCH else {}
    (measured,) = run([Expression, TorchSingle, TorchForeach, Torch], rule=rule, size=LARGE)
    tell_case(measured, goals)


def test_odd_arrays(run, tell):
    aligned, odd = run(size=CACHED, odd=[False, True], threads=1)
    tell(odd.ours.timing, relative_to={"aligned": aligned.ours.timing})


@pytest.mark.parametrize("size", [CACHED, LARGE])
def test_instruction_sets(run, tell, size):
    *narrower, widest = run(size=size, isa=fusedstep.info()["isas"])
    tell(widest.ours.timing, {each.case.isa: each.ours.timing for each in narrower}, moved=widest.case.moved)
