"""Half precision, and what its bytes are worth: python benchmarks/halves.py [--quick] [--json FILE]."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import peers
from harness import Entry, race
from peers import Fusedstep, Job, entry
from report import Report, ask

import fusedstep
from fusedstep import _cpu

SIZES = {"1e5": 100_000, "1e6": 1_000_000, "3e7": 30_000_000}
STATES = {"float32": 4, "same": 2}
# Kind: dtype of parameters, of gradients, and what makes the rest of it.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "f32": ("float32", "float32", {}),
    "bf16, f32 states": ("bfloat16", "bfloat16", {}),
    "bf16": ("bfloat16", "bfloat16", {"state_dtype": "same"}),
    "f16, f32 states": ("float16", "float16", {}),
    "f16": ("float16", "float16", {"state_dtype": "same"}),
    "f32, bf16 gradients": ("float32", "bfloat16", {}),
    "f32, f16 gradients": ("float32", "float16", {}),
    "bf16, f32 states, master": ("bfloat16", "bfloat16", {"master_weights": True}),
    "bf16, f32 states, split": ("bfloat16", "bfloat16", {"master_weights": "split"}),
    "bf16, split": ("bfloat16", "bfloat16", {"master_weights": "split", "state_dtype": "same"}),
    "bf16, f32 states, stochastic": ("bfloat16", "bfloat16", {"rounding": "stochastic"}),
    "bf16, stochastic": ("bfloat16", "bfloat16", {"rounding": "stochastic", "state_dtype": "same"}),
    "f16, stochastic": ("float16", "float16", {"rounding": "stochastic", "state_dtype": "same"}),
}
GOALS = {"bf16": ">= 1.6", "bf16, f32 states": ">= 1.2"}


def _bytes(kind: str, states: int) -> int:
    """Return what an update of an element moves. A parameter with a master is read too, lest somebody has set it."""
    param, grad, options = KINDS[kind]
    p, g = peers.dtype_of(param).itemsize, peers.dtype_of(grad).itemsize
    state = 4 if p == 4 else STATES[options.get("state_dtype", "float32")]
    master = {False: 0, True: 4, "split": 2}[options.get("master_weights", False)]
    return 2 * p + g + 2 * states * state + 2 * master


def _contestant(rule: str, kind: str, elements: int) -> Fusedstep:
    param, grad, options = KINDS[kind]
    job = Job(rule, elements, param)
    ours = Fusedstep(job)
    if grad != param:
        ours.args = (ours.args[0], Job(rule, elements, grad).grads[0])
        ours.step = partial(ours.optimizer.step, *ours.args)
    for name, value in options.items():
        setattr(ours.optimizer, name, value)
    ours.name = kind
    return ours


def kinds(report: Report, quick: bool) -> None:
    """Time Adam over every kind of arrays beside float32, on each instruction set that has vectors for it."""
    for size, elements in SIZES.items():
        all_of_them = [_contestant("adam", kind, elements) for kind in KINDS]
        for isa in _cpu.isas[1:] or _cpu.isas:
            entries = [Entry(ours.name, ours.step, prepare=partial(fusedstep.use_isa, isa)) for ours in all_of_them]
            times = race(entries, 3 if quick else 15 if size == "3e7" else 31, 0.005 if quick else 0.02)
            for kind in KINDS:
                moved = _bytes(kind, 2)
                goal = GOALS.get(kind, "") if size == "3e7" and isa == _cpu.isas[-1] else ""
                question = f"adam {size} {isa}: {kind}, by bytes {28 / moved:.2f}"
                report.add(question, times[kind], times["f32"], "f32", goal=goal, moved=moved * elements)
        del all_of_them
        Job.forget()
    fusedstep.use_isa("auto")


def limits(report: Report, quick: bool) -> None:
    """Ask for the share of a loop without arithmetic, and without conversions, over as many bytes of float32."""
    elements = SIZES["3e7"]
    for rule in ("sgd", "momentum", "adam"):
        for kind in ("bf16", "f16"):
            ours = _contestant(rule, kind, elements)
            limit = peers.limit(Fusedstep(Job(rule, elements // 2)))
            for isa in _cpu.isas[1:] or _cpu.isas:
                prepare = partial(fusedstep.use_isa, isa)
                entries = [replace(some, prepare=prepare) for some in (limit, entry(ours))]
                times = race(entries, 5 if quick else 25, 0.02 if quick else 0.04)
                moved = _bytes(kind, len(_cpu.rules[rule][1])) * elements
                goal = ">= 0.9" if kind == "bf16" and rule != "adam" and isa == _cpu.isas[-1] else ""
                question = f"{rule} 3e7 {isa}: {kind}, share of the limit"
                report.add(question, times[kind], times["limit"], "limit", goal=goal, moved=moved)
        Job.forget()
    fusedstep.use_isa("auto")


def against(report: Report, quick: bool) -> None:
    """Race Adam with everything in bfloat16 against torch's fused one, which does the same."""
    for size, elements in SIZES.items():
        job = Job("adam", elements, "bfloat16")
        ours = _contestant("adam", "bf16", elements)
        present, absent = peers.contestants(job, peers.Torch)
        if absent:
            report.note(f"torch: absent, {absent['Torch']}")
            return
        mine, other = race([entry(ours), entry(present[0])], 3 if quick else 15, rest=0.02).values()
        report.add(f"adam bf16 {size}", mine, other, present[0].name, moved=14 * elements)
        Job.forget()


def small(report: Report, quick: bool) -> None:
    """Time a thousand small tensors in one step."""
    found = {}
    for kind in ("f32", "bf16", "bf16, f32 states", "bf16, f32 states, master", "bf16, stochastic"):
        param, _, options = KINDS[kind]
        ours = Fusedstep(Job("adam", 16, param, count=1000))
        for name, value in options.items():
            setattr(ours.optimizer, name, value)
        found[kind] = Entry(kind, ours.step)
    times = race(list(found.values()), 7 if quick else 31)
    for kind, mine in times.items():
        report.add(f"adam 1000 x 16: {kind}", mine, times["f32"], "f32", inverse=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    ask(__doc__, {question.__name__: question for question in (kinds, limits, against, small)})
