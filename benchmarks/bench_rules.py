"""
What does a rule of one's own cost, beside the built-in kernel of the same rule?

Rules are the functions by which the tests prove that both have the same bits. Everything is measured on one thread.
"""

from functools import cache, partial
from itertools import count
from typing import Any

import numpy as np
import pytest

import fusedstep as fs
from fusedstep.core.hyperparameters import declared
from fusedstep.tools.bench.cases import Case
from fusedstep.tools.bench.contestants import AbsentError, Contestant, Fusedstep, Job
from fusedstep.tools.bench.harness import Entry
from fusedstep.tools.bench.peers import Expression, Torch
from tests.programs import built_in

RULES = ("adam", "adadelta", "rmsprop_centered_momentum", "lion")
CACHED, LARGE = 20_000, 3 * 10**7
ISAS = [isa for isa in fs.info()["isas"] if isa in ("avx2", "avx512")] or fs.info()["isas"][-1:]
WAYS = ("code", "machine")
INNER = 0.002  # seconds of a turn, so few that most turns are not interrupted where a machine has other work
OPTIONS: dict[str, dict[str, Any]] = {
    "clip_value": {"clip_value": 0.5},
    "weight_decay": {"weight_decay": 1e-2},
    "decoupled": {"weight_decay": 1e-2, "decoupled": True},
    "ema": {"ema": 0.999},
}


def goal(rule: str, way: str, size: int) -> str:
    """Return how many times the time of the built-in kernel a rule of one's own may take."""
    if way == "code":
        return "<= 1.15"
    return "<= 2.8" if size == CACHED else "<= 2.0" if rule == "adadelta" else "<= 1.4"


def own(case: Case) -> Any:
    """Return an optimizer whose rule is a function, with the options of the built-in one."""
    optimizer, cls = case.optimizer(), getattr(built_in, case.rule)
    return cls(**{name: getattr(optimizer, name) for name in declared(cls)})


def choose(isa: str, way: str) -> None:
    fs.use_isa(isa)
    fs.use_rules(way)


def over_built_in(timed, case: Case, isa: str, way: str) -> Any:
    """Return the timings of a rule of one's own and of the built-in one, over the same gradients."""
    if way == "code":
        fs.use_isa(isa)
        if fs.info()["rules"] != "code":
            pytest.skip(fs.info()["rules_from"])
    fs.set_num_threads(1)
    job, prepare = Job(case), partial(choose, isa, way)
    both = {"ours": Fusedstep(job, optimizer=own(case)), "built-in": Fusedstep(job)}
    return timed({name: Entry(one.step, prepare) for name, one in both.items()}, inner=INNER)


@pytest.mark.parametrize("way", [f"{way}, {isa}" for isa in ISAS for way in WAYS])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [CACHED, LARGE])
def test_over_built_in(timed, tell, size, dtype, rule, way):
    case, (way, isa) = Case(rule, dtype, size=size), way.split(", ")
    times = over_built_in(timed, case, isa, way)
    tell(times.pop("ours"), relative_to=times, goals={"built-in": goal(rule, way, size)}, moved=case.moved)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("size", [CACHED, LARGE])
def test_with_option(timed, tell, size, options, way):
    """Adam with an option, over the built-in one with the same option."""
    case = Case(size=size, options=tuple(OPTIONS[options].items()))
    times = over_built_in(timed, case, ISAS[-1], way)
    tell(times.pop("ours"), relative_to=times, moved=case.moved)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [10, 16, 100, 1000])
def test_thousand_tensors(timed, tell, size, way):
    """Adam in one step of many; all sizes but 16 leave a part of a vector at the end of each tensor."""
    case = Case(size=size, count=1000)
    times = over_built_in(timed, case, ISAS[-1], way)
    tell(times.pop("ours"), relative_to=times, moved=case.moved)


# Before the first step: each definition is of a new function, with another constant, and makes a new program.

CONSTANTS = count(1)


def define() -> Any:
    tiny = next(CONSTANTS) * 1e-20

    @fs.rule(states="m v")
    def adam(g, m, v, *, t, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * (g * g)
        c2 = fs.sqrt(1 - beta2**t)
        return lr * c2 / (1 - beta1**t) * m / (fs.sqrt(v) + (eps * c2 + tiny)), m, v

    return adam


def define_and_step() -> None:
    define()().step(np.ones(16), np.ones(16))


@pytest.mark.parametrize("what", [define, define_and_step], ids=["alone", "with a step"])
def test_definition(timed, tell, what):
    (mine,) = timed({"ours": Entry(what)}).values()
    tell(mine, goals={"ours": "<= 2 ms"} if what is define else None)


# AdaBelief, which PyTorch has not, as everybody can write it.


class Own(Fusedstep):
    """The rule as a function."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, optimizer=own(job.case))

    def prepare(self) -> None:
        fs.use_rules(self.name)


class Machine(Own):
    name = "machine"


class Code(Own):
    name = "code"

    def __init__(self, job: Job) -> None:
        if fs.info()["rules"] != "code":
            raise AbsentError(fs.info()["rules_from"])
        super().__init__(job)


@cache
def adabelief_of(torch: Any) -> Any:
    """
    Return the class as one writes it for PyTorch, after that of the authors of the paper.

    Corrections of the bias are kept as means, of ones. Compiled code would take a power anew for each vector, and one
    kept as a product becomes subnormal, which takes longer still.
    """

    class AdaBelief(torch.optim.Optimizer):
        def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
            super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
            self.number: Any = float

        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                beta1, beta2 = group["betas"]
                for p in group["params"]:
                    state = self.state[p]
                    if not state:
                        state["m"], state["s"] = torch.zeros_like(p), torch.zeros_like(p)
                        state["c1"], state["c2"] = self.number(0.0), self.number(0.0)
                    m, s = state["m"], state["s"]
                    for name, beta in (("c1", beta1), ("c2", beta2)):
                        state[name] *= beta
                        state[name] += 1 - beta
                    m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
                    d = p.grad - m
                    s.mul_(beta2).addcmul_(d, d, value=1 - beta2).add_(group["eps"])
                    size = -group["lr"] / state["c1"]
                    deviation = s.sqrt().div_(size * state["c2"] ** 0.5).add_(group["eps"] / size)
                    p.addcdiv_(m, deviation)

    return AdaBelief


class TorchEager(Torch):
    name = "torch eager"

    def _make(self, torch: Any, case: Case) -> Any:
        o = case.optimizer()
        return adabelief_of(torch)(self._params, o.lr, (o.beta1, o.beta2), o.eps)


class TorchCompiled(TorchEager):
    """The same under torch.compile, which makes new code for a new number, but not for a new tensor."""

    name = "torch compiled"
    starts_slowly = True

    def _make(self, torch: Any, case: Case) -> Any:
        optimizer = super()._make(torch, case)
        optimizer.number = torch.tensor
        torch.compiler.reset()  # it gives up after some optimizers, and would no longer compile
        optimizer.step = torch.compile(optimizer.step)
        return optimizer


OTHERS: list[type[Contestant]] = [Code, Machine, Expression, TorchEager, TorchCompiled]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what torch.compile imports
@pytest.mark.parametrize("size", [10**3, 10**4, 10**5, 10**6, 10**7])
def test_against_others(run, tell_case, size):
    """The built-in AdaBelief, and other ways to have it."""
    (measured,) = run(OTHERS, rule="adabelief", size=size, threads=1)
    tell_case(measured)
