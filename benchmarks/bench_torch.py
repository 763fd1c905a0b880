"""
What does a step of `fusedstep.torch` cost, beside one of PyTorch's own class in each of its forms?

Every step finds new gradients, which a backward pass leaves after `zero_grad()`: new tensors, elsewhere in memory than
those of the last steps. They are made outside of the time of the step, which is the median of the steps of a turn.
On one thread that is the processor time of the thread, in which other work of the machine does not count; on two
threads, and of a single tensor, whose step is too short for that clock, it is the time that passes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

import fusedstep as fs
from fusedstep import _cpu
from fusedstep.presets import torch as presets
from fusedstep.tools.bench.contestants import Limit
from fusedstep.tools.bench.harness import Clock, Entry, Timing
from fusedstep.tools.bench.machine import processors

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed")
ours: Any = pytest.importorskip("fusedstep.torch")

Shapes = list[tuple[int, ...]]
INNER = 0.002  # seconds of a turn, so few that most turns are not interrupted where a machine has other work
FORMS = {
    "torch fused": {"fused": True},
    "torch foreach": {"foreach": True},
    "torch single": {"foreach": False},  # what PyTorch takes on a CPU unless told otherwise
}
HAVE_FUSED = ("Adam", "SGD", "Adagrad")
# The classes by name, and what our kernel calls the same rule.
RULES = {
    "Adam": presets.Adam,
    "SGD": presets.Momentum,
    "Adagrad": presets.Adagrad,
    "RMSprop": presets.RMSprop,
    "Adadelta": presets.Adadelta,
    "Adamax": presets.Adamax,
    "NAdam": presets.Nadam,
    "RAdam": presets.RAdam,
}
RARE = ("Adamax", "RAdam")  # not measured with large networks


def resnet() -> Shapes:
    """Return the shapes of the parameters of a ResNet-50."""
    shapes, inner = [(64, 3, 7, 7), (64,), (64,)], 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            kernels = [(planes, inner, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1)]
            kernels += [(4 * planes, inner, 1, 1)] * (block == 0)
            for kernel in kernels:
                shapes += [kernel, kernel[:1], kernel[:1]]
            inner = 4 * planes
    return [*shapes, (1000, 2048), (1000,)]


def transformer(d: int = 256, layers: int = 12, words: int = 8000, places: int = 256) -> Shapes:
    """Return the shapes of the parameters of a small decoder, as in GPT-2."""
    attention = [(d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)]
    layer = [*attention, (d,), (d,), (4 * d, d), (4 * d,), (d, 4 * d), (d,)]
    return [(words, d), (places, d), *layer * layers, (d,), (d,)]


LARGE = {"transformer": transformer(), "ResNet50": resnet()}
NETWORKS: dict[str, Shapes] = {
    "16 elements": [(16,)],
    "148 of 8": [(8,)] * 148,
    "MLP": [(128, 784), (128,), (128, 128), (128,), (10, 128), (10,)],
    **LARGE,
}


@dataclass
class Turn:
    """A step, and the making of new gradients for it."""

    backward: Callable[[], object]
    step: Callable[[], object]

    def __call__(self) -> None:
        self.backward()
        self.step()


def step_time(now: Callable[[], float]) -> Clock:
    """Return a clock of steps without the making of gradients, which lets all steps be as long as the median."""

    def clock(turn: Any, calls: int) -> float:
        seconds = []
        for _ in repeat(None, calls):
            turn.backward()
            start = now()
            turn.step()
            seconds.append(now() - start)
        return calls * median(seconds)

    return clock


class Race:
    """
    The sides of a race: ours, the kernel of the rule over arrays of NumPy, and the forms of PyTorch.

    All begin with the same parameters and get the same gradients. Those of PyTorch's tensors are new ones at each step;
    the last ones are kept meanwhile, so that the allocator cannot hand out the same memory each time. The kernel has
    the same arrays at each step, which get their numbers anew.
    """

    def __init__(self, shapes: Shapes, rule: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.start, self.sources = ([torch.rand(shape, generator=generator) for shape in shapes] for _ in range(2))
        for source in self.sources:  # far enough from 0 for states not to become subnormal
            source.add_(0.1)
        self.kept: list[Any] = []
        arguments = {"momentum": 0.9} if rule == "SGD" else {}
        forms = {name: switches for name, switches in FORMS.items() if name != "torch fused" or rule in HAVE_FUSED}
        self.params: dict[str, list[Any]] = {}
        self.turns = {"ours": self.stepping("ours", getattr(ours, rule), arguments)}
        self.turns |= {
            name: self.stepping(name, getattr(torch.optim, rule), arguments | switches)
            for name, switches in forms.items()
        }
        self.turns["kernel"] = self.over_arrays(RULES[rule]())

    def stepping(self, name: str, cls: Any, arguments: dict[str, Any]) -> Turn:
        """Return the turn of an optimizer of tensors."""
        params = self.params[name] = [p.clone().requires_grad_() for p in self.start]
        return Turn(lambda: self.backward(params), cls(params, **arguments).step)

    def backward(self, params: list[Any]) -> None:
        """Let parameters have new gradients, which autograd makes: no Python object of them exists before the step."""
        self.kept = [p.grad for p in params]
        for p in params:
            p.grad = None
        torch.autograd.backward(params, self.sources)

    def over_arrays(self, optimizer: Any) -> Turn:
        """Return the turn of an optimizer of arrays, which is called with the same ones at each step."""
        params, grads = ([tensor.clone() for tensor in some] for some in (self.start, self.sources))
        self.params["kernel"] = params
        args = [p.numpy() for p in params], [g.numpy() for g in grads]
        self.arrays = SimpleNamespace(optimizer=optimizer, args=args, step=lambda: optimizer.step(*args))

        def backward() -> None:
            for grad, source in zip(grads, self.sources, strict=True):
                grad.copy_(source)

        return Turn(backward, self.arrays.step)

    def compare(self) -> None:
        """Let all sides make two steps, and see that they have done the same."""
        for turn in self.turns.values():
            turn()
            turn()
        for name, params in self.params.items():
            for p, q in zip(self.params["ours"], params, strict=True):
                assert (p.detach() - q.detach()).abs_().max() < 1e-5, f"{name} differs"

    def limit(self) -> Entry:
        """Return the entry of the loop that moves the bytes of the kernel and computes next to nothing."""
        limit = Limit(self.arrays)  # type: ignore[arg-type]
        return Entry(Turn(self.turns["kernel"].backward, limit.step), steps=limit.steps)

    @property
    def moved(self) -> int:
        """The bytes that a step must read and write."""
        states = len(_cpu.rules[self.arrays.optimizer._settings_with().rule][1])
        return 4 * (3 + 2 * states) * sum(map(torch.numel, self.start))


def timed_on(timed: Any, race: Race, threads: int, with_limit: bool = False) -> dict[str, Timing]:
    """Return the timings of all sides on some threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    fs.set_num_threads(threads)
    try:
        race.compare()
        entries = {name: Entry(turn) for name, turn in race.turns.items()}
        if with_limit:
            entries["limit"] = race.limit()
        now = time.thread_time if threads == 1 and len(race.start) > 1 else time.perf_counter
        return timed(entries, inner=INNER, clock=step_time(now), rest=0.02 * (threads > 1))
    finally:
        torch.set_num_threads(before)


def against_torch(timed: Any, tell: Any, network: str, rule: str, threads: int) -> None:
    """Report a step beside the forms of PyTorch, of which `fastest` is the one with the least median."""
    race = Race(NETWORKS[network], rule)
    times = timed_on(timed, race, threads, network in LARGE)
    forms = [name for name in times if name in FORMS]
    times["fastest"] = min((times[name] for name in forms), key=lambda timing: timing.median)
    goals = {"fastest": ">= 1" if rule in HAVE_FUSED else ">= 2"}
    if network == "16 elements":
        goals["ours"] = "<= 8 us"
    tell(times.pop("ours"), times, goals=goals, moved=race.moved)


CASES = [(network, rule) for network in NETWORKS for rule in RULES if network not in LARGE or rule not in RARE]


@pytest.mark.parametrize(("network", "rule"), CASES)
def test_one_thread(timed, tell, network, rule):
    against_torch(timed, tell, network, rule, 1)


@pytest.mark.skipif(processors() < 2, reason="there is one processor")
@pytest.mark.parametrize(("network", "rule"), [case for case in CASES if case[0] in LARGE])
def test_two_threads(timed, tell, network, rule):
    against_torch(timed, tell, network, rule, 2)


@pytest.mark.parametrize("count", [148, 1000])
def test_cost_of_a_tensor(timed, tell, count):
    """All that a step of Adam on one thread costs beside the kernel, over the number of tensors."""
    times = timed_on(timed, Race([(8,)] * count, "Adam"), 1)
    rounds = zip(times["ours"].seconds, times["kernel"].seconds, strict=True)
    each = Timing([(step - kernel) / count for step, kernel in rounds])
    tell(each, goals={"ours": "<= 0.4 us"} if count == 148 else None)
